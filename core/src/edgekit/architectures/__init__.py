"""Model families: the roles of their tensors, and the forward pass in numpy.

Canonical tensor names are GGUF's (``token_embd.weight``, ``blk.0.attn_q.weight``, ``output_norm.weight`` …),
because they are short, documented and the ones that recipes are stated in. Values are canonical too: Q and K
rows in Hugging Face's order (rotary halves apart), norm weights as they multiply (Gemma's with their one added).
"""

from __future__ import annotations

from edgekit.architectures._config import FAMILIES, Family, Model, ModelConfig, RopeScaling, check_config
from edgekit.architectures._tensors import check_tensors, tensor_shapes

__all__ = [
    "FAMILIES",
    "Family",
    "Model",
    "ModelConfig",
    "RopeScaling",
    "check_config",
    "check_tensors",
    "tensor_shapes",
]
