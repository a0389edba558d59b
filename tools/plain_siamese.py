"""Siamese DETR as the authors' public code arranges it, for comparisons of speed.

The losses are those of :class:`models.pretext.siamese.SiameseDETR`. How they are computed is that of github.com's
Zx55/SiameseDETR, commit b38a0c6, written anew and short, without its parts that only prepare or log:

* The backbone runs four times: on each view and on the crops of each view. Frozen batch norms stand apart from the
  convolutions, and maps have the usual memory format.
* The Transformer runs once for each view, sequence first. Attention is written out. Its weights are averaged over the
  heads for each call, though nobody reads the average.
* All queries predict features, and those of the matched ones are read.
* Each view and each decoder layer has a matching and losses of its own.
* AdamW updates one parameter after the other.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops import FrozenBatchNorm2d, roi_align

from datasets.pretext.two_view import TwoViewBatch
from models.build import config_of
from models.conditional_transformer import concatenate_heads, sine_embedding
from models.layers import MLP, TransformerConfig
from models.pretext.losses import feature_loss
from models.pretext.siamese import ROI_SIZE, SiameseDETR, jitter_boxes, region_targets
from util.nested_tensor import NestedTensor

KEPT = ("patch2query", "feature_align", "global_head", "criterion")
KEPT_OF_DETECTOR = ("input_proj", "query_embed", "class_embed", "bbox_embed")


class PlainSiamese(nn.Module):
    """The arrangement above, with the weights of ``method`` at present; for a ResNet, without padding."""

    def __init__(self, args: argparse.Namespace, method: SiameseDETR) -> None:
        super().__init__()
        detector = method.detector
        resnet = getattr(torchvision.models, args.backbone)(norm_layer=FrozenBatchNorm2d)
        self.body = IntermediateLayerGetter(resnet, {"layer4": "map"}).requires_grad_(False)
        self.body.load_state_dict(detector.backbone[0].body.state_dict())
        self.position_encoding = detector.backbone[1]  # has no weights
        self.transformer = PlainTransformer(args.detr, config_of(args))
        self.transformer.load_state_dict(detector.transformer.state_dict())
        for name in KEPT:
            setattr(self, name, copy.deepcopy(getattr(method, name)))
        for name in KEPT_OF_DETECTOR:
            setattr(self, name, copy.deepcopy(getattr(detector, name)))
        self.stride = detector.backbone[0].strides[0]
        self.jitter = args.query_jitter
        self.feature_coef, self.global_coef = args.feature_loss_coef, args.global_loss_coef

    def forward(self, batch: TwoViewBatch) -> Tensor:
        """The total loss."""
        maps = [self._backbone(batch.views[:, view].contiguous()) for view in (0, 1)]
        content = [self._content(maps[view], batch.boxes[:, view].contiguous(), batch.size) for view in (0, 1)]
        crops = [self._crop_features(batch.crops[:, view].contiguous()) for view in (0, 1)]
        total, pooled = 0.0, []
        for view, other in ((1, 0), (0, 1)):
            mask = _resized(batch.mask[:, view], maps[view])
            (level,) = self.input_proj([NestedTensor(maps[view], mask)], batch.mask[:, view])
            memory, hidden, reference = self.transformer(level, content[other], self.position_encoding(level))
            targets = region_targets(batch.boxes[:, view], batch.size)
            total = total + 0.5 * self._losses(hidden, reference, targets, crops[other])
            pooled.append(memory.mean(0))
        return total + self.global_coef * self.global_head(*pooled)

    @torch.no_grad()
    def _backbone(self, pictures: Tensor) -> Tensor:
        return self.body(pictures)["map"]

    def _crop_features(self, crops: Tensor) -> Tensor:
        """[B, R, 3, s, s] -> [B, R, K]."""
        return self._backbone(crops.flatten(0, 1)).mean((-2, -1)).unflatten(0, crops.shape[:2])

    def _content(self, maps: Tensor, boxes: Tensor, sizes: Tensor) -> Tensor:
        """Queries [Q, B, C] that ask for the regions [B, R, 4] of these maps."""
        moved = jitter_boxes(boxes, sizes, self.jitter) if self.training and self.jitter else boxes
        regions = roi_align(maps, list(moved), ROI_SIZE, 1 / self.stride, sampling_ratio=-1).mean((-2, -1))
        content = self.patch2query(regions.unflatten(0, boxes.shape[:2]))
        learned = self.query_embed.weight[:, None].repeat(1, len(boxes), 1)
        content = content.repeat_interleave(len(learned) // content.shape[1], dim=1)
        return learned + content.transpose(0, 1).contiguous()

    def _losses(self, hidden: Tensor, reference: Tensor | None, targets: list[dict], wanted: Tensor) -> Tensor:
        """Of one view: hidden [L, B, Q, C], reference [B, Q, 2], features [B, R, K] -> their weighted sum."""
        logits, boxes, features = self.class_embed(hidden), self.bbox_embed(hidden), self.feature_align(hidden)
        if reference is not None:
            boxes = torch.cat([boxes[..., :2] + reference, boxes[..., 2:]], dim=-1)
        boxes, total = boxes.sigmoid(), 0.0
        for layer in range(len(hidden)):
            outputs = {"pred_logits": logits[layer : layer + 1], "pred_boxes": boxes[layer : layer + 1]}
            losses, matching = self.criterion(outputs, targets)
            predicted = features[layer, matching.image, matching.query]
            right = wanted[matching.image, matching.target]
            distance = feature_loss(predicted, right, matching.layer, 1, wanted[..., 0].numel())
            total = total + self.criterion.total(losses) + self.feature_coef * distance.sum()
        self.criterion.errors(outputs, targets, matching)  # for the log
        return total


def plain_step(plain: PlainSiamese, batch: TwoViewBatch, args: argparse.Namespace) -> Callable[[], None]:
    """A training step: losses, backward, clipped gradients, AdamW."""
    parameters = [parameter for parameter in plain.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=args.lr, weight_decay=args.weight_decay)

    def step() -> None:
        plain(batch).backward()
        nn.utils.clip_grad_norm_(parameters, args.clip_max_norm)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _resized(mask: Tensor, maps: Tensor) -> Tensor:
    """The mask [B, h, w] of images at the size of maps [B, K, H, W]."""
    return F.interpolate(mask[None].float(), size=maps.shape[-2:])[0].bool()


class PlainTransformer(nn.Module):
    """DETR's or Conditional DETR's Transformer, sequence first; the names of parameters are those of ours."""

    def __init__(self, detr: str, config: TransformerConfig) -> None:
        super().__init__()
        width, self.is_conditional = config.d_model, detr == "conditional"
        layers = [PlainEncoderLayer(config) for _ in range(config.num_encoder_layers)]
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(layers)})
        make = ConditionalLayer if self.is_conditional else VanillaLayer
        layers = [make(config, is_first=index == 0) for index in range(config.num_decoder_layers)]
        self.decoder = nn.ModuleDict({"layers": nn.ModuleList(layers), "norm": nn.LayerNorm(width)})
        if self.is_conditional:
            self.decoder["query_scale"] = MLP(width, width, width, 2)
            self.decoder["ref_point_head"] = MLP(width, width, 2, 2)

    def forward(self, level: NestedTensor, query_pos: Tensor, pos: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """A level, its positions [B, C, H, W] and queries [Q, B, C] -> memory, outputs of all layers, reference points.

        These are [S, B, C], [L, B, Q, C] and logits [B, Q, 2] (vanilla: None).
        """
        memory, pos = (maps.flatten(2).permute(2, 0, 1) for maps in (level.tensors, pos))
        mask = level.mask.flatten(1)
        for layer in self.encoder["layers"]:
            memory = layer(memory, mask, pos)
        tgt, outputs = torch.zeros_like(query_pos), []
        reference = self.decoder["ref_point_head"](query_pos) if self.is_conditional else None
        for index, layer in enumerate(self.decoder["layers"]):
            sine = None
            if self.is_conditional:
                sine = sine_embedding(reference.sigmoid(), tgt.shape[-1])
                sine = sine * self.decoder["query_scale"](tgt) if index else sine
            tgt = layer(tgt, query_pos, sine, memory, mask, pos)
            outputs.append(self.decoder["norm"](tgt))
        return memory, torch.stack(outputs).transpose(1, 2), None if reference is None else reference.transpose(0, 1)


class PlainLayer(nn.Module):
    """What all layers have."""

    def __init__(self, config: TransformerConfig, num_norms: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(config.d_model, config.dim_feedforward)
        self.linear2 = nn.Linear(config.dim_feedforward, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        for index in range(num_norms):
            setattr(self, f"norm{index + 1}", nn.LayerNorm(config.d_model))

    def feed_forward(self, x: Tensor) -> Tensor:
        """Tokens of any shape [..., C]."""
        return self.linear2(self.dropout(F.relu(self.linear1(x))))


class PlainEncoderLayer(PlainLayer):
    """Self-attention and feed-forward."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config, num_norms=2)
        self.self_attn = nn.MultiheadAttention(config.d_model, config.nhead, dropout=config.dropout)

    def forward(self, src: Tensor, mask: Tensor, pos: Tensor) -> Tensor:
        """src and pos [S, B, C], mask [B, S]."""
        key = src + pos
        src = self.norm1(src + self.dropout(self.self_attn(key, key, src, key_padding_mask=mask)[0]))
        return self.norm2(src + self.dropout(self.feed_forward(src)))


class VanillaLayer(PlainLayer):
    """A decoder layer of DETR."""

    def __init__(self, config: TransformerConfig, *, is_first: bool) -> None:
        super().__init__(config, num_norms=3)
        self.self_attn = nn.MultiheadAttention(config.d_model, config.nhead, dropout=config.dropout)
        self.multihead_attn = nn.MultiheadAttention(config.d_model, config.nhead, dropout=config.dropout)

    def forward(self, tgt: Tensor, query_pos: Tensor, sine: None, memory: Tensor, mask: Tensor, pos: Tensor) -> Tensor:
        """tgt and query_pos [Q, B, C], memory and pos [S, B, C], mask [B, S]."""
        key = tgt + query_pos
        tgt = self.norm1(tgt + self.dropout(self.self_attn(key, key, tgt)[0]))
        found = self.multihead_attn(tgt + query_pos, memory + pos, memory, key_padding_mask=mask)[0]
        tgt = self.norm2(tgt + self.dropout(found))
        return self.norm3(tgt + self.dropout(self.feed_forward(tgt)))


class ConditionalLayer(PlainLayer):
    """A decoder layer of Conditional DETR."""

    def __init__(self, config: TransformerConfig, *, is_first: bool) -> None:
        super().__init__(config, num_norms=3)
        self.nhead, self.is_first = config.nhead, is_first
        names = "sa_qcontent sa_qpos sa_kcontent sa_kpos sa_v ca_qcontent ca_kcontent ca_kpos ca_v ca_qpos_sine".split()
        for name in [*names, "ca_qpos"] if is_first else names:
            setattr(self, f"{name}_proj", nn.Linear(config.d_model, config.d_model))
        self.self_attn, self.cross_attn = WrittenOutAttention(config), WrittenOutAttention(config)

    def forward(
        self, tgt: Tensor, query_pos: Tensor, sine: Tensor, memory: Tensor, mask: Tensor, pos: Tensor
    ) -> Tensor:
        """tgt, query_pos and sine [Q, B, C], memory and pos [S, B, C], mask [B, S]."""
        q = self.sa_qcontent_proj(tgt) + self.sa_qpos_proj(query_pos)
        k = self.sa_kcontent_proj(tgt) + self.sa_kpos_proj(query_pos)
        tgt = self.norm1(tgt + self.dropout(self.self_attn(q, k, self.sa_v_proj(tgt))[0]))
        q, k, k_pos = self.ca_qcontent_proj(tgt), self.ca_kcontent_proj(memory), self.ca_kpos_proj(pos)
        if self.is_first:
            q, k = q + self.ca_qpos_proj(query_pos), k + k_pos
        q = concatenate_heads(q, self.ca_qpos_sine_proj(sine), self.nhead)
        k = concatenate_heads(k, k_pos, self.nhead)
        tgt = self.norm2(tgt + self.dropout(self.cross_attn(q, k, self.ca_v_proj(memory), mask)[0]))
        return self.norm3(tgt + self.dropout(self.feed_forward(tgt)))


class WrittenOutAttention(nn.Module):
    """Attention of projected queries, keys and values, product by product."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.nhead, self.dropout = config.nhead, nn.Dropout(config.dropout)
        self.out_proj = nn.Linear(config.d_model, config.d_model)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """q [Q, B, E], k [S, B, E], v [S, B, C], mask [B, S] -> [Q, B, C] and mean weights [B, Q, S]."""
        batch = q.shape[1]
        q, k, v = (x.contiguous().view(len(x), batch * self.nhead, -1).transpose(0, 1) for x in (q, k, v))
        scores = torch.bmm(q * q.shape[-1] ** -0.5, k.transpose(1, 2)).unflatten(0, (batch, self.nhead))
        if mask is not None:
            scores = scores.masked_fill(mask[:, None, None], float("-inf"))
        weights = self.dropout(scores.softmax(-1))
        mixed = torch.bmm(weights.flatten(0, 1), v).transpose(0, 1).contiguous()  # [Q, B * heads, V]
        return self.out_proj(mixed.view(len(mixed), batch, -1)), weights.sum(1) / self.nhead
