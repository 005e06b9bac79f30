"""Gives the constants of an IR, which OpenVINO made of an ONNX graph, the names and shapes that they have in the graph.

OpenVINO's converter transposes the matrices of products, adds leading dimensions to norms' weights, and numbers what
comes out (``Transpose_3464``, ``Constant_4255``). The values stay, so they say which constant is which.
"""

from __future__ import annotations

import hashlib
import importlib
import math
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from edgekit.tensor import Tensor
from edgekit.typing import Array
from edgekit_olive.reading import parse, tensors

#: Element types of an IR's float constants -> numpy's.
_DTYPES = {"f32": "float32", "f16": "float16"}
#: Operations whose result is the same if a constant loses leading dimensions of size 1.
_BROADCASTING = ("Add", "Subtract", "Multiply", "Divide", "Power")
#: What `openvino.save_model` appends to the name of a constant that it narrows; the Convert after it has the name.
_NARROWED = "_compressed"


def restore(xml: Path, graph: Path) -> None:
    """Rename the float constants of an IR after those of a graph with the same values, and save it in place.

    A constant that OpenVINO narrowed to float16 is compared with the narrowed values. One without a counterpart keeps
    its name; so do those of whose values the IR has fewer or more than the graph.

    Args:
        xml: the IR, with its .bin beside it.
        graph: the ONNX graph that was converted.

    Raises:
        MissingPluginError: onnx is not installed.
        EdgekitError: the graph is malformed.
    """
    openvino = importlib.import_module("openvino")
    core = openvino.Core()
    core.set_property({"ENABLE_MMAP": False})  # the .bin is written again
    model = core.read_model(str(xml))
    constants = list(_constants(model))
    named = _named(graph, {each.values.dtype.name for each in constants})
    found: dict[tuple[Any, ...], list[_Constant]] = defaultdict(list)
    for each in constants:
        found[_key(each.values)].append(each)
    for key, alike in found.items():
        names = named.get(key, deque())
        if len(names) == len(alike):
            for each in alike:
                each.become(*names.popleft(), openvino)
    model.validate_nodes_and_infer_types()
    openvino.serialize(model, str(xml), str(xml.with_suffix(".bin")))


@attrs.frozen(eq=False)
class _Constant:
    """A float constant of an IR: its node, and its values."""

    node: Any
    values: Array

    def become(self, name: str, shape: tuple[int, ...], openvino: Any) -> None:
        """Take a name, and a shape if what reads the constant broadcasts it."""
        node, readers = self.node, _readers(self.node)
        narrowed = [each for each in readers if each.get_type_name() == "Convert"]
        used = [reader for each in readers for reader in (_readers(each) if each in narrowed else [each])]
        if tuple(node.shape) != shape and all(each.get_type_name() in _BROADCASTING for each in used):
            node = openvino.op.Constant(self.values.reshape(shape))
            for target in self.node.output(0).get_target_inputs():
                target.replace_source_output(node.output(0))
        node.set_friendly_name(f"{name}{_NARROWED}" if narrowed else name)
        for each in narrowed:
            each.set_friendly_name(name)


def _readers(node: Any) -> list[Any]:
    return [target.get_node() for target in node.output(0).get_target_inputs()]


def _constants(model: Any) -> Iterator[_Constant]:
    for node in model.get_ordered_ops():
        dtype = _DTYPES.get(node.get_element_type().get_type_name()) if node.get_type_name() == "Constant" else None
        if dtype is not None and math.prod(node.shape) > 1:
            yield _Constant(node, np.array(node.data, dtype))


def _named(graph: Path, dtypes: Iterable[str]) -> dict[tuple[Any, ...], deque[tuple[str, tuple[int, ...]]]]:
    """Return the names and shapes of a graph's float constants by the key of their values in each dtype."""
    parsed = parse(graph)
    named: dict[tuple[Any, ...], deque[tuple[str, tuple[int, ...]]]] = defaultdict(deque)
    floats = {name: each for name, each in tensors(parsed).items() if isinstance(each, Tensor)}
    values = {n: each.float32().reshape(each.shape) for n, each in floats.items() if "float" in each.dtype}
    for name, constant in parsed.constants.items():  # `tensors` leaves out what edgekit's own graphs compute with
        if name.startswith("constant.") and constant.element == "FLOAT" and math.prod(constant.shape) > 1:
            values[name] = constant.read(0, constant.nbytes).view(np.float32).reshape(constant.shape)
    for name, value in values.items():
        for dtype in dtypes:
            with np.errstate(over="ignore"):
                named[_key(value.astype(dtype))].append((name, value.shape))
    return named


def _key(values: Array) -> tuple[Any, ...]:
    """Return what is equal for arrays with the same values, apart from dimensions of size 1."""
    shape = tuple(size for size in values.shape if size != 1)
    return values.dtype.name, shape, hashlib.sha256(np.ascontiguousarray(values).tobytes()).digest()


__all__ = ["restore"]
