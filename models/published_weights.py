"""Published weights of backbones by name: fetched once, into the caches of torch and timm."""

from __future__ import annotations

import logging
import os
import urllib.error
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlparse

import torch
import torchvision
from torch import Tensor

from models.backbone import RESNETS, TIMM
from util import distributed
from util.errors import UserError
from util.logger import say
from util.optional import require

NAMES = ("imagenet", "swav")
"""What ``--backbone_weights`` takes beside files."""

AUTO, NONE = "auto", "none"
"""Its other words: ImageNet's weights if they can be had, and a random start."""

SWAV = "https://dl.fbaipublicfiles.com/deepcluster/swav_800ep_pretrain.pth.tar"
"""ResNet-50 after 800 epochs of SwAV (2006.09882), from which the authors' Siamese DETR starts."""


def called(weights: str) -> str:
    """What a report calls the weights of ``--backbone_weights``."""
    return "imagenet" if weights == AUTO else weights


class Unavailable(UserError):
    """Published weights cannot be had."""


def url_of(name: str, backbone: str) -> str:
    """Where the weights ``name`` of a ResNet are published; those of ImageNet are the first of torchvision's.

    Raises:
        Unavailable: there are none for this backbone.
    """
    if name == "swav" and backbone == "resnet50":
        return SWAV
    if name == "imagenet" and backbone in RESNETS:
        return torchvision.models.get_model_weights(backbone).IMAGENET1K_V1.url
    raise Unavailable(f"--backbone_weights {name}: there are none for --backbone {backbone}, only for resnet50")


def fetch(name: str, backbone: str) -> Path:
    """The file of published weights of a ResNet, in torch's cache; it is downloaded if it is not there. Collective.

    Raises:
        Unavailable: there are none for this backbone, or they cannot be downloaded; says which file to put where.
    """
    url = url_of(name, backbone)
    path = Path(torch.hub.get_dir()) / "checkpoints" / os.path.basename(urlparse(url).path)
    reason = "by the first process of this machine"
    if distributed.local_rank() == 0 and not path.is_file():
        say(f"downloading {url} to {path}")
        digits = path.stem.partition("-")[2]  # resnet50-0676ba61: of its SHA-256
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Into a temporary file, which is renamed when it is complete and has the digits that its name promises.
            torch.hub.download_url_to_file(url, str(path), hash_prefix=digits or None, progress=False)
        except (OSError, urllib.error.URLError, HTTPException, RuntimeError) as error:
            reason = _reason(error)
    distributed.barrier()
    if not path.is_file():
        raise Unavailable(
            f"--backbone_weights {name}: cannot download {url} ({reason}); download it elsewhere and put it to {path}, "
            "or name the file by --backbone_weights FILE"
        )
    return path


def fetch_timm(backbone: str) -> dict[str, Tensor]:
    """timm's own weights of ``timm:NAME``, through timm's cache.

    Raises:
        Unavailable: it publishes none, or they cannot be downloaded; says which file to name.
    """
    timm = require("timm", "timm", f"--backbone {backbone}")
    model = backbone.removeprefix(TIMM)
    config = timm.get_pretrained_cfg(model)
    source = f"https://huggingface.co/{config.hf_hub_id}" if config.hf_hub_id else config.url
    if not source:
        raise Unavailable(f"--backbone_weights imagenet: timm publishes none of {model}; name a file instead")
    say(f"weights of {model}: from {source}, or timm's cache")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it tells every attempt
    try:
        return timm.create_model(model, pretrained=True).state_dict()
    except Exception as error:  # whatever the libraries for downloading raise; the message says it
        raise Unavailable(
            f"--backbone_weights imagenet: cannot get {source} ({_reason(error)}); download its weights elsewhere "
            "(model.safetensors, or what the page has) and name the file by --backbone_weights FILE"
        ) from None


def _reason(error: Exception) -> str:
    reason = str(getattr(error, "reason", error)).strip().splitlines()
    return reason[0].partition(". ")[0][:150] if reason else type(error).__name__
