"""Converts between configurations of Hugging Face's detectors and the flags of this project."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from models import DETECTORS
from models.backbone import MULTI_SCALE_STRIDES, RESNETS, TIMM, backbone_normalization
from models.timm_body import maps_of_strides, strides_of_maps
from util.errors import CheckpointError, UserError
from util.records import HuggingFace

_RESNETS = {
    "resnet18": {"depths": [2, 2, 2, 2], "layer_type": "basic", "hidden_sizes": [64, 128, 256, 512]},
    "resnet34": {"depths": [3, 4, 6, 3], "layer_type": "basic", "hidden_sizes": [64, 128, 256, 512]},
    "resnet50": {"depths": [3, 4, 6, 3], "layer_type": "bottleneck", "hidden_sizes": [256, 512, 1024, 2048]},
    "resnet101": {"depths": [3, 4, 23, 3], "layer_type": "bottleneck", "hidden_sizes": [256, 512, 1024, 2048]},
}
_UNLABELLED = "N/A"
"""The name of outputs without a category, as in the published configurations of COCO."""


def is_supported(config: dict[str, Any]) -> bool:
    """Whether this project has the detector of a configuration."""
    return config.get("model_type") in list(_by_model_type())  # a list, because the value may not be hashable


def check_model_type(config: dict[str, Any], path: Path) -> None:
    """Raises CheckpointError, which names ``path``, if the configuration is of another kind of model."""
    if not is_supported(config):
        raise CheckpointError(
            f"{path}: a Hugging Face model of type {config.get('model_type')!r}; supported are "
            f"{', '.join(_by_model_type())}"
        )


def hints_of_config(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """The flags of a configuration that weights do not tell: nheads, dilation and the detector's own.

    Args:
        config: of a supported model type.
        path: its folder or file, for messages.

    Raises:
        CheckpointError: this project does not support the configuration.
    """
    theirs = _by_model_type()[config["model_type"]]
    heads, decoder_heads = (config.get(f"{part}_attention_heads", 8) for part in ("encoder", "decoder"))
    body = _section(config, "backbone_config") or {"backbone": config.get("backbone") or "resnet50"}
    name = str(body.get("backbone", body.get("model_type"))).partition(".")[0]
    is_resnet = name in (*RESNETS, "resnet") and not body.get("downsample_in_bottleneck")
    is_timm = body.get("model_type") == "timm_backbone"
    required = {
        "equal numbers of heads in encoder and decoder (see --nheads)": type(heads) is int
        and heads == decoder_heads > 0,
        "a ResNet or a backbone of timm (see --backbone)": is_resnet or is_timm,
        **{f"{key} {value}": config.get(key, value) == value for key, value in theirs.requires.items()},
    }
    for what, holds in required.items():
        if not holds:
            raise CheckpointError(f"{path}: its configuration is not supported; it must have {what}")
    strides = [section.get("output_stride") for section in (body, _section(config, "backbone_kwargs"))]
    hints = {"nheads": heads, "dilation": bool(config.get("dilation")) or 16 in strides, **theirs.hints(config)}
    if is_timm and not is_resnet:
        hints |= {"backbone": f"{TIMM}{body['backbone']}", "feature_stride": _stride_of_last_map(body)}
    return hints


def label_names(config: dict[str, Any]) -> dict[int, str]:
    """Names of the labels, by label; empty if the configuration has no valid names."""
    names = _section(config, "id2label")
    if not all(str(label).isdecimal() and isinstance(name, str) for label, name in names.items()):
        return {}
    return {int(label): name for label, name in names.items()}


def make_config(args: dict[str, Any], categories: list[dict[str, Any]] | None, num_labels: int) -> dict[str, Any]:
    """The configuration of a detector.

    Args:
        args: the architecture.
        categories: of the labels; None: unknown.
        num_labels: outputs of the class head, "no object" not counted.

    Raises:
        UserError: transformers does not have the detector, or its backbone needs timm, which is not installed.
    """
    theirs = of_detector(args["detr"])
    name_of_label = {category["label"]: category["name"] for category in categories or []}
    unnamed = _UNLABELLED if categories else "LABEL_{}"
    names = {label: name_of_label.get(label, unnamed.format(label)) for label in range(num_labels)}
    config = {
        "model_type": theirs.model_type,
        "architectures": [f"{theirs.class_name}ForObjectDetection"],
        "backbone_config": _backbone_config(args, sees_levels=theirs.sees_levels(args)),
        "use_timm_backbone": is_of_timm(args),
        "use_pretrained_backbone": False,
        "d_model": args["hidden_dim"],
        "encoder_layers": args["enc_layers"],
        "decoder_layers": args["dec_layers"],
        "encoder_ffn_dim": args["dim_feedforward"],
        "decoder_ffn_dim": args["dim_feedforward"],
        "encoder_attention_heads": args["nheads"],
        "decoder_attention_heads": args["nheads"],
        "num_queries": args["num_queries"],
        "position_embedding_type": args["position_embedding"],
        "dilation": args["dilation"],
        "id2label": {str(label): name for label, name in names.items()},
        "label2id": {name: label for label, name in names.items()},
    }
    return theirs.config(args, config)


def make_preprocessor_config(args: dict[str, Any], eval_size: tuple[int, int]) -> dict[str, Any]:
    """How images are prepared at evaluation; ``eval_size`` is (short side, limit of the long side) in pixels."""
    theirs = of_detector(args["detr"])
    mean, std = backbone_normalization(args["backbone"])
    return {
        "image_processor_type": f"{theirs.image_processor or theirs.class_name}ImageProcessor",
        "format": "coco_detection",
        "do_resize": True,
        "size": {"shortest_edge": eval_size[0], "longest_edge": eval_size[1]},
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
        "do_pad": True,
    }


def eval_sizes(preprocessor: dict[str, Any]) -> tuple[Any, Any]:
    """Short side and limit of the long side of such a configuration, old forms included; the values may be anything."""
    size = preprocessor.get("size")
    if isinstance(size, dict):
        return size.get("shortest_edge"), size.get("longest_edge")
    return size, preprocessor.get("max_size")


def of_detector(detr: str) -> HuggingFace:
    """The detector in transformers; raises UserError if transformers does not have it."""
    theirs = DETECTORS[detr].hugging_face
    if theirs is None:
        raise UserError(f"--to hf: transformers has no detector of --detr {detr}")
    return theirs


def _by_model_type() -> dict[str, HuggingFace]:
    known = [record.hugging_face for record in DETECTORS.values() if record.hugging_face]
    return {theirs.model_type: theirs for theirs in known}


def is_of_timm(args: dict[str, Any]) -> bool:
    """Whether transformers needs timm for the backbone; its own backbones are only plain ResNets."""
    return args["dilation"] or args["backbone"].startswith(TIMM)


def _backbone_config(args: dict[str, Any], *, sees_levels: bool) -> dict[str, Any]:
    """transformers' own ResNet, or a model of timm."""
    if not is_of_timm(args):
        stages = ["stage2", "stage3", "stage4"] if sees_levels else ["stage4"]
        return {"model_type": "resnet", "embedding_size": 64, "out_features": stages, **_RESNETS[args["backbone"]]}
    name = args["backbone"].removeprefix(TIMM)
    config = {"model_type": "timm_backbone", "backbone": name, "features_only": True, "use_pretrained_backbone": False}
    if args["dilation"]:
        return {**config, "output_stride": 16, "out_indices": [2, 3, 4] if sees_levels else [4]}
    strides = list(MULTI_SCALE_STRIDES) if sees_levels else [args["feature_stride"] or 32]
    # timm freezes the norms: the way of transformers would drop the activation in many of timm's norms.
    return {**config, "out_indices": maps_of_strides(name, strides), "freeze_batch_norm_2d": True}


def _stride_of_last_map(body: dict[str, Any]) -> int | None:
    """The stride of the map that a backbone of timm returns; None: it returns several."""
    indices = body.get("out_indices") or [-1]
    return strides_of_maps(body["backbone"])[indices[-1]] if len(indices) == 1 else None


def _section(config: dict[str, Any], name: str) -> dict[str, Any]:
    section = config.get(name)
    return section if isinstance(section, dict) else {}
