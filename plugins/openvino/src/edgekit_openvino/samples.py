"""The inputs of an `openvino.Model`, and default samples of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgekit.errors import UsageError
from edgekit.evaluation.samples import OF_TOKENS, Feed, Input
from edgekit.typing import Array

#: numpy's dtype by OpenVINO's name of an element type; arrays of other types are passed unchanged.
_DTYPES = {
    **{f"f{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{f"{sign}{bits}": f"{name}{bits}" for sign, name in (("i", "int"), ("u", "uint")) for bits in (8, 16, 32, 64)},
    "boolean": "bool",
}


def inputs_of(model: Any) -> tuple[Input, ...]:
    """Return the inputs of an `openvino.Model`, in its order."""
    return tuple(_openvino_input(port) for port in model.inputs)


def _openvino_input(port: Any) -> Input:
    partial = port.get_partial_shape()
    shape = tuple(None if n.is_dynamic else n.get_length() for n in partial) if partial.rank.is_static else None
    names = port.get_names()
    name = min(names, key=lambda n: (len(n), n)) if names else port.get_node().get_friendly_name()
    kind = port.get_element_type().get_type_name()
    return Input(name, shape, _DTYPES.get(kind, kind))


def probes(model: Any, count: int = 4, length: int = 32) -> list[Feed]:
    """Return default samples: seeded noise, and random token ids within the model's embedding table.

    Raises:
        UsageError: the allowed values of an input are unknown.
    """
    inputs, limits = inputs_of(model), _limits(model)
    return [_probe(inputs, limits, np.random.default_rng(seed), length) for seed in range(count)]


def _probe(inputs: Sequence[Input], limits: Mapping[str, int], rng: np.random.Generator, length: int) -> Feed:
    sequences = [each.shape for each in inputs if each.name in OF_TOKENS and each.shape and len(each.shape) == 2]
    length = next((shape[1] for shape in sequences if shape[1] is not None), length)
    ids = rng.integers(0, limits.get("input_ids", 2), length)
    return {each.name: _probe_of(each, ids, limits, rng).astype(each.dtype) for each in inputs}


def _probe_of(each: Input, ids: Array, limits: Mapping[str, int], rng: np.random.Generator) -> Array:
    if each.shape is None:
        raise UsageError(f"the input {each} has no rank; give samples with calibration=")
    shape = tuple(1 if n is None and at == 0 else len(ids) if n is None else n for at, n in enumerate(each.shape))
    if each.name in OF_TOKENS:
        return np.broadcast_to(OF_TOKENS[each.name](ids), shape)
    if np.dtype(each.dtype).kind in "iu":
        return rng.integers(0, limits.get(each.name, 2), shape)
    return rng.standard_normal(shape)


def _limits(model: Any) -> dict[str, int]:
    """Return the number of rows of the table in which each integer input is looked up, by the input's name."""
    limits: dict[str, int] = {}
    for op in model.get_ops():
        if op.get_type_name() == "Gather" and op.input(0).get_partial_shape().rank.is_static:
            rows, parameter = op.input(0).get_partial_shape()[0], _origin(op.input_value(1).get_node())
            if rows.is_static and parameter is not None:
                name = _openvino_input(parameter.output(0)).name
                limits[name] = min(rows.get_length(), limits.get(name, rows.get_length()))
    return limits


def _origin(node: Any) -> Any | None:
    """Return the model's input that a node passes on unchanged; None if it does not."""
    while node.get_type_name() in ("Convert", "Reshape", "Unsqueeze", "Squeeze"):
        node = node.input_value(0).get_node()
    return node if node.get_type_name() == "Parameter" else None


__all__ = ["inputs_of", "probes"]
