"""Reads an IR: an XML file that describes the graph, and a .bin with its constants. Files are untrusted.

    <net version="11"> <layers> <layer id name type version> <data .../> ... </layer> </layers>
    <edges> <edge from-layer from-port to-layer to-port/> </edges> <rt_info> ... </rt_info> </net>

The XML is read with expat in one pass, without building a tree. Refused are a document type (and with it every entity,
so that a small file cannot expand), encodings other than UTF-8, and files beyond the limits below. Every constant must
be inside the .bin with exactly the bytes of its type and shape, and the .bin must end with the last of them. All of
this is checked before the files are passed to openvino, which does not check them.

Source: openvino 2026.4.1, IR version 11, `ir_deserializer.cpp`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn
from xml.parsers import expat

import attrs

from edgekit.errors import EdgekitError, InvalidFileError, MissingFileError, UnsupportedModelError
from edgekit.files.foreign import CURE, integer, shown
from edgekit.files.memory import enough_memory
from edgekit.files.reader import Reader
from edgekit_openvino.elements import ELEMENTS, constant_bytes

#: Largest size of an XML in bytes; a layer takes about 500, and the largest models have a few megabytes.
XML_LIMIT = 512 << 20
#: Largest number of layers and of edges; 48 blocks with 128 unfused experts each have about 200,000 layers.
MAX_LAYERS, MAX_EDGES = 1 << 19, 1 << 21
#: Largest size in bytes of a tag with its attributes, or of a comment; chat templates have up to 100,000.
MAX_TAG = 4 << 20
#: Largest number of attributes of a layer's data; operations have a dozen.
MAX_ATTRIBUTES = 1024
#: Largest number of dimensions of a constant, and largest depth of elements.
MAX_DIMENSIONS, MAX_DEPTH = 32, 64
#: Bytes passed to expat at a time; an incomplete tag is scanned again with each piece.
_PIECE = 1 << 19
#: Operation sets without a number: openvino's own, and those of loaded extensions.
OTHER_OPSETS = frozenset({"extension", "ie_internal_opset", "type_relaxed_opset", "util", "experimental_opset"})
#: The newest numbered set in openvino 2026.4; for a newer installed version see `newest_opset`.
NEWEST_OPSET = 17
_VERSIONS = (10, 11)
_ENCODINGS = ("utf-8", "utf8", "us-ascii", "ascii")


@attrs.define
class Layer:
    """An operation of the graph.

    Attributes:
        id, name, kind, opset: as in the file; `kind` is the type of operation.
        data: its attributes.
        inputs: port -> (layer, port) that feeds it, in the order of the ports.
        nested: whether it is part of another operation's body (If, Loop).
        line: its line in the file.
    """

    id: str
    name: str
    kind: str
    opset: str
    data: dict[str, str] = attrs.field(factory=dict)
    inputs: dict[int, tuple[str, str]] = attrs.field(factory=dict)
    nested: bool = False
    line: int = 0


@attrs.frozen
class Constant:
    """A constant of the graph, with the position of its bytes in the .bin."""

    name: str
    element: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@attrs.frozen(eq=False)
class Graph:
    """The parsed XML.

    Attributes:
        path: the XML file.
        layers: the layers, without nested ones, by id.
        constants: the constants among them, by id.
    """

    path: Path
    layers: Mapping[str, Layer]
    constants: Mapping[str, Constant]

    def consumers(self) -> dict[str, list[Layer]]:
        """The layers that each layer feeds, by the id of the latter."""
        readers: dict[str, list[Layer]] = {}
        for layer in self.layers.values():
            for source, _ in layer.inputs.values():
                readers.setdefault(source, []).append(layer)
        return readers

    def source(self, layer: Layer, port: int) -> Layer | None:
        """Return the layer that feeds an input, counted from 0; None if there is none."""
        feeding = list(layer.inputs.values())
        return self.layers.get(feeding[port][0]) if port < len(feeding) else None


def read(xml: Path) -> Graph:
    """Read an IR's XML, and check it against its .bin.

    Raises:
        MissingFileError: there is no .bin.
        InvalidFileError: the file is not an IR or is malformed, or the .bin does not belong to it.
        UnsupportedModelError: the installed openvino does not support an operation set.
    """
    binary = xml.with_suffix(".bin")
    layers = _parse(xml)
    _refuse_opsets(xml, layers)
    constants = [(layer, _constant(xml, layer)) for layer in layers if layer.kind == "Const"]
    _check_binary(xml, binary, [constant for _, constant in constants])
    return Graph(
        xml,
        {layer.id: layer for layer in layers if not layer.nested},
        {layer.id: constant for layer, constant in constants if not layer.nested},
    )


def _parse(xml: Path) -> list[Layer]:
    if not xml.exists():
        raise MissingFileError(f"{xml}: no such file; an IR is an .xml with its .bin beside it")
    reader = Reader(xml)
    if reader.size > XML_LIMIT:
        raise InvalidFileError(f"{xml}: {reader.size:,} bytes; no model's graph takes more than {XML_LIMIT:,}; {CURE}")
    with enough_memory(f"{xml}: parsing it", reader.size):
        return _Parser(xml).run(reader)


class _Parser:
    """Collects the layers and edges of an XML; other elements are skipped."""

    def __init__(self, xml: Path) -> None:
        self.xml = xml
        self.layers: list[Layer] = []
        self.open: list[Layer] = []
        self.graphs: list[dict[str, Layer]] = []
        self.depth, self.edges, self.root = 0, 0, ""
        self.back = False  # inside a loop's <back_edges>, which name results and parameters of its body, and no ports
        self.expat = expat.ParserCreate()
        self.expat.XmlDeclHandler = self.declaration
        self.expat.StartElementHandler = self.start
        self.expat.EndElementHandler = self.end
        self.expat.StartDoctypeDeclHandler = self.doctype

    def run(self, reader: Reader) -> list[Layer]:
        try:
            self.feed(reader)
        except expat.ExpatError as error:
            self.fail(f"not well-formed XML: {expat.errors.messages[error.code]}")
        except (LookupError, ValueError) as error:  # Python's error for an encoding that expat lacks
            if isinstance(error, EdgekitError):
                raise
            self.fail(f"an encoding that is not known: {error!s:.80}")
        if self.root != "net":
            self.fail(f"the root is {shown(self.root)}, an IR's is 'net'")
        if not self.layers:
            self.fail("no layers")
        for layer in self.layers:
            layer.inputs = dict(sorted(layer.inputs.items()))
        return self.layers

    def feed(self, reader: Reader) -> None:
        """Pass the file to expat piece by piece, and limit the length of incomplete tags."""
        done = 0
        while piece := reader.read_bytes(done, _PIECE):
            if done == 0 and piece.startswith((b"\xfe\xff", b"\xff\xfe", b"\0", b"<\0")):
                self.fail("it is written in UTF-16 or UTF-32; an IR is in UTF-8")
            self.expat.Parse(piece, False)
            done += len(piece)
            if done - self.expat.CurrentByteIndex > MAX_TAG:
                self.fail(f"a tag or a comment of more than {MAX_TAG:,} bytes")
        self.expat.Parse(b"", True)

    def declaration(self, version: str, encoding: str | None, standalone: int) -> None:
        if encoding is not None and encoding.lower() not in _ENCODINGS:
            self.fail(f"it is written in {shown(encoding)}; an IR is in UTF-8")

    def fail(self, fault: str) -> NoReturn:
        raise InvalidFileError(f"{self.xml}: {fault} (line {self.expat.CurrentLineNumber}); {CURE}")

    def doctype(self, *_: object) -> None:
        self.fail("it declares a document type, with which a small file can grow without bound; no IR has one")

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self.fail(f"elements nested more than {MAX_DEPTH} deep")
        match tag:
            case "net":
                self.start_net(attributes)
            case "layers":
                self.graphs.append({})
            case "layer":
                self.start_layer(attributes)
            case "data" if self.open:
                self.data(attributes)
            case "back_edges":
                self.back = True
            case "edge" if self.graphs and not self.back:
                self.edge(attributes)

    def data(self, attributes: dict[str, str]) -> None:
        known = self.open[-1].data
        known.update(attributes)
        if len(known) > MAX_ATTRIBUTES:
            self.fail(f"a layer with more than {MAX_ATTRIBUTES:,} attributes")

    def end(self, tag: str) -> None:
        self.depth -= 1
        if tag == "layer" and self.open:
            self.open.pop()
        elif tag == "back_edges":
            self.back = False
        elif tag == "edges" and self.graphs:
            self.graphs.pop()

    def start_net(self, attributes: dict[str, str]) -> None:
        self.root = "net"
        version = attributes.get("version", "")
        if version not in map(str, _VERSIONS):
            self.fail(f"IR version {shown(version)}; this edgekit reads {' and '.join(map(str, _VERSIONS))}")

    def start_layer(self, attributes: dict[str, str]) -> None:
        if not self.graphs or self.root != "net":
            self.fail("a layer outside of layers")
        lacking = [key for key in ("id", "name", "type") if key not in attributes]
        if lacking:
            self.fail(f"a layer without {lacking[0]}")
        layer = Layer(
            attributes["id"],
            attributes["name"],
            attributes["type"],
            attributes.get("version", "opset1"),
            nested=bool(self.open),
            line=self.expat.CurrentLineNumber,
        )
        if layer.id in self.graphs[-1]:
            self.fail(f"two layers have the id {shown(layer.id)}")
        if len(self.layers) == MAX_LAYERS:
            self.fail(f"more than {MAX_LAYERS:,} layers")
        self.graphs[-1][layer.id] = layer
        self.layers.append(layer)
        self.open.append(layer)

    def edge(self, attributes: dict[str, str]) -> None:
        try:
            source, port = attributes["from-layer"], attributes["from-port"]
            target, place = attributes["to-layer"], attributes["to-port"]
        except KeyError as error:
            self.fail(f"an edge without {error.args[0]}")
        known = self.graphs[-1]
        if source not in known or target not in known:
            self.fail(f"an edge between layers {shown(source)} and {shown(target)}, which are not both there")
        number = integer(place)
        if number is None or number < 0:
            self.fail(f"an edge to port {shown(place)}")
        self.edges += 1
        if self.edges > MAX_EDGES:
            self.fail(f"more than {MAX_EDGES:,} edges")
        known[target].inputs[number] = (source, port)


def _refuse_opsets(xml: Path, layers: list[Layer]) -> None:
    newest = newest_opset()
    for layer in layers:
        if layer.opset in OTHER_OPSETS:
            continue
        match = re.fullmatch(r"opset([1-9][0-9]?)", layer.opset)
        if match is None or int(match[1]) > newest:
            raise UnsupportedModelError(
                f"{xml}: layer {shown(layer.name)} is of {shown(layer.opset)}, the library here knows opset1 to "
                f"opset{newest}; upgrade openvino, or export the model with an older one"
            )


def newest_opset() -> int:
    """Return the newest numbered operation set that the installed openvino supports."""
    import importlib.util

    if importlib.util.find_spec("openvino") is None:
        return NEWEST_OPSET
    from edgekit_openvino.library import openvino

    return max(int(name[5:]) for name in dir(openvino()) if re.fullmatch(r"opset\d+", name))


def _constant(xml: Path, layer: Layer) -> Constant:
    where = f"{xml}: constant {shown(layer.name)} (line {layer.line})"
    element, text = layer.data.get("element_type"), layer.data.get("shape", "")
    sizes = text.split(",", MAX_DIMENSIONS) if text.strip() else []
    shape = [integer(size.strip()) for size in sizes]
    offset, nbytes = (integer(layer.data.get(key, "")) for key in ("offset", "size"))
    if element is None or "shape" not in layer.data or offset is None or nbytes is None or None in shape:
        raise InvalidFileError(f"{where} does not say its type, shape, offset and size; {CURE}")
    dimensions = tuple(size for size in shape if size is not None)
    largest = max(offset, nbytes, math.prod(filter(None, dimensions)))
    if len(shape) > MAX_DIMENSIONS or min(offset, nbytes, *dimensions) < 0 or largest >= 1 << 48:
        raise InvalidFileError(
            f"{where} has impossible sizes: shape {shown(list(dimensions))}, {nbytes} bytes at {offset}; {CURE}"
        )
    if element in ELEMENTS:
        needed = constant_bytes(element, dimensions)
        if needed != nbytes:
            raise InvalidFileError(f"{where} has {nbytes} bytes, {element} {list(dimensions)} takes {needed}; {CURE}")
    elif element != "string":
        raise UnsupportedModelError(f"{where} is of type {shown(element)}, which this edgekit does not support")
    return Constant(layer.name, element, dimensions, offset, nbytes)


def _check_binary(xml: Path, binary: Path, constants: list[Constant]) -> None:
    if not constants:
        return
    if not binary.exists():
        raise MissingFileError(f"{binary}: no such file; {xml.name} has its {len(constants)} constants there, fetch it")
    size, last = Reader(binary).size, max(constants, key=lambda c: c.offset + c.nbytes)
    end = last.offset + last.nbytes
    if size < end:
        raise InvalidFileError(
            f"{binary}: {size:,} bytes, but constant {shown(last.name)} ends at byte {end:,}; it is cut off, "
            f"or belongs to another model; {CURE}"
        )
    if size > end:
        raise InvalidFileError(
            f"{binary}: {size:,} bytes, but the last constant, {shown(last.name)}, ends at byte {end:,}; it belongs "
            f"to another model; {CURE}"
        )


__all__ = [
    "MAX_ATTRIBUTES",
    "MAX_DEPTH",
    "MAX_DIMENSIONS",
    "MAX_EDGES",
    "MAX_LAYERS",
    "MAX_TAG",
    "NEWEST_OPSET",
    "OTHER_OPSETS",
    "XML_LIMIT",
    "Constant",
    "Graph",
    "Layer",
    "newest_opset",
    "read",
]
