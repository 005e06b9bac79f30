"""optimum-quanto: 8-bit integers and floats with a scale a row.

    part                              dtype                    shape      holds
    X.weight._data                    int8, float8_e4m3fn      [out, in]  codes of qint8, qfloat8_e4m3fn
    X.weight._scale                   float                    [out, 1]   scale
    X.input_scale, X.output_scale                              []         of activations: not read

    value = code * scale

``quanto_qmap.json`` beside the weights says which modules are quantized to what. Of qint4 and qint2 the files hold rows
of groups without the matrix's shape; they are refused by name.

Source: optimum-quanto 0.2.7, ``tensor/qbytes.py`` (`QBytesDequantizer`), ``models/transformers_models.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import attrs
import numpy as np

from edgekit.errors import UnsupportedModelError
from edgekit.formats._packed import fp8
from edgekit.formats._packed._integers import Integers, integer_tensor
from edgekit.formats._packed._scheme import CURE, Fields, Packed, Source
from edgekit.typing import Array

KNOWN = ("quant_method", "modules")
_READ = ("qint8", "qfloat8_e4m3fn")
_FLOATS = ("float32", "float16", "bfloat16")


def read(source: Source) -> Iterator[Packed]:
    """Yield the quantized matrices; see `edgekit.formats._packed.Scheme`."""
    source.fields.only(KNOWN)
    modules = source.fields.values.get("modules")
    if not isinstance(modules, Mapping):
        raise UnsupportedModelError(
            f"{source.where}: quanto_qmap.json, which says how optimum-quanto quantized the weights, is missing or no "
            f"object; fetch it, or {CURE}"
        )
    kinds: dict[str, str] = {}
    for module, given in modules.items():
        fields = Fields(given if isinstance(given, Mapping) else {}, source.where, f"quanto_qmap.json: {module}")
        fields.only(("weights", "activations"))
        kind = fields.choice("weights", _READ, "")
        if not kind:
            fields.refuse("weights", f"read is {' or '.join(_READ)}")
        kinds[module] = kind
    for module in source.modules(".weight._data"):
        if module not in kinds:
            raise UnsupportedModelError(f"{source.where}: quanto_qmap.json does not say what {module} is; {CURE}")
        yield _matrix(source, module, kinds[module])


def _matrix(source: Source, module: str, kind: str) -> Packed:
    name = f"{module}.weight"
    codes = source.part(f"{name}._data", ("int8",) if kind == "qint8" else ("float8_e4m3fn",))
    if len(codes.shape) != 2:
        raise source.mismatch(codes.name, codes.shape, "[out, in]")
    scale = source.part(f"{name}._scale", _FLOATS, (codes.shape[0], 1))
    if kind != "qint8":
        tensor = attrs.evolve(fp8.matrix(source, codes, scale, None), name=name)
    else:

        def shifted(start: int, stop: int) -> Array:
            return codes.read_rows(start, stop).view(np.uint8) + np.uint8(128)

        tensor = integer_tensor(name, codes.shape, Integers(8, None, scale, None, None, source), shifted, (codes,))
    return Packed(tensor, (codes.name, scale.name, *_activations(source, module)))


def _activations(source: Source, module: str) -> tuple[str, ...]:
    return source.present(f"{module}.input_scale", f"{module}.output_scale")


__all__ = ["KNOWN", "read"]
