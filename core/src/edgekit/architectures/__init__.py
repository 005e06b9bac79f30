"""Model families: the roles of their tensors, and the forward pass in numpy.

Canonical tensor names are GGUF's (``token_embd.weight``, ``blk.0.attn_q.weight``, ``output_norm.weight`` …),
because they are short, documented and the ones that recipes are stated in. Values are canonical too: Q and K
rows in Hugging Face's order (rotary halves apart), norm weights as they multiply (Gemma's with their one added).
"""

from __future__ import annotations

from edgekit.architectures._config import (
    Model,
    ModelConfig,
    Pooling,
    RopeScaling,
    check_config,
    integer_field,
    number_field,
    settings,
)
from edgekit.architectures._families import FAMILIES
from edgekit.architectures._family import Family, Gguf, Key, Setting
from edgekit.architectures._hf_rope import RopeDialect
from edgekit.architectures._section import Section
from edgekit.architectures._tensors import check_tensors, tensor_shapes

__all__ = [
    "FAMILIES",
    "Family",
    "Gguf",
    "Key",
    "Model",
    "ModelConfig",
    "Pooling",
    "RopeDialect",
    "RopeScaling",
    "Section",
    "Setting",
    "check_config",
    "check_tensors",
    "integer_field",
    "number_field",
    "settings",
    "tensor_shapes",
]
