"""The Transformer of DAB-DETR (arXiv 2201.12329): the queries are anchor boxes, and every decoder layer refines them.

Names in the paper (section 4): a query has an anchor box A = (x, y, w, h) and a content C. PE(A) is the box's sine
embedding. The positions in the self-attention are P = MLP(PE(A)). Those in the cross-attention are as in Conditional
DETR, with the box's centre as reference point, and modulated by the box's size: attention reaches farther along the
longer side.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import torch
from torch import Tensor, nn

from models.build import build_single_scale
from models.checkpoints.hf_shared import SINGLE_SCALE
from models.checkpoints.renaming import Renaming
from models.conditional_transformer import ConditionalDecoderLayer
from models.detr import DETR
from models.interface import ContentPlace, Decoded, Memory, check_widths
from models.layers import MLP, TransformerConfig, TransformerLayer, full_precision, inverse_sigmoid, to_float32
from models.position_encoding import sine_waves
from models.transformer import Transformer, TransformerEncoderLayer
from util.errors import UserError
from util.records import Classification, DetectorRecord, Finetuning, HuggingFace

ANCHOR_DIM = 4
"""Width of a query: the logits of its anchor box, in the order cx, cy, w, h."""

TEMPERATURE = 20.0
"""Of the feature map's position encoding (section 4.5); anchor boxes are embedded with DETR's 10,000."""


def anchor_embedding(anchors: Tensor, d_model: int) -> Tensor:
    """PE(A): boxes [..., 4] (cxcywh in [0, 1]) -> [..., 2C], a quarter each for y, x, w and h, in this order.

    The first half, the centre, has the layout of the memory's position encoding.
    """
    x, y, w, h = anchors.unbind(-1)
    return sine_waves(2 * math.pi * torch.stack([y, x, w, h], dim=-1), d_model // 2).flatten(-2)


class PReLUFeedForward(TransformerLayer):
    """A layer with PReLU (one learned slope) instead of ReLU in its feed-forward."""

    def __init__(self, config: TransformerConfig, **options: bool) -> None:
        super().__init__(config, **options)
        self.activation = nn.PReLU()

    def feed_forward(self, x: Tensor) -> Tensor:
        """[B, N, C] -> dim_feedforward hidden units per token -> [B, N, C]."""
        return self.linear2(self.dropout(self.activation(self.linear1(x))))


class DabEncoderLayer(PReLUFeedForward, TransformerEncoderLayer):
    """DETR's encoder layer with PReLU."""


class DabDecoderLayer(PReLUFeedForward, ConditionalDecoderLayer):
    """Conditional DETR's decoder layer with PReLU."""


class DabEncoder(nn.Module):
    """A stack of encoder layers; each scales the position encoding by its own input, as the decoder does."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DabEncoderLayer(config) for _ in range(config.num_encoder_layers))
        self.query_scale = MLP(config.d_model, config.d_model, config.d_model, 2)

    def forward(self, src: Tensor, pos: Tensor, mask: Tensor) -> Tensor:
        """src and pos [B, S, C], mask [B, S] (True = padding) -> [B, S, C]."""
        for layer in self.layers:
            src = layer(src, pos * self.query_scale(src), mask)
        return src


class DabDecoder(nn.Module):
    """A stack of decoder layers; each starts from the anchor boxes that the previous one refined.

    Attributes:
        bbox_embed: the detector's box head, which all layers share.
    """

    has_reference = True

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.d_model = d_model = config.d_model
        num_layers = config.num_decoder_layers
        self.layers = nn.ModuleList(DabDecoderLayer(config, is_first=i == 0) for i in range(num_layers))
        self.norm = nn.LayerNorm(d_model)
        self.query_scale = MLP(d_model, d_model, d_model, 2)
        self.ref_point_head = MLP(2 * d_model, d_model, d_model, 2)
        self.ref_anchor_head = MLP(d_model, d_model, 2, 2)
        self.bbox_embed: nn.Module | None = None

    def forward(self, memory: Memory, anchors: Tensor, tgt: Tensor, query_mask: Tensor | None) -> Decoded:
        """Decode the queries; returns the outputs of all layers.

        Args:
            memory: of the encoder.
            anchors: [B, Q, 4], logits of the first anchor boxes.
            tgt: [B, Q, C], the content that the first layer starts with.
            query_mask: see :meth:`Transformer.decode`.
        """
        anchor = anchors.sigmoid()  # cxcywh in [0, 1]
        outputs, references = [], [anchor]
        for index, layer in enumerate(self.layers):
            if index > 0:
                references.append(self._refine(tgt, anchor))
                anchor = references[-1].detach()  # no gradient through the boxes to earlier layers
            query_pos, query_sine = self._positions(tgt, anchor, is_first=index == 0)
            tgt = layer(tgt, query_pos, query_sine, memory, query_mask)
            outputs.append(tgt)
        return Decoded(hidden=self.norm(torch.stack(outputs)), reference=inverse_sigmoid(torch.stack(references)))

    def _positions(self, tgt: Tensor, anchor: Tensor, *, is_first: bool) -> tuple[Tensor, Tensor]:
        """P of the self-attention and the modulated spatial queries of the cross-attention: [B, Q, C] each."""
        embedding = anchor_embedding(anchor, self.d_model)  # [B, Q, 2C]
        query_pos = self.ref_point_head(embedding)
        query_sine = embedding[..., : self.d_model]  # PE(x, y)
        if not is_first:  # the first layer's content is still zero
            query_sine = query_sine * self.query_scale(tgt)
        # Section 4.4: the similarity along x is multiplied by w_ref / w, the one along y by h_ref / h.
        ratio = self.ref_anchor_head(tgt).sigmoid() / anchor[..., 2:]  # [B, Q, 2]
        return query_pos, query_sine * ratio.flip(-1).repeat_interleave(self.d_model // 2, dim=-1)

    def _refine(self, tgt: Tensor, anchor: Tensor) -> Tensor:
        """Anchor boxes [B, Q, 4] in [0, 1], moved and resized by the box head."""
        with full_precision(tgt.device.type):
            return (self.bbox_embed(to_float32(tgt)) + inverse_sigmoid(anchor)).sigmoid()


class DabTransformer(Transformer):
    """An encoder and a decoder that see one feature map; queries are [B, Q, 4], logits of anchor boxes."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config.d_model, encoder=DabEncoder(config), decoder=DabDecoder(config))
        self.query_dim = ANCHOR_DIM

    def make_heads(self, class_embed: nn.Linear, bbox_embed: MLP) -> tuple[nn.Module, nn.Module]:
        """The heads as they are: all decoder layers share them. The decoder refines its boxes with ``bbox_embed``."""
        self.decoder.bbox_embed = bbox_embed
        return class_embed, bbox_embed

    def with_content(self, queries: Tensor, content: Tensor, into: ContentPlace = "query_pos") -> Tensor:
        """Anchor boxes [B, Q, 4] and the content [B, Q, C] that the decoder starts with -> [B, Q, 4 + C].

        ``into`` makes no difference: the positions come from the anchor boxes, so the content has only one place.

        Raises:
            ValueError: other widths.
        """
        check_widths(queries, content, ANCHOR_DIM, self.d_model)
        return torch.cat([queries, content], dim=-1)

    def decode(self, memory: Memory, queries: Tensor, query_mask: Tensor | None = None) -> Decoded:
        """Decode the queries; returns the outputs of all decoder layers.

        Args:
            memory: from :meth:`encode`.
            queries: [B, Q, 4], logits of anchor boxes; the content starts as zeros. Or [B, Q, 4 + C]: then the content
                that the first layer starts with.
            query_mask: bool [Q, Q], True where a query (row) may not attend to another (column). No row may be all
                True. None: every query attends to all.
        """
        anchors, tgt = queries[..., :ANCHOR_DIM], queries[..., ANCHOR_DIM:]
        if tgt.shape[-1] == 0:
            tgt = queries.new_zeros(*queries.shape[:2], self.d_model)
        return self.decoder(memory, anchors, tgt, query_mask)


def build_dab(
    args: argparse.Namespace, num_logits: int, *, classification: Classification, train_backbone: bool
) -> DETR:
    """DAB-DETR with random weights."""
    return build_single_scale(
        args,
        DabTransformer,
        num_logits,
        classification=classification,
        train_backbone=train_backbone,
        temperature=TEMPERATURE,
    )


def _name_the_box_head_twice(renaming: Renaming, config: dict[str, Any] | None) -> None:
    """The box head has two names, the detector's and the decoder's; a file of transformers has only one of them."""
    renaming.alias("bbox_embed.", "transformer.decoder.bbox_embed.")
    renaming.alias("transformer.decoder.bbox_embed.", "bbox_embed.")


def _make_config(args: dict[str, Any], common: dict[str, Any]) -> dict[str, Any]:
    if args["position_embedding"] != "sine":
        raise UserError("--to hf: DAB-DETR of transformers has no --position_embedding learned")
    same = {name: value for name, value in common.items() if name not in ("d_model", "position_embedding_type")}
    return same | {"hidden_size": common["d_model"], "activation_function": "prelu"}


def _attention_names(part: str, short: str) -> list[tuple[str, str]]:
    """(theirs, ours) of the decoder's "self" attention ("sa") or "cross" attention ("ca")."""
    theirs, ours = f"model.decoder.layers.*.{part}_attn.{part}_attn", "transformer.decoder.layers.*"
    in_full = {"q": "query_", "k": "key_", "v": "value"}
    projections = ("qcontent", "qpos", "kcontent", "kpos", "v", "qpos_sine")
    return [
        *[(f"{theirs}_{in_full[name[0]]}{name[1:]}_proj.", f"{ours}.{short}_{name}_proj.") for name in projections],
        (f"{theirs}.output_proj.", f"{ours}.{part}_attn.out_proj."),
    ]


DAB = DetectorRecord(
    title="DAB-DETR (arXiv 2201.12329)",
    build=build_dab,
    classification="focal",
    # As in the public code; the classification weighs 2 in the matching and 1 in the loss.
    defaults={"num_queries": 300, "dropout": 0.0, "cls_loss_coef": 1.0},
    finetuning=Finetuning(lr_backbone_pretrained=1e-5, epochs=50, drop_at=0.8),
    leaves_unused=lambda args: args.dec_layers == 1,  # query_scale serves the layers after the first
    signs=(
        "transformer.decoder.layers.0.sa_qcontent_proj.weight",
        "transformer.decoder.ref_anchor_head.layers.0.weight",
    ),
    public_names=[("refpoint_embed.", "query_embed.")],
    tidy=_name_the_box_head_twice,
    hugging_face=HuggingFace(
        model_type="dab-detr",
        class_name="DabDetr",
        image_processor="ConditionalDetr",
        timm_body="model.backbone.conv_encoder.model._backbone.",
        names=[
            ("class_embed.", "class_embed."),
            ("model.query_refpoint_embeddings.", "query_embed."),
            ("model.encoder.layers.*.activation_fn.", "transformer.encoder.layers.*.activation."),
            *_attention_names("self", "sa"),
            *_attention_names("cross", "ca"),
            ("model.decoder.layers.*.self_attn.self_attn_layer_norm.", "transformer.decoder.layers.*.norm1."),
            ("model.decoder.layers.*.cross_attn.cross_attn_layer_norm.", "transformer.decoder.layers.*.norm2."),
            ("model.decoder.layers.*.mlp.final_layer_norm.", "transformer.decoder.layers.*.norm3."),
            ("model.decoder.layers.*.mlp.fc1.", "transformer.decoder.layers.*.linear1."),
            ("model.decoder.layers.*.mlp.fc2.", "transformer.decoder.layers.*.linear2."),
            ("model.decoder.layers.*.mlp.activation_fn.", "transformer.decoder.layers.*.activation."),
            *SINGLE_SCALE,
            *[
                (f"model.{name}.", f"transformer.{name}.")
                for name in "encoder.query_scale decoder.query_scale decoder.ref_point_head decoder.ref_anchor_head "
                # Variants that this project does not have: with their own names they are refused.
                "decoder.bbox_embed encoder.norm patterns".split()
            ],
        ],
        signs=("model.decoder.query_scale.", "model.query_refpoint_embeddings."),
        config=_make_config,
        requires={"activation_function": "prelu", "temperature_height": 20, "temperature_width": 20},
    ),
)
