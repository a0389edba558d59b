"""What a small file may ask for."""

import json

import pytest
import torch

from models.checkpoints.files import PREPROCESSOR
from models.checkpoints.foreign import read_checkpoint
from tests.models.public_layouts import DEFORMABLE, DETR_R50
from util.errors import CheckpointError


@pytest.mark.parametrize("layout", [DETR_R50, DEFORMABLE], ids=["vanilla", "deformable"])
@pytest.mark.parametrize("number", ["99999999", "9" * 5000, "007"])
def test_a_layer_number_does_not_make_layers(tmp_path, layout, number):
    weights = {name: torch.zeros(1).expand(shape) for name, shape in layout.items()}
    name = "transformer.decoder.layers.{}.norm1.weight"
    weights[name.format(number)] = weights.pop(name.format(5))
    torch.save({"model": weights}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth: "):
        read_checkpoint(tmp_path / "a.pth", {})


def test_a_preprocessor_does_not_decide_the_memory(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.DetrConfig(
        use_timm_backbone=False, backbone_config=transformers.ResNetConfig(out_features=["stage4"]), backbone=None,
        use_pretrained_backbone=False, encoder_layers=1, decoder_layers=1, d_model=32, encoder_ffn_dim=8,
        decoder_ffn_dim=8, encoder_attention_heads=4, decoder_attention_heads=4,
    )  # fmt: skip
    transformers.DetrForObjectDetection(config).save_pretrained(tmp_path)
    for edge, is_taken in ((4096, True), (50_000, False)):
        size = {"shortest_edge": edge, "longest_edge": edge}
        (tmp_path / PREPROCESSOR).write_text(json.dumps({"size": size}))
        if is_taken:
            assert read_checkpoint(tmp_path, {})[0]["args"]["eval_size"] == edge
        else:
            with pytest.raises(CheckpointError, match=r"images with a side of 50000 pixels, .* at most 4096"):
                read_checkpoint(tmp_path, {})


@pytest.mark.parametrize("kind", [["detr"], {}, None, 7])
def test_a_model_type_of_any_kind(tmp_path, kind):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(CheckpointError, match="a Hugging Face model of type"):
        read_checkpoint(tmp_path, {})
