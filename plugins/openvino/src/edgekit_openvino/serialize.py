"""From a graph without values to an IR's XML.

A weight takes part in the graph as a Parameter of its type and shape: nothing is allocated for it, whatever its size.
The library writes the XML; every such Parameter then becomes the Const that it stands for, at its place in the .bin,
to which the small constants of the graph itself (shapes, axes, frequencies) are appended.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import numpy as np

from edgekit.files.temporary import temporary_directory
from edgekit.precision import Precision
from edgekit.reference.openvino.codebooks import CB4
from edgekit_openvino.elements import Stored, stored_parts
from edgekit_openvino.library import openvino

#: Where constants begin: the library maps the .bin into memory and uses aligned ones in place.
ALIGNMENT = 64


@attrs.frozen
class Placed:
    """A constant, and where it begins in the .bin."""

    stored: Stored
    offset: int


@attrs.define(eq=False)
class Placeholders:
    """Makes the nodes of weights whose values lie elsewhere.

    Attributes:
        parameters: what stands for constants, by name.
    """

    parameters: dict[str, Any] = attrs.field(factory=dict)

    def weight(self, name: str, precision: Precision, shape: tuple[int, ...]) -> Any:
        """A float32 node of that shape, out of the constants of the precision."""
        parts = {key: self._parameter(stored) for key, stored in stored_parts(name, precision, shape).items()}
        if precision.convention == "float":
            values = parts["values"]
            return values if precision.kind == "F32" else _named(_convert(values, "f32"), f"{name}/convert")
        return dequantized(name, parts, precision, shape)

    def _parameter(self, stored: Stored) -> Any:
        ov = openvino()
        node = ov.opset13.parameter(list(stored.shape), getattr(ov.Type, stored.element), name=stored.name)
        self.parameters[stored.name] = node
        return node


def dequantized(name: str, parts: Mapping[str, Any], precision: Precision, shape: tuple[int, ...]) -> Any:
    """Nodes that decode a weight, as NNCF arranges and names them: what the device plugins look for.

    Args:
        name: of the weight.
        parts: nodes of its constants.
        precision: its number format.
        shape: of the weight.
    """
    op = openvino().opset13
    values = _cb4(name, parts["codes"]) if precision.kind == "cb4" else _convert(parts["codes"], "f16")
    if "zero_point" in parts:
        values = op.subtract(values, _convert(parts["zero_point"], "f16"))
        values = _named(values, f"{name}/zero_point/subtract")
    values = _named(op.multiply(values, _scale(name, parts, precision)), f"{name}/fq_weights_1")
    if precision.block:
        values = op.reshape(values, op.constant(np.array(shape, np.int64)), False)
    return _named(_convert(values, "f32"), f"{name}/fq_weights_1/convert")


def _scale(name: str, parts: Mapping[str, Any], precision: Precision) -> Any:
    if precision.scale_dtype == "float16":
        return parts["scale"]
    if "global_scale" not in parts:
        return _convert(parts["scale"], "f16")
    product = openvino().opset13.multiply(_convert(parts["scale"], "f32"), parts["global_scale"])
    return _convert(_named(product, f"{name}/dequantized_scale_1"), "f16")


def _cb4(name: str, codes: Any) -> Any:
    """The sixteen levels, looked up."""
    ov = openvino()
    levels = ov.op.Constant(ov.Type.f8e4m3, ov.Shape([len(CB4)]), CB4.tolist())
    axis = ov.opset13.constant(np.array(0, np.int64))
    looked_up = ov.opset13.gather(_convert(levels, "f16"), _convert(codes, "u8"), axis)
    return _named(looked_up, f"{name}_nncf_codebook")


def _convert(node: Any, element: str) -> Any:
    return openvino().opset13.convert(node, element)


def _named(node: Any, name: str) -> Any:
    node.set_friendly_name(name)
    return node


def xml_of(
    build: Callable[[Placeholders], Any], places: Mapping[str, Placed], end: int, info: Mapping[str, str]
) -> tuple[bytes, bytes]:
    """The XML of a graph, and what it needs in the .bin after the weights.

    Args:
        build: makes the `openvino.Model`, its weights from the placeholders.
        places: the weights' constants in the .bin, by name.
        end: how far they reach.
        info: what to note in the XML about its making.

    Returns:
        The XML, and the bytes to write at `aligned(end)`.
    """
    placeholders = Placeholders()
    model = build(placeholders)
    for key, value in info.items():
        model.set_rt_info(value, ["edgekit", key])
    with temporary_directory("serializing the graph with OpenVINO") as folder:
        xml, binary = folder / "graph.xml", folder / "graph.bin"
        openvino().serialize(model, str(xml), str(binary))
        tree, small = ET.parse(xml), binary.read_bytes()
    _place(tree.getroot(), places, aligned(end))
    return ET.tostring(tree.getroot(), encoding="utf-8", xml_declaration=True) + b"\n", small


def aligned(offset: int) -> int:
    """The next place at which a constant may begin."""
    return -(-offset // ALIGNMENT) * ALIGNMENT


def _place(root: ET.Element, places: Mapping[str, Placed], shift: int) -> None:
    for layer in root.iter("layer"):
        data = layer.find("data")
        if layer.get("type") == "Parameter" and layer.get("name") in places:
            _become_constant(layer, places[layer.attrib["name"]])
        elif layer.get("type") == "Const" and data is not None:
            data.set("offset", str(int(data.attrib["offset"]) + shift))


def _become_constant(layer: ET.Element, placed: Placed) -> None:
    stored = placed.stored
    layer.set("type", "Const")
    data = layer.find("data")
    assert data is not None
    data.attrib.clear()
    data.set("element_type", stored.element)
    data.set("shape", ", ".join(map(str, stored.shape)))
    data.set("offset", str(placed.offset))
    data.set("size", str(stored.nbytes))
    for port in layer.iter("port"):
        port.attrib.pop("names", None)


__all__ = ["ALIGNMENT", "Placed", "Placeholders", "aligned", "dequantized", "xml_of"]
