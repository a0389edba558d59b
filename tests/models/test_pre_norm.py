"""Both orders of the norms against a Transformer written by hand, in float64 with positions, padding and query mask."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from models.conditional_transformer import build_conditional_transformer, sine_embedding
from models.transformer import Transformer, build_transformer
from tests.models.detectors import randomize, small_config

WIDTH, HEADS, LAYERS, QUERIES = small_config().d_model, small_config().nhead, small_config().num_decoder_layers, 5
BUILDERS = {"vanilla": build_transformer, "conditional": build_conditional_transformer}


class ByHand:
    """DETR's Transformer (github.com/facebookresearch/detr, models/transformer.py), every case written out.

    ``forward_post`` and ``forward_pre`` there; the conditional attention is from equations 1 to 8 of 2108.06152.
    """

    def __init__(self, transformer: Transformer, conditional: bool, pre_norm: bool) -> None:
        self.p = dict(transformer.named_parameters())
        self.conditional = conditional
        self.pre_norm = pre_norm

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.p[f"{name}.weight"].T + self.p[f"{name}.bias"]

    def norm(self, name: str, x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return x * self.p[f"{name}.weight"] + self.p[f"{name}.bias"]

    def mlp(self, name: str, x: Tensor) -> Tensor:
        return self.linear(f"{name}.layers.1", self.linear(f"{name}.layers.0", x).relu())

    def feed_forward(self, name: str, x: Tensor) -> Tensor:
        return self.linear(f"{name}.linear2", self.linear(f"{name}.linear1", x).relu())

    def softmax_attention(self, name: str, q: list[Tensor], k: list[Tensor], v: Tensor, blocked: Tensor) -> Tensor:
        """Dot products of all parts of q and k add up; blocked [B, Q, S] or [Q, S]."""
        heads = []
        for head in range(HEADS):
            part = slice(head * WIDTH // HEADS, (head + 1) * WIDTH // HEADS)
            products = sum(a[..., part] @ b[..., part].mT for a, b in zip(q, k, strict=True))
            scores = products / math.sqrt(len(q) * WIDTH // HEADS)
            scores = torch.where(blocked, -math.inf, scores)
            heads.append(scores.softmax(-1) @ v[..., part])
        return self.linear(f"{name}.out_proj", torch.cat(heads, -1))

    def attention(self, name: str, q: Tensor, k: Tensor, v: Tensor, blocked: Tensor) -> Tensor:
        weights, biases = self.p[f"{name}.in_proj_weight"], self.p[f"{name}.in_proj_bias"]
        q, k, v = (
            x @ weights[i * WIDTH : (i + 1) * WIDTH].T + biases[i * WIDTH : (i + 1) * WIDTH]
            for i, x in enumerate([q, k, v])
        )
        return self.softmax_attention(name, [q], [k], v, blocked)

    def self_attention(self, name: str, x: Tensor, query_pos: Tensor, blocked: Tensor) -> Tensor:
        if not self.conditional:
            return self.attention(f"{name}.self_attn", x + query_pos, x + query_pos, x, blocked)
        q = self.linear(f"{name}.sa_qcontent_proj", x) + self.linear(f"{name}.sa_qpos_proj", query_pos)
        k = self.linear(f"{name}.sa_kcontent_proj", x) + self.linear(f"{name}.sa_kpos_proj", query_pos)
        return self.softmax_attention(f"{name}.self_attn", [q], [k], self.linear(f"{name}.sa_v_proj", x), blocked)

    def cross_attention(
        self, name: str, x: Tensor, query_pos: Tensor, query_sine: Tensor, memory: Tensor, pos: Tensor, blocked: Tensor
    ) -> Tensor:
        if not self.conditional:
            return self.attention(f"{name}.multihead_attn", x + query_pos, memory + pos, memory, blocked)
        q, k = self.linear(f"{name}.ca_qcontent_proj", x), self.linear(f"{name}.ca_kcontent_proj", memory)
        q_pos, k_pos = self.linear(f"{name}.ca_qpos_sine_proj", query_sine), self.linear(f"{name}.ca_kpos_proj", pos)
        if name.endswith(".0"):
            q, k = q + self.linear(f"{name}.ca_qpos_proj", query_pos), k + k_pos
        v = self.linear(f"{name}.ca_v_proj", memory)
        return self.softmax_attention(f"{name}.cross_attn", [q, q_pos], [k, k_pos], v, blocked)

    def encode(self, src: Tensor, pos: Tensor, padding: Tensor) -> Tensor:
        blocked = padding[:, None].expand(-1, src.shape[1], -1)
        for layer in [f"encoder.layers.{index}" for index in range(LAYERS)]:
            if self.pre_norm:
                src2 = self.norm(f"{layer}.norm1", src)
                src = src + self.attention(f"{layer}.self_attn", src2 + pos, src2 + pos, src2, blocked)
                src = src + self.feed_forward(layer, self.norm(f"{layer}.norm2", src))
            else:
                src2 = self.attention(f"{layer}.self_attn", src + pos, src + pos, src, blocked)
                src = self.norm(f"{layer}.norm1", src + src2)
                src = self.norm(f"{layer}.norm2", src + self.feed_forward(layer, src))
        return self.norm("encoder.norm", src) if self.pre_norm else src

    def decode(
        self, memory: Tensor, pos: Tensor, padding: Tensor, query_pos: Tensor, query_mask: Tensor
    ) -> list[Tensor]:
        blocked = padding[:, None].expand(-1, query_pos.shape[1], -1)
        points = self.mlp("decoder.ref_point_head", query_pos).sigmoid() if self.conditional else None
        tgt = torch.zeros_like(query_pos)
        outputs = []
        for index in range(LAYERS):
            layer = f"decoder.layers.{index}"
            query_sine = sine_embedding(points, WIDTH) if self.conditional else None
            if self.conditional and index > 0:
                query_sine = query_sine * self.mlp("decoder.query_scale", tgt)
            rest = (query_pos, query_sine, memory, pos, blocked)
            if self.pre_norm:
                tgt = tgt + self.self_attention(layer, self.norm(f"{layer}.norm1", tgt), query_pos, query_mask)
                tgt = tgt + self.cross_attention(layer, self.norm(f"{layer}.norm2", tgt), *rest)
                tgt = tgt + self.feed_forward(layer, self.norm(f"{layer}.norm3", tgt))
            else:
                tgt = self.norm(f"{layer}.norm1", tgt + self.self_attention(layer, tgt, query_pos, query_mask))
                tgt = self.norm(f"{layer}.norm2", tgt + self.cross_attention(layer, tgt, *rest))
                tgt = self.norm(f"{layer}.norm3", tgt + self.feed_forward(layer, tgt))
            outputs.append(self.norm("decoder.norm", tgt))
        return outputs


@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("detr", BUILDERS)
def test_outputs_and_gradients_equal_those_by_hand(detr: str, pre_norm: bool) -> None:
    transformer = BUILDERS[detr](small_config(pre_norm=pre_norm)).double()
    randomize(transformer)
    level, pos = torch.randn(2, 2, WIDTH, 3, 4, dtype=torch.float64)
    mask = torch.zeros(2, 3, 4, dtype=torch.bool)
    mask[1, 2:] = mask[1, :, 3:] = True
    level = level * ~mask[:, None]
    queries = torch.randn(2, QUERIES, WIDTH, dtype=torch.float64)
    query_mask = torch.tensor([[0, 0, 0, 1, 1], [0, 0, 0, 1, 1], [0, 0, 0, 1, 1], [1, 1, 1, 0, 0], [1, 1, 0, 0, 1]]) > 0
    inputs = [x.requires_grad_() for x in (level, pos, queries)]

    memory = transformer.encode([level], [mask], [pos])
    decoded = transformer.decode(memory, queries, query_mask)
    by_hand = ByHand(transformer, detr == "conditional", pre_norm)
    src, positions = (x.flatten(2).mT for x in (level, pos))
    their_memory = by_hand.encode(src, positions, mask.flatten(1))
    expected = torch.stack(by_hand.decode(their_memory, positions, mask.flatten(1), queries, query_mask))

    valid = ~mask.flatten(1)
    torch.testing.assert_close(memory.tokens[valid], their_memory[valid], atol=1e-10, rtol=0)
    torch.testing.assert_close(decoded.hidden, expected, atol=1e-10, rtol=0)
    weights = torch.randn_like(expected)
    leaves = [*inputs, *transformer.parameters()]
    ours, theirs = (
        torch.autograd.grad((hidden * weights).sum(), leaves, allow_unused=True)
        for hidden in (decoded.hidden, expected)
    )
    for one, other in zip(ours, theirs, strict=True):
        assert one is not None
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("build", BUILDERS.values())
def test_the_final_norm_of_the_encoder_is_all_that_pre_norm_adds(build) -> None:
    post, pre = (build(small_config(pre_norm=pre_norm)).state_dict() for pre_norm in (False, True))
    assert set(pre) - set(post) == {"encoder.norm.weight", "encoder.norm.bias"}
    assert set(post) <= set(pre)
