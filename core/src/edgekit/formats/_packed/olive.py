"""Olive: integers of 2, 4 or 8 bits, as its passes Rtn, KQuant, Gptq and AutoClip save Hugging Face models.

    part         dtype                        shape                holds
    X.qweight    uint8                        [out, in * b / 8]    codes, LSB first from input to input
    X.qzeros     uint8                        [out, groups * b / 8] zero points, LSB first; absent if symmetric
    X.scales     float16, bfloat16, float32   [out, groups]        scale

    value = (code - zero point) * scale, with the zero point 2^(b-1) if symmetric

The configuration has bits, symmetry and group size of all modules, and ``overrides`` for single ones. Embeddings have
the same layout.

Source: olive-ai 0.13.0, ``common/quant/nn.py`` (`QuantModule`), ``utils.py`` (`pack_to_uint8`, `dequantize`) and
``hf_utils.py`` (`OliveHfQuantizationConfig`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from edgekit.formats._packed._integers import Integers, integer_tensor
from edgekit.formats._packed._scheme import Fields, Packed, Source, groups_of
from edgekit.numerics.bits import unpack_lsb
from edgekit.typing import I16, Array

_MODULE = ("bits", "symmetric", "group_size")
KNOWN = (
    "quant_method",
    *_MODULE,
    "overrides",
    # which modules are quantized; the files say it too
    "embeds",
    "lm_head",
    "modules_to_not_convert",
    "tie_word_embeddings",
)
_BITS = (2, 4, 8)
_FLOATS = ("float16", "bfloat16", "float32")


def read(source: Source) -> Iterator[Packed]:
    """Yield the packed matrices; see `edgekit.formats._packed.Scheme`."""
    source.fields.only(KNOWN)
    overrides = source.fields.values.get("overrides") or {}
    if not isinstance(overrides, Mapping):
        source.fields.refuse("overrides", "an object is needed")
    for module in source.modules(".qweight"):
        own = overrides.get(module, {})
        if not isinstance(own, Mapping):
            source.fields.refuse("overrides", f"an object is needed for {module}")
        Fields(own, source.where, f"quantization_config.overrides: {module}").only(_MODULE)
        given = {key: source.fields.values.get(key) for key in _MODULE}
        given |= {key: value for key, value in own.items() if value is not None}
        yield _packed(source, module, Fields(given, source.where))


def _packed(source: Source, module: str, fields: Fields) -> Packed:
    bits = fields.choice("bits", _BITS, 0)
    if not bits:
        fields.refuse("bits", f"read is {' or '.join(map(str, _BITS))}")
    symmetric = fields.choice("symmetric", (True, False), True)
    size = None if fields.values.get("group_size") == -1 else fields.size("group_size", 0)
    qweight = source.part(f"{module}.qweight", ("uint8",))
    if len(qweight.shape) != 2:
        raise source.mismatch(qweight.name, qweight.shape, f"[out, in * {bits} / 8]")
    out, cols = qweight.shape[0], qweight.shape[1] * 8 // bits
    groups = groups_of(cols, size)
    scales = source.part(f"{module}.scales", _FLOATS, (out, groups))
    qzeros = None if symmetric else source.part(f"{module}.qzeros", ("uint8",), (out, -(-groups * bits // 8)))

    def codes(start: int, stop: int) -> Array:
        return qweight.read_rows(start, stop)

    def zero() -> I16:
        assert qzeros is not None
        return unpack_lsb(qzeros.read(), bits, groups).astype(np.int16)

    parts = Integers(bits, size, scales, None if qzeros is None else zero, None, source)
    held = (qweight,) if qzeros is None else (qweight, qzeros)
    tensor = integer_tensor(f"{module}.weight", (out, cols), parts, codes, held)
    return Packed(tensor, (*(part.name for part in held), scales.name))


__all__ = ["KNOWN", "read"]
