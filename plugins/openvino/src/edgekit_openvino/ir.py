"""Reading the IR: an XML that describes the graph, and a .bin with its constants. Foreign files are hostile.

    <net version="11"> <layers> <layer id name type version> <data .../> ... </layer> </layers>
    <edges> <edge from-layer from-port to-layer to-port/> </edges> <rt_info> ... </rt_info> </net>

The XML is read with expat in one pass, without a tree, and a document type (and with it every entity) is refused, so
that a small file cannot grow. Every constant has to lie in the .bin with exactly the bytes of its type and shape, and
the .bin has to end where the last of them does: checked before the library sees the files, which trusts them.

Source: openvino 2026.4.1, IR version 11, `ir_deserializer.cpp`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn
from xml.parsers import expat

import attrs

from edgekit.errors import InvalidFileError, MissingFileError, UnsupportedModelError
from edgekit.files.foreign import CURE, shown
from edgekit_openvino.elements import ELEMENTS, constant_bytes

#: An XML takes some 500 bytes a layer; the largest models have a few megabytes.
XML_LIMIT = 512 << 20
#: Sets of operations besides the numbered ones: the library's own, and those of loaded extensions.
OTHER_OPSETS = frozenset({"extension", "ie_internal_opset", "type_relaxed_opset", "util", "experimental_opset"})
#: The newest numbered set of openvino 2026.4; a newer library is asked for its own.
NEWEST_OPSET = 17
_VERSIONS = (10, 11)


@attrs.define
class Layer:
    """An operation of the graph.

    Attributes:
        id, name, kind, opset: as the file has them; `kind` is the type of operation.
        data: its attributes.
        inputs: port -> (layer, port) that feeds it, in the order of the ports.
        nested: whether it is part of another operation's body (If, Loop).
        line: of the file.
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
    """A constant of the graph: where its bytes lie in the .bin."""

    name: str
    element: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@attrs.frozen(eq=False)
class Graph:
    """What an XML says.

    Attributes:
        path: the XML.
        layers: those of the graph itself, by id.
        constants: the constants among them, by id.
    """

    path: Path
    layers: Mapping[str, Layer]
    constants: Mapping[str, Constant]

    def consumers(self) -> dict[str, list[Layer]]:
        """For each layer's id the layers that it feeds."""
        found: dict[str, list[Layer]] = {}
        for layer in self.layers.values():
            for source, _ in layer.inputs.values():
                found.setdefault(source, []).append(layer)
        return found

    def source(self, layer: Layer, port: int) -> Layer | None:
        """The layer that feeds an input, counted from 0."""
        feeding = list(layer.inputs.values())
        return self.layers.get(feeding[port][0]) if port < len(feeding) else None


def read(xml: Path) -> Graph:
    """Read an IR's XML, and check it against its .bin.

    Raises:
        MissingFileError: there is no .bin.
        InvalidFileError: not an IR, hostile, or the .bin is not the one that belongs to it.
        UnsupportedModelError: operations of a set that the installed library does not know.
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
    if not xml.is_file():
        raise MissingFileError(f"{xml}: no such file; an IR is an .xml with its .bin beside it")
    if (size := xml.stat().st_size) > XML_LIMIT:
        raise InvalidFileError(f"{xml}: {size:,} bytes; no model's graph takes more than {XML_LIMIT:,}; {CURE}")
    return _Parser(xml).run()


class _Parser:
    """Collects layers and edges; what it does not know it passes over."""

    def __init__(self, xml: Path) -> None:
        self.xml, self.layers = xml, []  # type: ignore[var-annotated]
        self.open: list[Layer] = []
        self.graphs: list[dict[str, Layer]] = []
        self.depth, self.root = 0, ""
        self.expat = expat.ParserCreate()
        self.expat.StartElementHandler = self.start
        self.expat.EndElementHandler = self.end
        self.expat.StartDoctypeDeclHandler = self.doctype

    def run(self) -> list[Layer]:
        try:
            with self.xml.open("rb") as file:
                self.expat.ParseFile(file)
        except expat.ExpatError as error:
            self.fail(f"not well-formed XML: {expat.errors.messages[error.code]}")
        if self.root != "net":
            self.fail(f"the root is {shown(self.root)}, an IR's is 'net'")
        if not self.layers:
            self.fail("no layers")
        for layer in self.layers:
            layer.inputs = dict(sorted(layer.inputs.items()))
        return self.layers

    def fail(self, fault: str) -> NoReturn:
        raise InvalidFileError(f"{self.xml}: {fault} (line {self.expat.CurrentLineNumber}); {CURE}")

    def doctype(self, *_: object) -> None:
        self.fail("it declares a document type, with which a small file can grow without bound; no IR has one")

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self.depth += 1
        if self.depth > 64:
            self.fail("nested too deeply")
        match tag:
            case "net":
                self.start_net(attributes)
            case "layers":
                self.graphs.append({})
            case "layer":
                self.start_layer(attributes)
            case "data" if self.open:
                self.open[-1].data.update(attributes)
            case "edge" if self.graphs:
                self.edge(attributes)

    def end(self, tag: str) -> None:
        self.depth -= 1
        if tag == "layer" and self.open:
            self.open.pop()
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
        if not place.isdecimal():
            self.fail(f"an edge to port {shown(place)}")
        known[target].inputs[int(place)] = (source, port)


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
    """The newest numbered set of operations that the installed library knows."""
    import importlib.util

    if importlib.util.find_spec("openvino") is None:
        return NEWEST_OPSET
    from edgekit_openvino.library import openvino

    return max(int(name[5:]) for name in dir(openvino()) if re.fullmatch(r"opset\d+", name))


def _constant(xml: Path, layer: Layer) -> Constant:
    where = f"{xml}: constant {shown(layer.name)} (line {layer.line})"
    try:
        element, text = layer.data["element_type"], layer.data["shape"]
        offset, nbytes = int(layer.data["offset"]), int(layer.data["size"])
        shape = tuple(int(size) for size in text.split(",")) if text.strip() else ()
    except (KeyError, ValueError) as error:
        raise InvalidFileError(f"{where} does not say its type, shape, offset and size; {CURE}") from error
    if min(offset, nbytes, *shape, 0) < 0 or max((offset, nbytes, *shape)) >= 1 << 48:
        raise InvalidFileError(f"{where} has impossible sizes: shape {list(shape)}, {nbytes} bytes at {offset}; {CURE}")
    if element in ELEMENTS:
        wanted = constant_bytes(element, shape)
        if wanted != nbytes:
            raise InvalidFileError(f"{where} has {nbytes} bytes, {element} {list(shape)} takes {wanted}; {CURE}")
    elif element != "string":
        raise UnsupportedModelError(f"{where} is of type {shown(element)}, which this edgekit does not know")
    return Constant(layer.name, element, shape, offset, nbytes)


def _check_binary(xml: Path, binary: Path, constants: list[Constant]) -> None:
    if not constants:
        return
    if not binary.is_file():
        raise MissingFileError(f"{binary}: no such file; {xml.name} has its {len(constants)} constants there, fetch it")
    size, last = binary.stat().st_size, max(constants, key=lambda c: c.offset + c.nbytes)
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
