"""Weights of backbones by name: from a server of the test, from the cache, and without either."""

import copy
import hashlib
import os
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from models import published_weights
from models.backbone_weights import start_backbone
from tests.gloo import run_processes
from tests.models.test_backbone_weights import LITE0, build, resnet18_state
from util.errors import CheckpointError, UserError

CLOSED = "http://127.0.0.1:9/resnet18-00000000.pth"  # the discard port: nobody listens


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "hub" / "checkpoints"


@pytest.fixture
def server(tmp_path):
    """Serves the folder tmp_path/web; returns its address."""
    (tmp_path / "web").mkdir()
    handler = partial(Quiet, directory=str(tmp_path / "web"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


def publish(folder, digits=None):
    """A ResNet-18 whose name ends in the digits of its SHA-256, or in those given."""
    state = resnet18_state()
    torch.save(state, folder / "new.pth")
    digits = digits or hashlib.sha256((folder / "new.pth").read_bytes()).hexdigest()[:8]
    return (folder / "new.pth").rename(folder / f"resnet18-{digits}.pth").name, state


def test_they_are_downloaded_once_and_loaded(tmp_path, cache, server, monkeypatch, capsys):
    name, state = publish(tmp_path / "web")
    monkeypatch.setattr(published_weights, "url_of", lambda *_: f"{server}/{name}")
    backbone = build("resnet18")
    start_backbone(backbone, "imagenet", "resnet18")
    assert torch.equal(backbone.body.state_dict()["layer4.1.conv2.weight"], state["layer4.1.conv2.weight"])
    assert f"downloading {server}/{name} to {cache / name}" in capsys.readouterr().out
    (tmp_path / "web" / name).unlink()
    start_backbone(build("resnet18"), "imagenet", "resnet18")  # from the cache
    assert "downloading" not in capsys.readouterr().out


def test_a_file_with_another_content_is_not_taken(tmp_path, cache, server, monkeypatch):
    name, _ = publish(tmp_path / "web", digits="01234567")
    monkeypatch.setattr(published_weights, "url_of", lambda *_: f"{server}/{name}")
    with pytest.raises(UserError, match="invalid hash value"):
        start_backbone(build("resnet18"), "imagenet", "resnet18")
    assert list(cache.iterdir()) == []


def test_offline_it_is_said_which_file_to_put_where(cache, monkeypatch):
    monkeypatch.setattr(published_weights, "url_of", lambda *_: CLOSED)
    with pytest.raises(UserError) as error:
        start_backbone(build("resnet18"), "imagenet", "resnet18")
    told = str(error.value)
    assert "\n" not in told
    assert f"cannot download {CLOSED} (" in told
    assert f"put it to {cache}/resnet18-00000000.pth, or name the file by --backbone_weights FILE" in told


def test_offline_timm_says_what_to_download(tmp_path, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError) as error:
        start_backbone(build(LITE0), "imagenet", LITE0)
    told = str(error.value)
    assert "\n" not in told
    assert "cannot get https://huggingface.co/timm/tf_efficientnet_lite0.in1k" in told
    assert "--backbone_weights FILE" in told


def test_auto_takes_them_from_the_cache_or_starts_random(tmp_path, cache, monkeypatch, capsys):
    name, state = publish(tmp_path)
    monkeypatch.setattr(published_weights, "url_of", lambda *_: f"http://127.0.0.1:9/{name}")
    backbone = build("resnet18")
    before = copy.deepcopy(backbone.state_dict())
    assert start_backbone(backbone, "auto", "resnet18") is None
    told = capsys.readouterr().out
    assert "warning: everything starts random" in told
    assert f"put it to {cache / name}" in told
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    cache.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).rename(cache / name)
    assert len(start_backbone(backbone, "auto", "resnet18").loaded) == len(before)
    assert torch.equal(backbone.body.state_dict()["layer4.1.conv2.weight"], state["layer4.1.conv2.weight"])
    assert "warning" not in capsys.readouterr().out


def _starts_without(rank: int, cache: str) -> bool:
    os.environ["TORCH_HOME"] = cache
    published_weights.url_of = lambda *_: CLOSED
    return start_backbone(build("resnet18"), "auto", "resnet18") is None


def test_all_processes_start_random_together(tmp_path):
    assert run_processes(_starts_without, str(tmp_path)) == [True, True]


def test_a_broken_file_in_the_cache_is_an_error(cache, monkeypatch):
    monkeypatch.setattr(published_weights, "url_of", lambda *_: CLOSED)
    cache.mkdir(parents=True)
    (cache / "resnet18-00000000.pth").write_bytes(b"not weights")
    with pytest.raises(CheckpointError, match=r"resnet18-00000000\.pth"):
        start_backbone(build("resnet18"), "auto", "resnet18")


def test_none_starts_random():
    assert start_backbone(build("resnet18"), "none", "resnet18") is None


def test_what_is_published():
    assert published_weights.url_of("imagenet", "resnet50").endswith("/resnet50-0676ba61.pth")  # DETR's
    assert published_weights.url_of("swav", "resnet50").endswith("/swav_800ep_pretrain.pth.tar")
    for name, backbone in (("swav", "resnet18"), ("imagenet", "resnet51")):
        with pytest.raises(UserError, match=f"--backbone_weights {name}: there are none for --backbone {backbone}"):
            published_weights.url_of(name, backbone)
    with pytest.raises(UserError, match="swav: there are none for --backbone timm:"):
        start_backbone(build(LITE0), "swav", LITE0)
