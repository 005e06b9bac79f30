"""The tensors of mlx-lm's models: names and shapes that differ from Hugging Face's, family by family.

mlx-lm changes a checkpoint when it loads one (`sanitize`), and saves what its module holds:

    what                                  Hugging Face                      mlx-lm
    experts                               a matrix each; or gate and up     gate_proj, up_proj, down_proj of a module,
                                          of all in one tensor              each [experts, out, in]
    kernels of short convolutions         [channels, 1, taps]               [channels, taps, 1]
    norms of Qwen 3 Next and Qwen 3.5     without the one that is added     as they multiply
    Granite 4 without experts             gate and up in one matrix         mlp.gate_proj, up_proj, down_proj
    LFM2 with experts                     w1, w3, w2                        gate_proj, up_proj, down_proj
    Nemotron-H with experts               up_proj, down_proj                fc1, fc2
    Qwen 3.5, Llama 4                     model.…                           language_model.model.…

All else has Hugging Face's names and values. Source: mlx-lm 0.32.2, ``models/<model type>.py``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import attrs

from edgekit.architectures import FAMILIES, ModelConfig
from edgekit.architectures.links import Link, Tensors, halves, one, reshaped
from edgekit.tensor import AnyTensor

#: The module of a layer that holds the stacks of its experts, after ``model.layers.N.``.
EXPERTS = {
    "gemma4": "experts.switch_glu",
    "gpt_oss": "mlp.experts",
    "granite4_moe": "block_sparse_moe.switch_mlp",
    "granitemoehybrid": "block_sparse_moe.switch_mlp",
    "lfm2_moe": "feed_forward.switch_mlp",
    "llama4_text": "feed_forward.experts",
    "mixtral": "block_sparse_moe.switch_mlp",
    "nemotron_h_moe": "mixer.switch_mlp",
    "olmoe": "mlp.switch_mlp",
    "phimoe": "block_sparse_moe.switch_mlp",
    "qwen3_5_moe": "mlp.switch_mlp",
    "qwen3_moe": "mlp.switch_mlp",
    "qwen3_next": "mlp.switch_mlp",
}
_PROJECTIONS = {"ffn_gate": "gate_proj", "ffn_up": "up_proj", "ffn_down": "down_proj"}
_GATELESS = {"ffn_up": "fc1", "ffn_down": "fc2"}
_KERNELS = ("conv1d.weight", "conv.conv.weight")
_RENAMED = {"w1.weight": "gate_proj.weight", "w2.weight": "down_proj.weight", "w3.weight": "up_proj.weight"}
_WHOLE_NORMS = ("qwen3_next", "qwen3_5", "qwen3_5_moe")
_PREFIXED = ("qwen3_5", "qwen3_5_moe", "llama4_text")
#: Ends of the names of matrices that mlx-lm's classes hold outside of any layer that it quantizes, by family.
_FLOATS = {"nemotron_h_moe": ("mixer.gate.weight",)}


def prefix_of(config: ModelConfig) -> str:
    """Return the prefix of every tensor name in the model's files."""
    return "language_model." if config.family in _PREFIXED else ""


def quantizable(config: ModelConfig, name: str) -> bool:
    """Return whether mlx-lm's class takes the tensor of that name quantized."""
    return not name.endswith(_FLOATS.get(config.family, ()))


def mlx_links(config: ModelConfig, names: Collection[str] = ()) -> Sequence[Link]:
    """Return links from canonical tensors to mlx-lm's, in the model's order; names without `prefix_of`.

    Args:
        config: of a family that mlx-lm has.
        names: as `edgekit.architectures.Family.links` has it; mlx-lm writes one form.
    """
    links: list[Link] = []
    for link in FAMILIES[config.family].links(config, ()):
        links += _of(config, link)
    return links


def _of(config: ModelConfig, link: Link) -> list[Link]:
    """Return mlx-lm's links for the tensors of one of Hugging Face's."""
    role = link.canonical[0].split(".", 2)[-1]
    if role == "ffn_gate_up_exps.weight":
        return [_apart(config, link)]
    if "_exps.weight" in role or role.endswith("_exps.bias"):
        return [one(name, _stack(config, name)) for name in link.canonical]
    if config.family in ("granitemoehybrid", "granite4_dense") and role.partition(".")[0] in _PROJECTIONS:
        return [one(name, _projection(name, "mlp")) for name in link.canonical]
    if link.hf[0].endswith(_KERNELS):
        return [_turned(link)]
    if config.family in _WHOLE_NORMS and link.canonical[0].endswith("_norm.weight"):
        return [one(link.canonical[0], link.hf[0])]
    if config.family == "lfm2_moe":
        return [attrs.evolve(link, hf=tuple(map(_renamed, link.hf)))]
    return [link]


def _stack(config: ModelConfig, name: str) -> str:
    _, layer, stem, kind = name.replace("_exps.", ".").split(".")
    if config.family == "nemotron_h_moe":
        return f"backbone.layers.{layer}.{EXPERTS[config.family]}.{_GATELESS[stem]}.{kind}"
    return _projection(name.replace("_exps.", "."), EXPERTS[config.family])


def _apart(config: ModelConfig, link: Link) -> Link:
    """Return the link of a stack of gates and ups, which mlx-lm has as two."""
    (whole,) = link.canonical
    names = (_stack(config, whole.replace("gate_up", "gate")), _stack(config, whole.replace("gate_up", "up")))
    both = halves(names, whole, names)
    return Link((whole,), names, both.write, both.read, (whole, whole), (whole,))


def _projection(name: str, module: str) -> str:
    """Return the name of ``blk.0.ffn_up.weight`` in a module of its layer."""
    _, layer, stem, kind = name.split(".")
    return f"model.layers.{layer}.{module}.{_PROJECTIONS[stem]}.{kind}"


def _renamed(name: str) -> str:
    return next((name.removesuffix(old) + new for old, new in _RENAMED.items() if name.endswith(old)), name)


def _turned(link: Link) -> Link:
    """Return the link of a kernel whose last two dimensions, one of them 1, mlx-lm exchanges."""

    def read(tensors: Tensors) -> Tensors:
        return link.read((_exchanged(tensors[0]),))

    def write(tensors: Tensors) -> Tensors:
        return (_exchanged(link.write(tensors)[0]),)

    return attrs.evolve(link, read=read, write=write)


def _exchanged(tensor: AnyTensor) -> AnyTensor:
    channels, a, b = tensor.shape
    return reshaped(tensor, (channels, b, a))


__all__ = ["EXPERTS", "mlx_links", "prefix_of", "quantizable"]
