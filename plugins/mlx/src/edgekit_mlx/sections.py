"""The section ``quantization`` of an MLX model's config.json: read, compared with the tensors, and written.

    "quantization": {"group_size": 64, "bits": 4, "mode": "affine",
                     "model.layers.0.self_attn.v_proj": {"group_size": 64, "bits": 6, "mode": "affine"},
                     "lm_head": false}

The three keys apply to every module that has scales and no entry. An entry has the module's path as its key; its value
is an object with the same three keys, or true or false. A missing ``mode`` means ``affine``. mlx-lm writes a copy of
the section as ``quantization_config`` for the Hugging Face hub, and reads ``quantization``.

Source: mlx-lm 0.32.2, ``utils.py`` (`load_model`, `quantize_model`, `infer_quant_config`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs

from edgekit.errors import InvalidFileError
from edgekit.files.foreign import shown
from edgekit.precision import Precision
from edgekit_mlx.modes import MODES, mode_of, precision_of

KEY, MIRROR = "quantization", "quantization_config"
_CURE = "take config.json and the weights from one place"


@attrs.frozen
class Entry:
    """The quantization of a module according to the configuration.

    Attributes:
        mode: ``affine``, ``mxfp4``, ``mxfp8`` or ``nvfp4``.
        bits: bits per code.
        group: number of columns that share a scale.
        explicit: whether the module has an entry of its own.
    """

    mode: str
    bits: int
    group: int
    explicit: bool = False


@attrs.frozen
class Section:
    """The parsed section.

    Attributes:
        default: the quantization of modules without an entry.
        modules: the entries by the module's path; None for a module that is not quantized.
    """

    default: Entry
    modules: Mapping[str, Entry | None]

    def of(self, module: str) -> Entry | None:
        """Return the entry that applies to a module: its own or the default; None if it is not quantized."""
        return self.modules.get(module, self.default)


def is_quantized(config: Mapping[str, Any]) -> bool:
    """Return whether a config.json has MLX's section ``quantization``."""
    section = config.get(KEY)
    return isinstance(section, Mapping) and {"group_size", "bits"} <= section.keys()


def read_section(config: Mapping[str, Any], file: Path) -> Section | None:
    """Return the parsed section; None if the configuration has none.

    Raises:
        InvalidFileError: a value has the wrong type, or MLX does not have the format; names the module.
    """
    section = config.get(KEY)
    if section is None:
        return None
    if not isinstance(section, Mapping):
        raise InvalidFileError(f"{file}: {KEY} is {shown(section)}, no object with group_size and bits; {_CURE}")
    default = _entry(section, f"{file}: {KEY}")
    modules: dict[str, Entry | None] = {}
    for path, value in section.items():
        if isinstance(value, bool):
            modules[path] = attrs.evolve(default, explicit=True) if value else None
        elif isinstance(value, Mapping):
            modules[path] = attrs.evolve(_entry(value, f"{file}: {KEY} of {path:.200}"), explicit=True)
    return Section(default, modules)


def _entry(given: Mapping[str, Any], where: str) -> Entry:
    mode, bits, group = given.get("mode", "affine"), given.get("bits"), given.get("group_size")
    if mode not in MODES:
        raise InvalidFileError(f"{where}: mode {shown(mode)}; MLX has {', '.join(MODES)}")
    if type(bits) is not int or type(group) is not int:
        raise InvalidFileError(f"{where}: bits {shown(bits)} and group_size {shown(group)} have to be integers")
    if precision_of(mode, bits, group) is None:
        raise InvalidFileError(f"{where}: MLX has no {mode} of {bits} bits in groups of {group}; {_CURE}")
    return Entry(mode, bits, group)


def section_of(modules: Mapping[str, Precision]) -> dict[str, Any]:
    """Return the section for quantized modules: the most frequent precision as the default, entries for the others.

    Args:
        modules: the precision of each quantized module, by its path.
    """
    default = _most(modules.values())
    section: dict[str, Any] = mode_of(default)
    for path, precision in modules.items():
        for_tensor = precision.whole_tensor
        if mode_of(precision) != mode_of(default) or for_tensor:
            section[path] = {**mode_of(precision), **({"global_scale": True} if for_tensor else {})}
    return section


def _most(precisions: Iterable[Precision]) -> Precision:
    """Return the most frequent precision; of equally frequent ones the first by name."""
    counts = Counter(precisions)
    return min(counts, key=lambda precision: (-counts[precision], precision.name))


__all__ = ["KEY", "MIRROR", "Entry", "Section", "is_quantized", "read_section", "section_of"]
