"""Joins the parts of MLX's quantized tensors: ``weight``, ``scales`` and ``biases`` become one encoded tensor.

    name                     dtype                            shape
    <module>.weight          uint32                           [..., rows, cols * bits / 32]
    <module>.scales          affine: a float type; else uint8 [..., rows, cols / group]
    <module>.biases          as the scales                    [..., rows, cols / group], affine only
    <module>.global_scale    float32                          scalar; nvfp4 only, optional

The leading dimensions of stacked experts count as rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

import attrs
import numpy as np

from edgekit.errors import InvalidFileError, MissingPluginError, UnsupportedModelError
from edgekit.precision import Precision
from edgekit.tensor import AnyTensor, EncodedTensor, Tensor, holds_floats
from edgekit.typing import Array
from edgekit_mlx.modes import FLOATS, precision_of
from edgekit_mlx.sections import KEY, Entry, Section

PARTS = ("weight", "scales", "biases", "global_scale")
_FLOAT_TYPES = ("float32", "float16", "bfloat16")
_WORD = 32
_CURE = "take config.json and the weights from one place, or convert the model again"


def assemble(tensors: Mapping[str, Tensor], section: Section | None, where: Path) -> dict[str, AnyTensor]:
    """Replace the parts of each quantized module by one encoded tensor, named ``<module>.weight``.

    Args:
        tensors: the tensors, by their names in the files.
        section: the section ``quantization`` of config.json; None if it has none.
        where: the directory, for messages.

    Raises:
        InvalidFileError: parts are missing, or contradict each other or the configuration; names the module.
        UnsupportedModelError: a tensor has several global scales.
    """
    modules = {name.removesuffix(".scales") for name in tensors if name.endswith(".scales")}
    modules |= {name.removesuffix(".weight") for name, t in tensors.items() if _is_packed(name, t)}
    encoded: dict[str, AnyTensor] = {}
    for name, tensor in tensors.items():
        module, _, part = name.rpartition(".")
        if module not in modules or part not in PARTS:
            encoded[name] = tensor
        elif part == "weight":
            encoded[name] = _Module.of(module, tensors, section, where).tensor()
    _refuse_unquantized(encoded, section, where)
    for module in modules:
        if f"{module}.weight" not in tensors:
            raise InvalidFileError(f"{where}: {module}.scales has no {module}.weight beside it; {_CURE}")
    return encoded


def _is_packed(name: str, tensor: Tensor) -> bool:
    return name.endswith(".weight") and tensor.dtype == "uint32"


def _refuse_unquantized(tensors: Mapping[str, AnyTensor], section: Section | None, where: Path) -> None:
    """Raise `InvalidFileError` if the configuration marks a module as quantized whose weights are floats."""
    for module, entry in (section.modules if section else {}).items():
        tensor = tensors.get(f"{module}.weight")
        if entry is not None and tensor is not None and not isinstance(tensor, EncodedTensor):
            raise InvalidFileError(
                f"{where}: {KEY} in config.json says {entry.bits} bits for {module}, whose weight holds "
                f"{tensor.dtype}; {_CURE}"
            )


@attrs.frozen
class _Module:
    """The parts of a quantized module."""

    path: str
    parts: Mapping[str, Tensor]
    precision: Precision
    shape: tuple[int, ...]

    @classmethod
    def of(cls, path: str, tensors: Mapping[str, Tensor], section: Section | None, where: Path) -> _Module:
        def refuse(problem: str) -> NoReturn:
            raise InvalidFileError(f"{where}: module {path:.200}: {problem}; {_CURE}")

        parts = {name: tensors[f"{path}.{name}"] for name in PARTS if f"{path}.{name}" in tensors}
        _refuse_odd_parts(parts, refuse)
        if section is None:
            refuse(f"it has scales, and config.json no section {KEY!r} that says their format")
        entry = section.of(path)
        if entry is None:
            refuse(f"{KEY} in config.json says that it is not quantized, and it has scales")
        precision = _precision(parts, entry, refuse)
        weight, scales = parts["weight"], parts["scales"]
        assert precision.block is not None
        if "global_scale" in parts and parts["global_scale"].size != 1:
            raise UnsupportedModelError(
                f"{where}: module {path:.200}: it has a global scale for each of {parts['global_scale'].size} experts, "
                "which edgekit does not read; run it with mlx-lm, or convert the original model"
            )
        return cls(path, parts, precision, (*weight.shape[:-1], scales.shape[-1] * precision.block))

    def tensor(self) -> EncodedTensor:
        """Return the module's weight as an encoded tensor."""
        nbytes = sum(part.nbytes for part in self.parts.values())
        sliceable = not self.precision.whole_tensor
        return EncodedTensor(f"{self.path}.weight", self.shape, self.precision, nbytes, self.read, sliceable)

    def read(self, start: int, stop: int) -> dict[str, Array]:
        """Return the parts of rows ``start:stop``, in the layout of `edgekit.reference.mlx`."""
        parts = {
            name: _native(part.read_rows(start, stop), part.dtype)
            for name, part in self.parts.items()
            if name != "global_scale"
        }
        if "global_scale" in self.parts:
            parts["global_scale"] = self.parts["global_scale"].read().reshape(())
        return parts


def _refuse_odd_parts(parts: Mapping[str, Tensor], refuse: Callable[[str], NoReturn]) -> None:
    """Call `refuse` if parts are missing, or if their dtypes or shapes do not match."""
    if "scales" not in parts:
        refuse("its weight is packed (uint32), and its scales are missing")
    weight, scales, biases = parts["weight"], parts["scales"], parts.get("biases")
    if weight.dtype != "uint32":
        refuse(f"it has scales, and its weight holds {weight.dtype}; packed weights are uint32")
    if len(weight.shape) < 2 or weight.shape[:-1] != scales.shape[:-1] or not scales.size or not weight.size:
        refuse(f"its weight has shape {list(weight.shape)}, its scales {list(scales.shape)}")
    if scales.dtype not in (*_FLOAT_TYPES, "uint8"):
        refuse(f"its scales are {scales.dtype}; they are float32, float16, bfloat16 or uint8")
    if scales.dtype == "uint8" and biases is not None:
        refuse("its scales are uint8, as those of mxfp4, mxfp8 and nvfp4, and it has biases, which those have not")
    if scales.dtype != "uint8" and biases is None:
        refuse("its scales are those of the affine mode, and its biases are missing")
    if biases is not None and (biases.dtype, biases.shape) != (scales.dtype, scales.shape):
        refuse(
            f"its biases are {biases.dtype} {list(biases.shape)}, its scales {scales.dtype} {list(scales.shape)}; "
            "the two are alike"
        )
    if "global_scale" in parts and (scales.dtype != "uint8" or not holds_floats(parts["global_scale"])):
        refuse("it has a global scale, which only nvfp4 has, a float")


def _precision(parts: Mapping[str, Tensor], entry: Entry, refuse: Callable[[str], NoReturn]) -> Precision:
    """Return the precision of the parts: as configured, or, without an entry, as the scales' dtype and shape imply."""
    for_tensor = "global_scale" in parts
    wide = parts["weight"].shape[-1] * _WORD
    groups = parts["scales"].shape[-1]
    stored = "affine" if parts["scales"].dtype != "uint8" else ""
    if (stored == "affine") == (entry.mode == "affine") and wide == groups * entry.group * entry.bits:
        precision = precision_of(entry.mode, entry.bits, entry.group, for_tensor=for_tensor)
        if precision is not None:
            return precision
    if not entry.explicit and not stored:  # as mlx-lm does: bits * group is different in each of these modes
        for mode, (bits, group) in FLOATS.items():
            if wide == groups * group * bits:
                precision = precision_of(mode, bits, group, for_tensor=for_tensor)
                if precision is not None:
                    return precision
    return refuse(
        f"config.json says {entry.mode} of {entry.bits} bits in groups of {entry.group}; its "
        f"{math.prod(parts['weight'].shape)} words and {math.prod(parts['scales'].shape)} scales are not that"
    )


def _native(values: Array, dtype: str) -> Array:
    """Return values in the reference's dtype: bfloat16 as ml_dtypes' type, others unchanged."""
    if dtype != "bfloat16":
        return values
    try:
        import ml_dtypes
    except ImportError as error:
        raise MissingPluginError("scales of type bfloat16 need a package; pip install ml-dtypes") from error
    return values.view(np.dtype(ml_dtypes.bfloat16))


__all__ = ["PARTS", "assemble"]
