"""A faster copy of a frozen backbone: batch norms folded into convolutions, channels last."""

from __future__ import annotations

import copy
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode
from torchvision.ops import FrozenBatchNorm2d

from models.backbone import Backbone
from models.fast.normed_conv import replace_by_plain


def fold_frozen_batch_norms(backbone: Backbone) -> Backbone:
    """A copy for inference: the same maps within rounding, with one pass over memory less per batch norm.

    A frozen batch norm scales and shifts each channel, and the convolution before it can do the same. This folds every
    norm that is the only reader of a convolution's output. One forward pass over a small image finds these norms,
    because the Python code of a model can do anything. All other norms stay.

    The copy is in evaluation mode, requires no gradients, and computes and returns its maps in the channels-last memory
    format. Its state dict does not have the folded norms. Later changes of ``backbone`` do not change the copy.

    Args:
        backbone: with frozen batch norms and loaded weights; it is not changed.
    """
    folded = copy.deepcopy(backbone).requires_grad_(False).eval()
    replace_by_plain(folded.body)
    for convolution, norm in _find_pairs(folded.body):
        _fold(convolution, norm)
        _replace(folded.body, norm, _what_follows(norm))
    return folded.to(memory_format=torch.channels_last)


def frozen_parts(method: nn.Module) -> list[nn.Module]:
    """The modules of a method that are never trained nor saved: a pretext task calls them ``frozen_...``."""
    return [module for name, module in method.named_children() if name.startswith("frozen_")]


def hold_weights_in(module: nn.Module, dtype: torch.dtype) -> None:
    """Convert the weights of all convolutions and linear layers to 16 bits, in place, for autocast to ``dtype``.

    Autocast would convert the same weights in every step; it keeps those alone that require a gradient. All numbers
    stay the same. Afterwards the module works under this autocast alone.
    """
    for layer in module.modules():
        if _is_plain_convolution(layer) or type(layer) is nn.Linear:
            layer.to(dtype)


def _find_pairs(body: nn.Module) -> list[tuple[nn.Conv2d, nn.Module]]:
    """Pairs of a convolution and the only norm that reads its output, both called once per forward pass."""
    watch = _Watch()
    handles = [handle for module in body.modules() for handle in watch.attach(module)]
    weight = next(body.parameters())
    with torch.no_grad(), watch:
        maps = body(torch.zeros(1, 3, 64, 64, device=weight.device, dtype=weight.dtype))
    for handle in handles:
        handle.remove()
    watch.count_readers(maps)
    return [
        (watch.maker[tensor], norm)
        for norm, tensor in watch.norm_inputs
        if tensor in watch.maker
        and watch.readers[tensor] == 1
        and watch.calls[norm] == 1
        and watch.calls[watch.maker[tensor]] == 1
    ]


class _Watch(TorchFunctionMode):
    """Who makes and who reads each tensor during a forward pass.

    Attributes:
        maker: tensor -> the convolution that returned it.
        readers: tensor -> number of operations that read it; a whole norm counts as one operation.
        norm_inputs: for each call of a norm, the norm and the tensor that it read.
        calls: module -> number of its calls.
    """

    def __init__(self) -> None:
        super().__init__()
        self.maker: dict[Tensor, nn.Conv2d] = {}  # keeps the tensors alive, so that no two have the same id
        self.readers: Counter[Tensor] = Counter()
        self.norm_inputs: list[tuple[nn.Module, Tensor]] = []
        self.calls: Counter[nn.Module] = Counter()
        self.inside_norm = False

    def attach(self, module: nn.Module) -> Iterator[torch.utils.hooks.RemovableHandle]:
        """Hook a convolution or a norm."""
        if _is_plain_convolution(module):
            yield module.register_forward_hook(self._convolution_done)
        elif _is_frozen_norm(module):
            yield module.register_forward_pre_hook(self._norm_begins)
            yield module.register_forward_hook(self._norm_done)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.inside_norm:
            self.count_readers([args, kwargs])
        return func(*args, **(kwargs or {}))

    def count_readers(self, value: Any) -> None:
        """Count one reader for every tensor in nested containers."""
        if isinstance(value, Tensor):
            self.readers[value] += 1
        elif isinstance(value, dict | list | tuple):
            for item in value.values() if isinstance(value, dict) else value:
                self.count_readers(item)

    def _convolution_done(self, convolution: nn.Conv2d, inputs: tuple[Tensor], output: Tensor) -> None:
        self.maker[output] = convolution
        self.calls[convolution] += 1

    def _norm_begins(self, norm: nn.Module, inputs: tuple[Tensor]) -> None:
        self.inside_norm = True
        self.count_readers(inputs)
        self.norm_inputs.append((norm, inputs[0]))
        self.calls[norm] += 1

    def _norm_done(self, norm: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        self.inside_norm = False


def _is_frozen_norm(module: nn.Module) -> bool:
    """Torchvision's frozen batch norm, or timm's, which includes an activation."""
    return isinstance(module, (FrozenBatchNorm2d, _timm_class("FrozenBatchNormAct2d")))


def _is_plain_convolution(module: nn.Module) -> bool:
    """Not a subclass that computes its weight (weight standardisation); timm's Conv2dSame only pads."""
    return type(module) is nn.Conv2d or isinstance(module, _timm_class("Conv2dSame"))


def _timm_class(name: str) -> type | tuple[()]:
    """A class of ``timm.layers``; ``()`` if timm is not imported, so that ``isinstance`` is false."""
    return getattr(sys.modules.get("timm.layers"), name, ())


@torch.no_grad()
def _fold(convolution: nn.Conv2d, norm: nn.Module) -> None:
    """Change weight and bias of ``convolution`` so that it includes ``norm``."""
    weight, bias = fuse_conv_bn_weights(
        convolution.weight,
        convolution.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
    )
    convolution.weight = nn.Parameter(weight.detach(), requires_grad=False)
    convolution.bias = nn.Parameter(bias.detach(), requires_grad=False)


def _what_follows(norm: nn.Module) -> nn.Module:
    """The dropout and activation in timm's norm; nothing in torchvision's."""
    if isinstance(norm, FrozenBatchNorm2d):
        return nn.Identity()
    return nn.Sequential(norm.drop, norm.act)


def _replace(body: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for module in list(body.modules()):
        for name, child in module.named_children():
            if child is old:
                setattr(module, name, new)
