"""Reads and checks an ONNX file; its constants become tensors, quantized ones with their codes.

A quantized weight is recognised by the operator that decodes it, whatever program wrote the graph: MatMulNBits and
GatherBlockQuantized with constant codes, MatMulBnb4 (bitsandbytes' 4-bit floats), DequantizeLinear of constant codes
with a grid of `edgekit.reference.onnx`, and products of integers (MatMulInteger, QLinearMatMul and what ONNX Runtime
fuses of them). Constants that are added to multiples of the scales are offsets (`edgekit_olive.offset`). A weight has
the name of the codes without ``.B``, ``.codes``, ``_quantized``, ``_Q4`` or ``_Bnb4``. The matrix of a product has its
rows and columns exchanged: [out, in] as everywhere in edgekit. Codes in a precision that edgekit lacks are read as
integers.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import attrs
import numpy as np

from edgekit.architectures.links import joined
from edgekit.errors import InvalidFileError, MissingFileError, UnknownPrecisionError, UnsupportedModelError
from edgekit.files.foreign import CURE, member, native, readable, shown
from edgekit.files.reader import Reader
from edgekit.formats import four_bit_floats, part_layouts
from edgekit.precision import Precision, find_precision
from edgekit.recipe import fits
from edgekit.tensor import AnyTensor, EncodedTensor, Tensor, carrier
from edgekit.typing import F32, Array
from edgekit_olive.dialect import inward
from edgekit_olive.elements import ELEMENTS, PACKED
from edgekit_olive.library import onnx
from edgekit_olive.offset import SLOTS
from edgekit_olive.weights import EXPERT

#: Largest size in bytes of a graph without its weights' file: protobuf's limit.
LIMIT = (2 << 30) - 1
#: Characters of a constant's name in messages.
_LONGEST = 120
#: Operators that rearrange or convert a stack's constants before QMoE, and how many follow one another at most.
_REARRANGING = ("Concat", "Unsqueeze", "Reshape", "Transpose", "Cast")
_LAYERS = 4
#: Most constants that one of QMoE's may consist of.
_MOST_ORIGINS = 64
_SUFFIXES = (".B", ".codes", ".rows", "_quantized", "_Q2", "_Q4", "_Q8", "_Bnb4")
#: What the passes on 8 bits append to the name of a constant whose axes they exchange.
TRANSPOSED = ".transposed"
#: Products of integers -> the positions of the constant codes, their scale and their zero point. The scale of
#: MatMulInteger is applied later; onnxruntime names it after the codes.
_PRODUCTS = {
    "MatMulInteger": (1, None, 3),
    "MatMulIntegerToFloat": (1, 3, 5),
    "DynamicQuantizeMatMul": (1, 2, 3),
    "QLinearMatMul": (3, 4, 5),
}
#: Blocks that MatMulBnb4 takes, and its kinds of floats by their number.
_BNB4_BLOCKS = (16, 32, 64, 128, 256)
_BNB4_KINDS: tuple[Literal["fp4"], Literal["nf4"]] = ("fp4", "nf4")
_DTYPES = {name: dtype for dtype, name in ELEMENTS.items()}


@attrs.frozen
class Constant:
    """An initializer, or the value of a Constant node.

    Attributes:
        name: its name in the graph.
        element: name of its `TensorProto.DataType`.
        shape: its shape in elements.
        reader: the reader of the file with its bytes; None if they are in `content`.
        offset: position of its bytes in that file.
        content: the bytes of a constant inside the graph.
    """

    name: str
    element: str
    shape: tuple[int, ...]
    reader: Reader | None = attrs.field(default=None, repr=False)
    offset: int = 0
    content: bytes = attrs.field(default=b"", repr=False)

    @property
    def nbytes(self) -> int:
        """The bytes of all elements."""
        return constant_bytes(self.element, self.shape)

    def read(self, start: int, nbytes: int) -> Array:
        """Return `nbytes` of the bytes from `start` on, uint8."""
        if self.reader is not None:
            return self.reader.read(self.offset + start, nbytes, self.name)
        return np.frombuffer(self.content, np.uint8, nbytes, start)


@attrs.frozen
class Parsed:
    """A graph and its constants.

    Attributes:
        path: the graph's file.
        proto: the `onnx.ModelProto`.
        constants: the initializers by name, in the file's order, then the constants of graphs inside it (branches of
            If, bodies of Loop and Scan), whose names get a number where they are not unique.
        files: the files with the constants' bytes, beside the graph.
    """

    path: Path
    proto: Any
    constants: Mapping[str, Constant]
    files: tuple[Path, ...]


def parse(path: Path) -> Parsed:
    """Read a graph, and check the types, shapes and positions of its constants; no values are read.

    Raises:
        InvalidFileError: the file is not a model, a constant ends beyond its file, or external data are outside the
            model's directory.
        MissingFileError: the file, or one with external data, does not exist.
        UnsupportedModelError: the installed onnx does not support an opset.
    """
    library, content = onnx(), _content(path)
    with native(f"{path}: parsing it with onnx"):
        try:
            proto = library.load_model_from_string(content)
        except Exception as error:  # protobuf's DecodeError, which depends on the implementation
            raise InvalidFileError(f"{path}: not an ONNX model ({type(error).__name__}); {CURE}") from error
    if not proto.HasField("graph") or not proto.ir_version:
        raise InvalidFileError(f"{path}: not an ONNX model: it has no graph; {CURE}")
    _check_names(proto, path)
    _check_opsets(proto, path)
    files: dict[str, Reader] = {}
    constants: dict[str, Constant] = {}
    for tensor in proto.graph.initializer:
        constant = _constant(tensor, tensor.name, path, files)
        if constant.name in constants:
            raise InvalidFileError(f"{path}: two constants are called {_named(constant.name)}; {CURE}")
        constants[constant.name] = constant
    again: dict[str, int] = {}
    for name, tensor in _inner(proto.graph):
        own = name
        while own in constants:  # branches may call theirs alike
            again[name] = again.get(name, 1) + 1
            own = f"{name}.{again[name]}"
        constants[own] = _constant(tensor, own, path, files)
    return Parsed(path, proto, constants, tuple(path.parent / name for name in files))


def graphs_of(graph: Any) -> Iterator[Any]:
    """Yield an `onnx.GraphProto` and the graphs inside it: branches of If, bodies of Loop and Scan."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            inner = [attribute.g] if attribute.HasField("g") else []
            for each in (*inner, *attribute.graphs):
                yield from graphs_of(each)


def _inner(whole: Any) -> Iterator[tuple[str, Any]]:
    """Yield the constants of the graphs inside a graph, initializers or values of Constant nodes, by name.

    Of the graph itself the values of Constant nodes that lie in a file.
    """
    for graph in graphs_of(whole):
        if graph is not whole:
            yield from ((tensor.name, tensor) for tensor in graph.initializer)
        for node in graph.node:
            if node.op_type == "Constant" and node.output:
                tensors = [each.t for each in node.attribute if each.HasField("t")]
                yield from ((node.output[0], each) for each in tensors if graph is not whole or each.external_data)


def _content(path: Path) -> bytes:
    content = Reader(path).read_bytes(0, LIMIT + 1)
    if len(content) > LIMIT:
        raise InvalidFileError(f"{path}: larger than the {LIMIT:,} bytes of a protobuf; {CURE}")
    return content


def _check_names(proto: Any, path: Path) -> None:
    """Raise an error for names that are not UTF-8, which protobuf returns as bytes."""
    names: list[object] = []
    for graph in graphs_of(proto.graph):
        names += [name for node in graph.node for name in (*node.input, *node.output, node.op_type, node.domain)]
        held = [*graph.initializer, *(each.t for node in graph.node for each in node.attribute if each.HasField("t"))]
        names += [tensor.name for tensor in held]
        names += [text for tensor in held for entry in tensor.external_data for text in (entry.key, entry.value)]
    names += [text for entry in proto.metadata_props for text in (entry.key, entry.value)]
    names += [opset.domain for opset in proto.opset_import]
    if not all(isinstance(name, str) for name in names):
        raise InvalidFileError(f"{path}: a name in the graph is no UTF-8; {CURE}")


def _check_opsets(proto: Any, path: Path) -> None:
    if proto.ir_version > onnx().IR_VERSION:
        raise UnsupportedModelError(
            f"{path}: its IR version is {proto.ir_version}, the installed onnx knows up to {onnx().IR_VERSION}; "
            "pip install -U onnx onnxruntime"
        )
    known = onnx().defs.onnx_opset_version()
    for opset in proto.opset_import:
        if opset.domain in ("", "ai.onnx") and opset.version > known:
            raise UnsupportedModelError(
                f"{path}: its opset is {opset.version}, the installed onnx knows up to {known}; pip install -U onnx"
            )


def _named(name: str) -> str:
    """Return a name for messages, which have one line and are short."""
    return readable(name) if name.isprintable() and len(name) <= _LONGEST else shown(name)


def _constant(tensor: Any, name: str, path: Path, files: dict[str, Reader]) -> Constant:
    library, shape = onnx(), tuple(tensor.dims)
    where = f"{path}: constant {_named(name)}"
    if any(size < 0 for size in shape) or math.prod(shape) >= 1 << 62:
        raise InvalidFileError(f"{where} has the shape {list(shape)}; {CURE}")
    try:
        element = library.TensorProto.DataType.Name(tensor.data_type)
    except ValueError as error:
        raise UnsupportedModelError(f"{where} has the unknown type {tensor.data_type}; pip install -U onnx") from error
    if tensor.data_location == library.TensorProto.EXTERNAL:
        return _external(tensor, name, element, shape, path, files)
    if element in _DTYPES or element in PACKED:
        content = tensor.raw_data or _typed(tensor, where)
        wanted = constant_bytes(element, shape)
        if len(content) != wanted:
            raise InvalidFileError(
                f"{where} has {len(content):,} bytes, {element} {list(shape)} takes {wanted:,}; {CURE}"
            )
        return Constant(name, element, shape, content=content)
    return Constant(name, element, shape)


def _typed(tensor: Any, where: str) -> bytes:
    """Return the bytes of a constant that is stored in protobuf's typed fields."""
    if not math.prod(tensor.dims):
        return b""
    try:
        array = onnx().numpy_helper.to_array(tensor)
    except (TypeError, ValueError) as error:
        raise InvalidFileError(f"{where} is malformed: {error!s:.200}; {CURE}") from error
    made: bytes = onnx().numpy_helper.from_array(np.ascontiguousarray(array)).raw_data
    return made


def _external(
    tensor: Any, name: str, element: str, shape: tuple[int, ...], path: Path, files: dict[str, Reader]
) -> Constant:
    where = f"{path}: constant {_named(name)}"
    given = {entry.key: entry.value for entry in tensor.external_data}
    location = given.get("location", "")
    if location not in files:
        files[location] = Reader(_beside(path.parent, location, where))
    offset, length = (_size(given.get(key, "0"), key, where) for key in ("offset", "length"))
    wanted = constant_bytes(element, shape)
    if "length" in given and length != wanted:
        raise InvalidFileError(f"{where} has {length:,} bytes, {element} {list(shape)} takes {wanted:,}; {CURE}")
    size = files[location].size
    if offset + wanted > size:
        raise InvalidFileError(
            f"{where} ends at {offset + wanted:,} of {path.parent / location}, which has {size:,} bytes; {CURE}"
        )
    return Constant(name, element, shape, files[location], offset)


def _beside(directory: Path, location: str, where: str) -> Path:
    path = member(directory, location)
    if path is None:
        raise MissingFileError(f"{where} lies in {shown(location)}, which is not beside the graph; fetch that file too")
    if os.stat(path).st_nlink > 1 and not path.is_symlink():
        raise InvalidFileError(
            f"{path}: a hard link, whose other name may lie outside the directory; copy the file itself here"
        )
    return path


def _size(text: str, key: str, where: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise InvalidFileError(f"{where} has the {key} {shown(text)}, which is no number of bytes; {CURE}")
    return int(text)


def constant_bytes(element: str, shape: Sequence[int]) -> int:
    """Return the bytes of a constant; 0 for types without a fixed size (strings)."""
    if element in PACKED:
        return -(-math.prod(shape) * PACKED[element] // 8)
    return math.prod(shape) * carrier(_DTYPES[element]).itemsize if element in _DTYPES else 0


def tensors(parsed: Parsed) -> dict[str, AnyTensor]:
    """Return the tensors of a graph by name; no values are read.

    Integers of less than two dimensions and scalars are left out.
    """
    read: dict[str, AnyTensor] = {}
    used: set[str] = set()
    offsets, folded = _offsets(parsed), _folded(parsed)
    for plain in _quantized(parsed):
        weight = _shifted(plain, offsets) if isinstance(plain, _Weight) else plain
        if (
            weight is plain
            and isinstance(plain, _Weight)
            and not folded.isdisjoint(p.name for p in plain.parts.values())
        ):
            continue
        used |= {part.name for part in weight.parts.values()}
        read.setdefault(weight.name, weight.tensor())
    for name, constant in parsed.constants.items():
        stem = name.removesuffix(TRANSPOSED)
        if name in used or not _is_weight(constant):
            continue
        if stem != name and len(constant.shape) == 2 and stem not in parsed.constants:
            read.setdefault(stem, _plain_turned(stem, constant))
        else:
            read.setdefault(name, _plain(constant))
    return stacked(read)


def stacked(read: Mapping[str, AnyTensor]) -> dict[str, AnyTensor]:
    """Return the tensors with the matrices of experts, which are separate in the graph, joined to stacks."""
    whole: dict[str, AnyTensor] = {}
    experts: dict[str, dict[int, AnyTensor]] = {}
    for name, tensor in read.items():
        stem, found, number = name.rpartition(EXPERT)
        if found and number.isdecimal() and len(number) < 7:
            experts.setdefault(stem, {})[int(number)] = tensor
        else:
            whole[name] = tensor
    for stem, parts in experts.items():
        stack = _stack(stem, [parts[number] for number in sorted(parts)], sorted(parts))
        whole |= {f"{stem}{EXPERT}{n}": part for n, part in parts.items()} if stack is None else {stem: stack}
    return whole


def _stack(name: str, parts: Sequence[AnyTensor], numbers: Sequence[int]) -> AnyTensor | None:
    """Return a stack [experts, out, in] of matrices; None if they differ in precision or shape."""
    first = parts[0]
    alike = {(type(p), p.shape, p.precision if isinstance(p, EncodedTensor) else p.dtype) for p in parts}
    if len(alike) > 1 or list(numbers) != list(range(len(parts))):
        return None
    return attrs.evolve(joined(parts, (len(parts), *first.shape)), name=name)


def _is_weight(constant: Constant) -> bool:
    if constant.element not in _DTYPES or not constant.shape:
        return False
    if math.prod(constant.shape) < 2 and constant.reader is None:  # beside the graph lie weights, of any size
        return False
    if constant.name.startswith("constant."):  # of edgekit's own graphs
        return False
    return "FLOAT" in constant.element or constant.element == "DOUBLE" or len(constant.shape) > 1


def _plain(constant: Constant) -> Tensor:
    dtype, shape = _DTYPES[constant.element], constant.shape
    cols = shape[-1] if shape else 1
    row = cols * carrier(dtype).itemsize

    def read_rows(start: int, stop: int) -> Array:
        return constant.read(start * row, (stop - start) * row).view(carrier(dtype)).reshape(stop - start, cols)

    return Tensor(constant.name, shape, dtype, read_rows)


def _plain_turned(name: str, constant: Constant) -> Tensor:
    """Return the tensor [out, in] of a constant [in, out]."""
    dtype, (cols, rows) = _DTYPES[constant.element], constant.shape

    def read_rows(start: int, stop: int) -> Array:
        values = constant.read(0, constant.nbytes).view(carrier(dtype)).reshape(cols, rows)
        return np.ascontiguousarray(values[:, start:stop].T)

    return Tensor(name, (rows, cols), dtype, read_rows)


@attrs.frozen
class _Weight:
    """Constants that dequantize one weight.

    Attributes:
        name: name of the weight.
        precision: its precision.
        shape: shape of the dequantized weight.
        parts: the constants, by the reference's names of the parts.
        standard: whether its codes are stored for DequantizeLinear; see `edgekit_olive.dialect`.
        turned: whether its codes are stored as [in, out].
    """

    name: str
    precision: Precision
    shape: tuple[int, ...]
    parts: Mapping[str, Constant]
    standard: bool = False
    turned: bool = False

    def tensor(self) -> EncodedTensor:
        layouts = part_layouts(self.precision, self.shape) or {}
        rows = math.prod(self.shape[:-1])

        def read_parts(start: int, stop: int) -> dict[str, Array]:
            return {key: self._read(key, layouts[key].shape, start, stop, rows) for key in self.parts}

        nbytes = sum(part.nbytes for part in self.parts.values())
        sliceable = self.precision.rowwise and rows > 0 and not self.turned
        return EncodedTensor(self.name, self.shape, self.precision, nbytes, read_parts, sliceable)

    def _read(self, key: str, shape: tuple[int, ...], start: int, stop: int, rows: int) -> Array:
        part = self.parts[key]
        if self.turned and key == "codes":
            codes = part.read(0, part.nbytes).view(_native(_DTYPES[part.element])).reshape(self.shape[::-1])
            return np.ascontiguousarray(codes.T)
        begin, nbytes = 0, part.nbytes
        if self.precision.rowwise and shape and shape[0] == rows:
            row = part.nbytes // rows
            begin, nbytes, shape = start * row, (stop - start) * row, (stop - start, *shape[1:])
        values = part.read(begin, nbytes)
        if part.element not in PACKED and ("FLOAT" in part.element or key not in ("B", "zero_points")):
            dtype = _DTYPES[part.element]
            values = values.view(_native(dtype))
        return inward(values, key, self.precision, not self.standard).reshape(shape)


def _native(dtype: str) -> Any:
    if dtype != "bfloat16":
        return np.dtype(dtype)
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16)


@attrs.frozen
class _Floats:
    """A weight of MatMulBnb4: 4-bit floats under one scale a block; `parts` are its codes and its scales."""

    name: str
    kind: Literal["nf4", "fp4"]
    shape: tuple[int, int]
    block: int
    parts: Mapping[str, Constant]

    def tensor(self) -> EncodedTensor:
        codes, absmax = self.parts["codes"], self.parts["scale"]
        packed = _plain(attrs.evolve(codes, shape=(codes.nbytes, 1)))

        def scales(first: int, last: int) -> F32:
            return absmax.read(4 * first, 4 * (last - first)).view(np.float32)

        nbytes = codes.nbytes + absmax.nbytes
        return four_bit_floats(self.name, self.shape, self.kind, self.block, packed, scales, nbytes)


def _normal(codes: Constant, absmax: Constant, given: Mapping[str, int]) -> Iterator[_Floats]:
    """Yield the weight of a MatMulBnb4, if its constants have the sizes and types that its attributes ask for."""
    shape, block, kind = (given.get("N", 0), given.get("K", 0)), given.get("block_size", 0), given.get("quant_type", -1)
    size = math.prod(shape)
    if block not in _BNB4_BLOCKS or kind not in (0, 1) or min(shape) < 1:
        return
    if (codes.element, absmax.element) != ("UINT8", "FLOAT"):  # the CPU provider takes no other scales
        return
    if (math.prod(codes.shape), math.prod(absmax.shape)) == (-(-size // 2), -(-size // block)):
        name = _stem(codes.name).removesuffix(TRANSPOSED)
        yield _Floats(name, _BNB4_KINDS[kind], shape, block, {"codes": codes, "scale": absmax})


def _quantized(parsed: Parsed) -> Iterator[_Weight | _Floats]:
    """Yield the weights that operators decode."""
    nodes = [node for node in parsed.proto.graph.node if node.input and node.output]
    casts = {node.output[0]: node.input[0] for node in nodes if node.op_type == "Cast"}
    joints = {node.output[0]: list(node.input) for node in nodes if node.op_type == "Concat"}
    rows = {node.output[0]: node.input[0] for node in nodes if node.op_type == "Gather"}
    factors = {node.input[1] for node in nodes if node.op_type == "MatMul" and len(node.input) > 1}

    def constant(name: str) -> Constant | None:
        return parsed.constants.get(casts.get(name, name))

    for node in nodes:
        given = {attribute.name: attribute.i for attribute in node.attribute}
        inputs = [constant(name) for name in node.input]
        weight: _Weight | None = None
        match node.op_type:
            case "QMoE" if len(node.input) > 6:
                yield from filter(_agrees, _experts(parsed, nodes, node, given))
            case "MatMulNBits" if any(name in joints for name in node.input[1:4]):
                yield from filter(_agrees, _joined(node, joints, constant, given))
            case "MatMulNBits" if len(inputs) >= 3:
                zero = inputs[3] if len(inputs) > 3 else None
                block, bits = given.get("block_size", 0), given.get("bits", 4)
                weight = _blocks(inputs[1], inputs[2], zero, bits, block, given.get("K", 0))
            case "MatMulBnb4" if len(inputs) >= 3 and inputs[1] is not None and inputs[2] is not None:
                yield from _normal(inputs[1], inputs[2], given)
            case "DequantizeLinear" if len(inputs) >= 2:
                zero = inputs[2] if len(inputs) > 2 else None
                weight = _linear(inputs[0], inputs[1], zero, given.get("axis", 1), given.get("block_size", 0))
                if inputs[0] is not None and node.output[0] in factors and given.get("axis", 1) in (1, -1):
                    weight = _turned(inputs[0], inputs[1], zero) or weight
                if inputs[0] is None and inputs[1] is not None and inputs[1].shape in ((), (1,)):
                    weight = _linear(constant(rows.get(node.input[0], "")), inputs[1], zero, 0, 0)
            case "GatherBlockQuantized" if len(inputs) >= 3:
                zero = inputs[3] if len(inputs) > 3 else None
                block, bits = given.get("block_size", 128), given.get("bits", 4)
                weight = _rows(inputs[0], inputs[2], zero, bits, block, _sliced(parsed, node.output[0]))
            case "MatMulInteger" | "MatMulIntegerToFloat" | "DynamicQuantizeMatMul" | "QLinearMatMul":
                weight = _factor(node.op_type, inputs, constant)
        if weight is not None and _agrees(weight):
            yield weight
    yield from _picked(parsed)


def _joined(
    node: Any,
    joints: Mapping[str, Sequence[str]],
    constant: Callable[[str], Constant | None],
    given: Mapping[str, int],
) -> Iterator[_Weight]:
    """Yield the weights of a MatMulNBits whose codes, scales and zero points are joined of several weights'."""
    columns = [joints[name] for name in node.input[1:4] if name in joints]
    if len({len(column) for column in columns}) > 1:
        return
    if len(columns) < 2:
        return
    for codes, scales, *zero in zip(*(map(constant, column) for column in columns), strict=True):
        bits, block = given.get("bits", 4), given.get("block_size", 0)
        weight = _blocks(codes, scales, zero[0] if zero else None, bits, block, given.get("K", 0))
        if weight is not None:
            yield weight


def _experts(parsed: Parsed, nodes: Sequence[Any], node: Any, given: Mapping[str, int]) -> Iterator[_Weight]:
    """Yield the stacks of experts of a QMoE, whose constants may be joined of several stacks'."""
    makers = {each.output[0]: each for each in nodes if each.op_type in _REARRANGING}
    names = [*node.input, *[""] * 14]
    bits, block = given.get("expert_weight_bits", 4), given.get("block_size", 0)
    for places in ((2, 3, 11), (5, 6, 12)):
        columns = [_origins(names[place], makers, parsed) for place in places]
        if columns[0] and not columns[2]:
            columns[2] = [None] * len(columns[0])
        if len({len(column) for column in columns}) > 1:
            continue
        for codes, scales, zero in zip(*columns, strict=True):
            if codes is None or len(codes.shape) != 3 or bits <= 0:
                continue
            weight = _blocks(codes, scales, zero, bits, block, codes.shape[2] * 8 // bits)
            if weight is not None:
                yield attrs.evolve(weight, shape=(*codes.shape[:2], weight.shape[1]))


def _origins(name: str, makers: Mapping[str, Any], parsed: Parsed) -> list[Constant | None]:
    """Return the constants of which nodes make a value by rearranging elements; empty if others take part."""
    names = [name] if name else []
    for _ in range(_LAYERS):
        if len(names) > _MOST_ORIGINS:  # a graph made to grow
            return []
        made = [makers.get(each) for each in names]
        names = [
            source
            for each, maker in zip(names, made, strict=True)
            for source in ([each] if maker is None else maker.input if maker.op_type == "Concat" else maker.input[:1])
        ]
    found = [parsed.constants.get(each) for each in names]
    return [] if None in found else found


def _offsets(parsed: Parsed) -> dict[str, tuple[Constant, int]]:
    """Return the offsets that are added to multiples of scales, and the bits of the codes, by the scales' names."""
    nodes = [node for node in parsed.proto.graph.node if len(node.input) == 2 and node.output]
    multiples = {node.output[0]: node.input for node in nodes if node.op_type == "Mul"}
    found: dict[str, tuple[Constant, int]] = {}
    for node in nodes:
        offsets, factors = parsed.constants.get(node.input[0]), multiples.get(node.input[1])
        if node.op_type == "Add" and offsets is not None and factors is not None:
            middle = parsed.constants.get(factors[1])
            if middle is not None and (middle.element, middle.shape) == ("FLOAT", ()):
                value = float(middle.read(0, 4).view(np.float32)[0])
                bits = next((each for each in SLOTS if value == 1 << (each - 1)), 0)
                found |= {factors[0]: (offsets, bits)} if bits else {}
    return found


def _folded(parsed: Parsed) -> set[str]:
    """Return the codes to whose products or rows the graph adds offsets, which an optimizer may have folded."""
    nodes = [node for node in parsed.proto.graph.node if node.input and node.output]
    makers = {node.output[0]: node for node in nodes}
    reshaped = {node.output[0]: node.input[0] for node in nodes if node.op_type == "Reshape"}
    codes = set()
    for node in (node for node in nodes if node.op_type == "Add" and len(node.input) == 2):
        first, second = makers.get(node.input[0]), makers.get(node.input[1])
        rows = makers.get(reshaped.get(node.input[0], ""))
        if first is not None and first.op_type == "MatMulNBits" and second is not None and len(first.input) > 1:
            sums = makers.get(second.input[0]) if second.op_type == "FusedMatMul" else None
            codes |= {first.input[1]} if sums is not None and sums.op_type == "ReduceSum" else set()
        if rows is not None and rows.op_type == "GatherBlockQuantized":
            codes.add(rows.input[0])
    return codes


def _shifted(weight: _Weight, offsets: Mapping[str, tuple[Constant, int]]) -> _Weight:
    """Return a weight with the offsets of its blocks, if the graph adds some."""
    scales = weight.parts.get("scales")
    if scales is None or scales.name not in offsets or not weight.precision.kind.startswith("int"):
        return weight
    constant, bits = offsets[scales.name]
    precision = _precision(f"onnx:offset{bits}-g{weight.precision.block}")
    if precision is None or SLOTS[bits] != weight.precision.bits:
        return weight
    shifted = attrs.evolve(weight, precision=precision, parts={**weight.parts, "offsets": constant})
    return shifted if _agrees(shifted) else weight


def _sliced(parsed: Parsed, name: str) -> int:
    """Return the row length to which a Slice truncates an output; 0 if none does. Blocks may extend beyond rows."""
    for node in parsed.proto.graph.node:
        if node.op_type == "Slice" and len(node.input) > 2 and node.input[0] == name:
            end = parsed.constants.get(node.input[2])
            if end is not None and (end.element, end.shape) == ("INT64", (1,)):
                return int(end.read(0, 8).view(np.int64)[0])
    return 0


def _picked(parsed: Parsed) -> Iterator[_Weight]:
    """Yield the embeddings of edgekit's own graphs whose rows are gathered before they are decoded."""
    for name, codes in parsed.constants.items():
        stem = name.removesuffix(".codes")
        scale, zero = (parsed.constants.get(f"{stem}.{part}") for part in ("scale", "zero_point"))
        if stem != name and codes.element in ("INT8", "UINT8") and zero is not None:
            weight = _linear(codes, scale, zero, 0, 0)
            if weight is not None and _agrees(weight):
                yield weight


def _blocks(
    codes: Constant | None, scales: Constant | None, zero: Constant | None, bits: int, block: int, cols: int
) -> _Weight | None:
    """Return a weight of MatMulNBits; None if its constants do not match a precision."""
    if codes is None or scales is None or not codes.shape or cols <= 0:
        return None
    kind = f"int{bits}-{'sym' if zero is None else 'asym'}"
    precision = _precision(f"onnx:{f'hqq{bits}' if zero is not None and 'FLOAT' in zero.element else kind}-g{block}")
    if precision is None:
        return None
    parts = {"B": codes, "scales": scales} | ({} if zero is None else {"zero_points": zero})
    return _Weight(_stem(codes.name).removesuffix(TRANSPOSED), precision, (codes.shape[0], cols), parts)


def _rows(
    codes: Constant | None, scales: Constant | None, zero: Constant | None, bits: int, block: int, cols: int
) -> _Weight | None:
    """Return a weight of GatherBlockQuantized; `cols` is 0 if its rows end where its codes do."""
    if codes is None or codes.element != "UINT8" or len(codes.shape) != 2:
        return None
    return _blocks(codes, scales, zero, bits, block, cols or codes.shape[1] * 8 // max(bits, 1))


def _factor(
    operator: str, inputs: Sequence[Constant | None], constant: Callable[[str], Constant | None]
) -> _Weight | None:
    """Return the constant matrix of a product of integers; None if it has none."""
    at, scale, zero = _PRODUCTS[operator]
    codes = inputs[at] if len(inputs) > max(at, scale or 0, zero) else None
    if codes is None:
        return None
    named = constant(f"{codes.name.removesuffix('_quantized')}_scale") if scale is None else inputs[scale]
    return _turned(codes, named, inputs[zero])


def _turned(codes: Constant, scale: Constant | None, zero: Constant | None) -> _Weight | None:
    """Return a matrix that is stored as [in, out], with a scale a column or one; None if it does not match."""
    if scale is None or zero is None or len(codes.shape) != 2 or codes.element not in ("INT8", "UINT8"):
        return None
    where = "tensor" if scale.shape in ((), (1,)) else "channel"
    if where == "channel" and scale.shape != codes.shape[1:]:
        return None
    precision = _precision(f"onnx:{codes.element.lower()}-asym-{where}")
    parts = {"codes": codes, "scale": scale, "zero_point": zero}
    name = _stem(codes.name).removesuffix(TRANSPOSED)
    return None if precision is None else _Weight(name, precision, codes.shape[::-1], parts, turned=True)


def _linear(
    codes: Constant | None, scale: Constant | None, zero: Constant | None, axis: int, block: int
) -> _Weight | None:
    """Return a weight of DequantizeLinear; None if its constants do not match a precision."""
    if codes is None or scale is None or not codes.shape:
        return None
    stem, sym = _stem(codes.name), "sym" if zero is None else "asym"
    rank = len(codes.shape)
    if block and axis % rank == rank - 1 and codes.element in ("INT4", "UINT4", "INT8", "UINT8"):
        if (codes.element[0] == "U") == (zero is None):
            return None
        precision = _precision(f"onnx:int{codes.element[-1]}-{sym}-g{block}")
        parts = {"B": codes, "scales": scale} | ({} if zero is None else {"zero_points": zero})
        return None if precision is None else _Weight(stem, precision, codes.shape, parts, standard=True)
    parts = {"codes": codes, "scale": scale} | ({} if zero is None else {"zero_point": zero})
    if block and rank == 2 and axis == 0 and codes.element in ("INT4", "UINT4"):
        precision = _precision(f"onnx:qdq_int4-{sym}-g{block}")
        return None if precision is None else _Weight(stem, precision, codes.shape[::-1], parts)
    if block or codes.element not in ("INT8", "UINT8") or zero is None:
        return None
    where = "channel" if scale.shape == (math.prod(codes.shape[:-1]),) and axis == 0 else "tensor"
    if where == "tensor" and scale.shape not in ((), (1,)):
        return None
    # A weight with a zero point has an asymmetric grid, of which a symmetric one is a special case.
    precision = _precision(f"onnx:{codes.element.lower()}-asym-{where}")
    return None if precision is None else _Weight(stem, precision, codes.shape, parts)


def _agrees(weight: _Weight) -> bool:
    """Return whether the constants have the sizes of the precision's parts."""
    if not fits(weight.precision, weight.shape):
        return False
    layouts = part_layouts(weight.precision, weight.shape)
    if layouts is None or layouts.keys() != weight.parts.keys():
        return False
    for key, layout in layouts.items():
        part, count = weight.parts[key], math.prod(layout.shape)
        if part.element in PACKED:
            if part.nbytes != count:
                return False
        elif (
            part.element not in _DTYPES
            or math.prod(part.shape) != count
            or (layout.dtype == "float32") != ("FLOAT" in part.element)
        ):
            return False
    return True


def _precision(name: str) -> Precision | None:
    try:
        return find_precision(name)
    except UnknownPrecisionError:
        return None


def _stem(name: str) -> str:
    return next((name.removesuffix(suffix) for suffix in _SUFFIXES if name.endswith(suffix)), name)


__all__ = ["LIMIT", "TRANSPOSED", "Constant", "Parsed", "constant_bytes", "graphs_of", "parse", "tensors"]
