"""The tensors of mlx-lm's models: names and shapes that differ from Hugging Face's, family by family.

mlx-lm changes a checkpoint when it loads one (`sanitize`), and saves what its module holds:

    what                                  Hugging Face                      mlx-lm
    experts                               a matrix each; or gate and up     gate_proj, up_proj, down_proj of a module,
                                          of all in one tensor              each [experts, out, in]
    kernels of short convolutions         [channels, 1, taps]               [channels, taps, 1]
    norms of Qwen 3 Next and Qwen 3.5     without the one that is added     as they multiply
    Granite 4 without experts             gate and up in one matrix         mlp.gate_proj, up_proj, down_proj
    LFM2 with experts                     w1, w3, w2                        gate_proj, up_proj, down_proj
    Qwen 3.5                              model.…                           language_model.model.…

All else has Hugging Face's names and values. Source: mlx-lm 0.32.2, ``models/<model type>.py``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import attrs

from edgekit.architectures import FAMILIES, ModelConfig
from edgekit.architectures.links import Link, Tensors, one, reshaped
from edgekit.tensor import AnyTensor

#: The module of a layer that holds the stacks of its experts, after ``model.layers.N.``.
EXPERTS = {
    "gpt_oss": "mlp.experts",
    "granitemoehybrid": "block_sparse_moe.switch_mlp",
    "lfm2_moe": "feed_forward.switch_mlp",
    "mixtral": "block_sparse_moe.switch_mlp",
    "olmoe": "mlp.switch_mlp",
    "qwen3_5_moe": "mlp.switch_mlp",
    "qwen3_moe": "mlp.switch_mlp",
    "qwen3_next": "mlp.switch_mlp",
}
_PROJECTIONS = {"ffn_gate": "gate_proj", "ffn_up": "up_proj", "ffn_down": "down_proj"}
_KERNELS = ("conv1d.weight", "conv.conv.weight")
_RENAMED = {"w1.weight": "gate_proj.weight", "w2.weight": "down_proj.weight", "w3.weight": "up_proj.weight"}
_WHOLE_NORMS = ("qwen3_next", "qwen3_5", "qwen3_5_moe")
_PREFIXED = ("qwen3_5", "qwen3_5_moe")


def prefix_of(config: ModelConfig) -> str:
    """Return the prefix of every tensor name in the model's files."""
    return "language_model." if config.family in _PREFIXED else ""


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
    if "_exps." in role:
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
    return _projection(name.replace("_exps.", "."), EXPERTS[config.family])


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


__all__ = ["EXPERTS", "mlx_links", "prefix_of"]
