"""Random changes of files, drawn by seed: of bytes, and of values in JSON files and checkpoints."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import torch

ODD_TEXTS = ["", "a\0b", "\ud800", "x" * 5000, "../../etc/passwd", "/dev/zero", "%s%n", "\u202e", "1e999", "nan"]
ODD_NUMBERS = [0, -1, 1, 2**31, 2**63, 10**30, -(2**63), 1e308, float("inf"), float("nan"), 0.5, True, False]


def change_bytes(content: bytes, rng: random.Random) -> bytes:
    """``content`` with some bytes changed, lost, doubled or added."""
    data = bytearray(content)
    kind = rng.choice(["flip", "flips", "cut", "lose", "double", "insert", "zeros", "empty", "noise"])
    start = rng.randrange(len(data) + 1)
    end = min(len(data), start + rng.choice([1, 4, 64, 1024]))
    if kind in ("flip", "flips"):
        for _ in range(1 if kind == "flip" else rng.randrange(2, 40)):
            if data:
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del data[start:]
    elif kind == "lose":
        del data[start:end]
    elif kind == "double":
        data[start:start] = data[start:end]
    elif kind == "insert":
        data[start:start] = rng.randbytes(end - start + 1)
    elif kind == "zeros":
        data[start:end] = bytes(end - start)
    elif kind == "empty":
        data = bytearray()
    else:
        data = bytearray(rng.randbytes(rng.randrange(1, 2000)))
    return bytes(data)


def change_json(content: bytes, rng: random.Random) -> bytes:
    """A JSON text with one value or key replaced."""
    if rng.random() < 0.05:
        depth = rng.choice([500, 900, 10**5])
        return b"[" * depth + b"]" * depth
    value = json.loads(content)
    change_value(value, rng, odd_json(rng))
    return json.dumps(value).encode()


def change_text(content: bytes, rng: random.Random) -> bytes:
    """A text with one of its words, or numbers, replaced by something else."""
    text = content.decode(errors="replace")
    words = list(re.finditer(r"[\w.-]+", text))
    if not words:
        return content
    word = rng.choice(words)
    by = rng.choice([*ODD_TEXTS, *map(str, ODD_NUMBERS), "", "- a", "&a [*a]", "{" * 500, "<" * 9, "7 " * 40])
    return (text[: word.start()] + by + text[word.end() :]).encode(errors="surrogatepass")


def odd_json(rng: random.Random) -> Any:
    """A value that is rare in real files."""
    deep: Any = {}
    for _ in range(rng.choice([5, 150])):  # pickle recurses too
        deep = {"a": [deep]}
    return rng.choice([None, rng.choice(ODD_TEXTS), rng.choice(ODD_NUMBERS), [], {}, [[]], deep, [None], {"a": 1}])


def change_value(value: Any, rng: random.Random, by: Any) -> None:
    """Replace, remove or rename one entry of nested containers, in place."""
    places = list(_places(value))
    if not places:
        return
    # Choose the container first: else the hundreds of weights would be chosen almost always.
    container = rng.choice(list({id(container): container for container, _ in places}.values()))
    key = rng.choice([key for inside, key in places if inside is container])
    kind = rng.choice(["replace", "replace", "replace", "remove", "rename", "repeat"])
    if kind == "remove":
        del container[key]
    elif kind == "rename" and isinstance(container, dict):
        container[rng.choice([*ODD_TEXTS, f"{key}x"])] = container.pop(key)
    elif kind == "repeat" and isinstance(container, list):
        container.extend([container[key]] * rng.choice([1, 50]))
    else:
        container[key] = by


def _places(value: Any) -> list[tuple[Any, Any]]:
    places, waiting, seen = [], [value], set()
    while waiting:
        container = waiting.pop()
        if id(container) in seen:  # containers may be shared: there may be 2^60 paths to one of them
            continue
        seen.add(id(container))
        entries = container.items() if isinstance(container, dict) else enumerate(container)
        for key, inner in entries:
            places.append((container, key))
            if isinstance(inner, dict | list):
                waiting.append(inner)
    return places


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple:
        return open, (str(self.proof), "w")


def odd_value(rng: random.Random, proof: Path) -> Any:
    """A value that nobody expects in a checkpoint."""
    shared: Any = []
    for _ in range(60):
        shared = [shared, shared]
    return rng.choice([
        torch.zeros(3, 3).to_sparse(), torch.zeros(3, device="meta"), torch.zeros(1).expand(10**6, 10**5),
        torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8), torch.zeros(3, dtype=torch.complex64),
        torch.zeros(3, dtype=torch.int64), torch.zeros(()), torch.zeros(0), torch.full((4,), float("nan")),
        torch.zeros(2, 2, 2, 2), torch.zeros(3, dtype=torch.bool), torch.zeros(3, dtype=torch.bfloat16),
        torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]), Evil(proof), shared, (1, 2), {1: 2}, b"bytes",
        {"transformer.decoder.layers.99999999.norm1.weight": torch.zeros(32)}, odd_json(rng), odd_json(rng),
    ])  # fmt: skip


def change_checkpoint(path: Path, rng: random.Random, proof: Path) -> None:
    """Change a value in a file of ``torch.save`` and correct its checksums."""
    content = torch.load(path, weights_only=False)
    for by in [odd_value(rng, proof) for _ in range(rng.choice([1, 1, 3]))]:
        change_value(content, rng, by)
    torch.save(content, path, _use_new_zipfile_serialization=rng.random() < 0.9)
