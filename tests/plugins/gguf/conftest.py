"""Small models in memory, and GGUF files built byte by byte, by code that is not the plugin's."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs
import numpy as np
import pytest

from edgekit.architectures import Model, ModelConfig, tensor_shapes
from edgekit.artifact import Artifact
from edgekit.tensor import Tensor
from edgekit.tokenizer import Tokenizer


@pytest.fixture
def artifact() -> Callable[..., Artifact]:
    """Makes an artifact of random weights: ``artifact(config, tokenizer)``."""

    def make(config: ModelConfig, tokenizer: Tokenizer | None = None, seed: int = 0) -> Artifact:
        rng = np.random.default_rng(seed)
        tensors = {
            name: Tensor.of(name, rng.standard_normal(shape, np.float32))
            for name, shape in tensor_shapes(config).items()
        }
        model = Model(config, tensors)
        return Artifact(Path("memory"), "memory", (), {}, tensors, lambda: model, lambda: tokenizer)

    return make


@pytest.fixture
def llama() -> ModelConfig:
    """Small sizes of the Llama family; other families are evolved from it."""
    return ModelConfig(
        family="llama",
        layers=2,
        width=64,
        heads=4,
        kv_heads=2,
        head_dim=16,
        ffn=96,
        vocab=24,
        context=128,
        norm_eps=1e-5,
        rope_theta=10000.0,
        attention_scale=0.25,
        rotary_dim=16,
    )


@attrs.define
class Builder:
    """A GGUF file, as hostile as wanted: every field can be set to what no writer would write."""

    version: int = 3
    magic: bytes = b"GGUF"
    pairs: list[bytes] = attrs.field(factory=list)
    infos: list[bytes] = attrs.field(factory=list)
    data: bytes = b""
    counts: tuple[int | None, int | None] = (None, None)
    alignment: int = 32

    @staticmethod
    def string(value: str | bytes, length: int | None = None) -> bytes:
        data = value.encode() if isinstance(value, str) else value
        return struct.pack("<Q", len(data) if length is None else length) + data

    def pair(self, key: str | bytes, kind: int, value: bytes) -> Builder:
        self.pairs.append(self.string(key) + struct.pack("<I", kind) + value)
        return self

    def tensor(self, name: str | bytes, dims: Sequence[int], kind: int = 0, offset: int = 0) -> Builder:
        """`dims` innermost first, as the file has them."""
        fields = struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)
        self.infos.append(self.string(name) + fields)
        return self

    def bytes(self) -> bytes:
        tensors, pairs = self.counts
        tensors = len(self.infos) if tensors is None else tensors
        pairs = len(self.pairs) if pairs is None else pairs
        header = self.magic + struct.pack("<IQQ", self.version, tensors, pairs)
        head = b"".join([header, *self.pairs, *self.infos])
        return head + bytes(-len(head) % self.alignment) + self.data

    def write(self, path: Path) -> Path:
        path.write_bytes(self.bytes())
        return path


@pytest.fixture
def builder() -> type[Builder]:
    return Builder
