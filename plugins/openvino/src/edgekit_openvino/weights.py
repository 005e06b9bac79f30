"""Finds the tensors of an IR: its float constants, and the groups of constants that dequantize a weight.

    codes - Convert [- Subtract(zero point)] - Multiply(scale) [- Reshape] - Convert - the operation that uses it

A quantized weight is recognised by this pattern of nodes, whatever program wrote it; it has the name of the codes'
constant. A weight in a precision that edgekit lacks is read as bytes: the model can be run, but not converted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import attrs
import numpy as np

from edgekit.files.reader import Reader
from edgekit.formats import PartLayout, Together, part_layouts, rows_together
from edgekit.numerics.smallfloats import float32_to_float8_e4m3fn
from edgekit.precision import Precision, find_precision
from edgekit.reference.openvino.codebooks import CB4
from edgekit.tensor import AnyTensor, EncodedTensor, Tensor, carrier
from edgekit.typing import Array
from edgekit_openvino.elements import CODEBOOK_SUFFIX, ELEMENTS, precision_name
from edgekit_openvino.ir import Constant, Graph, Layer

#: Element types of codes; a converted float constant is not a quantized weight.
_CODED = frozenset({"i8", "u8", "i4", "u4", "u3", "u2", "nf4", "f4e2m1", "f8e4m3"})
#: The zero point of unsigned codes that represent signed ones.
_MIDDLES = {"u3": 4, "u2": 2}


@attrs.frozen
class Weight:
    """Constants that dequantize one weight.

    Attributes:
        name: name of the weight.
        parts: the constants, by the reference's names of the parts.
        precision: the precision; None if edgekit does not have it.
        shape: shape of the dequantized weight.
    """

    name: str
    parts: Mapping[str, Constant]
    precision: Precision | None
    shape: tuple[int, ...]


def tensors(graph: Graph) -> dict[str, AnyTensor]:
    """Return the tensors of an IR by name, in the order of the file; no values are read.

    Scalars and integer constants that are not codes (shapes, axes) are left out.
    """
    reader = Reader(graph.path.with_suffix(".bin")) if graph.constants else None
    read: dict[str, AnyTensor] = {}
    used: set[str] = set()
    for weight in compressed(graph, reader):
        read[weight.name] = _encoded(weight, reader) if weight.precision else _raw(weight, reader)
        used |= {part.name for part in weight.parts.values()}
    return read | {
        name: _plain(name, constant, reader)
        for name, constant in _floats(graph)
        if constant.name not in used and name not in read
    }


def compressed(graph: Graph, reader: Reader | None) -> Iterator[Weight]:
    """Yield the weights that are dequantized in the graph."""
    search = _Search(graph, graph.consumers(), reader)
    for number, constant in graph.constants.items():
        if constant.element in _CODED and len(constant.shape) > 1:
            weight = search.weight(number, constant)
            if weight is not None:
                yield weight


@attrs.frozen(eq=False)
class _Search:
    """Follows the graph from a constant of codes to the operation that uses the weight."""

    graph: Graph
    consumers: Mapping[str, list[Layer]]
    reader: Reader | None

    def weight(self, number: str, codes: Constant) -> Weight | None:
        layer = self._next(number, "Convert")
        parts: dict[str, Constant] = {"codes": codes}
        gather = self._next(layer.id, "Gather") if layer else None
        if gather is not None:
            if not self._is_cb4(gather):
                return None
            layer = gather
        if layer is None:
            return None
        subtract = self._next(layer.id, "Subtract")
        if subtract is not None:
            if next(iter(subtract.inputs.values()))[0] != layer.id:
                return None  # a zero point, which is subtracted from the codes
            zero = self._other(subtract, layer)
            if zero is None:
                return None
            parts["zero_point"], layer = zero, subtract
        multiply = self._next(layer.id, "Multiply")
        if multiply is None or not self._scales(multiply, layer, parts):
            return None
        return self._judged(codes, parts, gather is not None, self._next(multiply.id, "Reshape") is not None)

    def _next(self, number: str, kind: str) -> Layer | None:
        """Return the only layer fed by a layer, if it has that kind; only the end of a pattern may feed several."""
        fed = [layer for layer in self.consumers.get(number, ()) if layer.kind == kind]
        return fed[0] if fed else None

    def _other(self, layer: Layer, known: Layer) -> Constant | None:
        """Return the constant at the other input of a layer, directly or through a Convert; None if there is none."""
        for source, _ in layer.inputs.values():
            if source != known.id:
                return self._constant(source)
        return None

    def _constant(self, number: str) -> Constant | None:
        layer = self.graph.layers[number]
        if layer.kind == "Convert" and layer.inputs:
            number = next(iter(layer.inputs.values()))[0]
        return self.graph.constants.get(number)

    def _scales(self, multiply: Layer, known: Layer, parts: dict[str, Constant]) -> bool:
        """Add the scale and a global scale at a Multiply to `parts`; return whether there is a scale."""
        scale = self._other(multiply, known)
        if scale is not None:
            parts["scale"] = scale
            return True
        for source, _ in multiply.inputs.values():
            layer = self.graph.layers[source]
            product = self.graph.source(layer, 0) if layer.kind == "Convert" else None
            if source != known.id and product is not None and product.kind == "Multiply" and len(product.inputs) == 2:
                block_scales, shared = (self._constant(number) for number, _ in product.inputs.values())
                if block_scales is not None and shared is not None:
                    parts["scale"], parts["global_scale"] = block_scales, shared
                    return True
        return False

    def _is_cb4(self, gather: Layer) -> bool:
        levels = self._constant(next(iter(gather.inputs.values()))[0])
        if levels is None or levels.element != "f8e4m3" or levels.shape != (16,) or self.reader is None:
            return False
        return bool((self.reader.read(levels.offset, 16, levels.name) == float32_to_float8_e4m3fn(CB4)).all())

    def _judged(self, codes: Constant, parts: Mapping[str, Constant], levels: bool, grouped: bool) -> Weight:
        name = codes.name.removesuffix(CODEBOOK_SUFFIX)
        shape = (*codes.shape[:-2], math.prod(codes.shape[-2:])) if grouped else codes.shape
        precision = self._precision(parts, levels, grouped)
        return Weight(name, parts, precision, shape)

    def _precision(self, parts: Mapping[str, Constant], levels: bool, grouped: bool) -> Precision | None:
        codes, scale, zero = parts["codes"], parts["scale"], parts.get("zero_point")
        if scale.shape != (*codes.shape[:-1], 1) or (zero is not None and not self._zero_fits(codes, zero)):
            return None
        group = codes.shape[-1] if grouped else None
        shared = "global_scale" in parts
        name = precision_name(codes.element, group, scale.element, zero.element if zero else None, levels, shared)
        return find_precision(name) if name else None

    def _zero_fits(self, codes: Constant, zero: Constant) -> bool:
        if codes.element in _MIDDLES:
            assert self.reader is not None
            is_one = zero.shape == () and zero.element == "i8"
            return is_one and int(self.reader.read(zero.offset, 1, zero.name)[0]) == _MIDDLES[codes.element]
        return zero.shape == (*codes.shape[:-1], 1)


def _encoded(weight: Weight, reader: Reader | None) -> EncodedTensor:
    assert weight.precision is not None
    assert reader is not None
    layouts = part_layouts(weight.precision, weight.shape)
    assert layouts is not None  # the reference encodes every precision of the convention
    rows = math.prod(weight.shape[:-1])

    together = (rows_together(weight.precision, weight.shape) if rows else None) or Together(0)

    def read(key: str, layout: PartLayout, start: int, stop: int) -> Array:
        """Return rows ``start:stop`` of a part, or all of one that has a single size."""
        stored, dtype, shape = weight.parts[key], np.dtype(layout.dtype), layout.shape
        first, nbytes = 0, stored.nbytes
        if stop - start < rows and layout.growth != "fixed":
            first, nbytes = together.span(key, start, stop, rows, nbytes)
            shape = (-1,) if key in together.nbytes else (stop - start, *shape[1:])
        return reader.read(stored.offset + first, nbytes, stored.name).view(dtype).reshape(shape)

    def read_parts(start: int, stop: int) -> dict[str, Array]:
        return {key: read(key, layout, start, stop) for key, layout in layouts.items()}

    return EncodedTensor(
        weight.name,
        weight.shape,
        weight.precision,
        nbytes=sum(part.nbytes for part in weight.parts.values()),
        read_parts=read_parts,
        sliceable=together.rows == 1,
        together=0 if together.rows == 1 else together.rows,
    )


def _raw(weight: Weight, reader: Reader | None) -> Tensor:
    """Return a weight in an unsupported precision as a tensor of its codes' bytes."""
    stored = weight.parts["codes"]
    return _plain(weight.name, Constant(weight.name, "u8", (stored.nbytes,), stored.offset, stored.nbytes), reader)


def _floats(graph: Graph) -> Iterator[tuple[str, Constant]]:
    """Yield float constants of more than one element, with the names that they had before conversion to float16."""
    consumers = graph.consumers()
    for number, constant in graph.constants.items():
        if "float" in ELEMENTS.get(constant.element, (0, ""))[1] and math.prod(constant.shape) > 1:
            yield _own_name(constant, consumers.get(number, [])), constant


def _own_name(constant: Constant, fed: list[Layer]) -> str:
    """Return a constant's original name: `openvino.save_model` renames constants that it converts to float16.

    It appends ``_compressed`` to the constant's name, and gives the original name to the Convert.
    """
    stem = constant.name.removesuffix("_compressed")
    return stem if any(layer.kind == "Convert" and layer.name == stem for layer in fed) else constant.name


def _plain(name: str, stored: Constant, reader: Reader | None) -> Tensor:
    dtype = ELEMENTS[stored.element][1]
    cols = stored.shape[-1] if stored.shape else 1
    row = cols * carrier(dtype).itemsize

    def read_rows(start: int, stop: int) -> Array:
        assert reader is not None
        values = reader.read(stored.offset + start * row, (stop - start) * row, name).view(carrier(dtype))
        return values.reshape(stop - start, cols)

    return Tensor(name, stored.shape, dtype, read_rows)


__all__ = ["Weight", "compressed", "tensors"]
