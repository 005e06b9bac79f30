"""Folds the transposes of constant matrices, so that tools find the weights of products, under names that are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgekit_olive.library import onnx
from edgekit_olive.reading import TRANSPOSED

#: Hugging Face's name of an output head.
HEAD = "lm_head.weight"


def folded(proto: Any, *, tables: bool = True, products: bool = True) -> Any:
    """Return the graph with constant matrices in place of their transposes, and of FusedMatMul with one.

    The transpose of a table that is gathered too is the output head of a tied model. Its codes differ from the table's:
    it is called `HEAD`.

    Args:
        proto: an `onnx.ModelProto` with its weights; it is changed.
        tables: whether constants that are gathered, too, are stored a second time, transposed.
        products: whether FusedMatMul becomes MatMul.
    """
    graph, helper = proto.graph, onnx().numpy_helper
    constants = {tensor.name: tensor for tensor in graph.initializer}
    turned: dict[str, str] = {}
    gathered = {node.input[0] for node in graph.node if node.op_type == "Gather"} - {HEAD}

    def transposed(name: str, order: Sequence[int] | None = None) -> str:
        """Return the name of the constant with its axes in another order; by default the last two exchanged."""
        key = (HEAD if name in gathered and HEAD not in constants else name) + TRANSPOSED
        if key not in constants:
            array = helper.to_array(constants[name])
            order = order or (*range(array.ndim - 2), array.ndim - 1, array.ndim - 2)
            constants[key] = helper.from_array(np.ascontiguousarray(array.transpose(order)), key)
            graph.initializer.append(constants[key])
        return key

    kept = []
    for number, node in enumerate(graph.node):
        node.name = node.name or f"node.{number}"
        given = {attribute.name: onnx().helper.get_attribute_value(attribute) for attribute in node.attribute}
        matrix = node.input and node.input[0] in constants and len(constants[node.input[0]].dims) == 2
        if node.op_type == "Transpose" and matrix and (tables or node.input[0] not in gathered):
            turned[node.output[0]] = transposed(node.input[0], given.get("perm") or (1, 0))
            continue
        if products and node.op_type == "FusedMatMul" and node.input[1] in constants and _plain(given):
            node.input[1] = transposed(node.input[1]) if given.get("transB") else node.input[1]
            node.op_type, node.domain = "MatMul", ""
            del node.attribute[:]
        kept.append(node)
    for node in kept:
        for number, name in enumerate(node.input):
            node.input[number] = turned.get(name, name)
    del graph.node[:]
    graph.node.extend(kept)
    drop_unused(graph)
    return proto


def _plain(given: dict[str, Any]) -> bool:
    """Return whether a FusedMatMul does nothing but transpose its second input."""
    return given.get("alpha", 1.0) == 1.0 and not any(
        given.get(key) for key in ("transA", "transBatchA", "transBatchB")
    )


def drop_unused(graph: Any) -> None:
    """Remove the constants that no node reads."""
    used = {name for node in graph.node for name in node.input} | {each.name for each in graph.output}
    for node in graph.node:
        for attribute in node.attribute:
            used |= {name for inner in attribute.g.node for name in inner.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


__all__ = ["HEAD", "drop_unused", "folded"]
