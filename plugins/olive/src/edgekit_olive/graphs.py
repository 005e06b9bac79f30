"""Derives the graphs that the runtime needs from the file's: all logits, the last logits, the last hidden states."""

from __future__ import annotations

from typing import Any, Literal

from edgekit_olive.graph import STATES
from edgekit_olive.library import onnx
from edgekit_olive.weights import EXACT

Variant = Literal["all", "last", "hidden"]


def variant(proto: Any, which: Variant) -> Any:
    """Return a decoder's graph with another output: all logits, those after the last token, or the last hidden states.

    Args:
        proto: an `onnx.ModelProto`; it is not changed.
        which: ``all``, ``last`` or ``hidden``.

    Returns:
        A changed copy; `proto` itself for ``all``, for an encoder, and if the graph's metadata does not name the
        hidden states.
    """
    states = states_of(proto)
    predicts = any(output.name == "logits" for output in proto.graph.output)
    if which == "all" or states is None or not predicts:
        return proto
    changed = type(proto)()
    changed.CopyFrom(proto)
    if which == "hidden":
        _give(changed.graph, states)
        return changed
    _cut(changed.graph, states)
    return changed


def exact(proto: Any) -> Any:
    """A copy of a graph whose MatMulNBits and QMoE round no activations."""
    helper = onnx().helper
    changed = type(proto)()
    changed.CopyFrom(proto)
    for node in changed.graph.node:
        if node.op_type in ("MatMulNBits", "QMoE"):
            kept = [attribute for attribute in node.attribute if attribute.name != "accuracy_level"]
            del node.attribute[:]
            node.attribute.extend([*kept, helper.make_attribute("accuracy_level", EXACT)])
    return changed


def states_of(proto: Any) -> str | None:
    """Return the name of the normalized hidden states, which the metadata of edgekit's graphs has; else None."""
    found = {entry.key: entry.value for entry in proto.metadata_props}
    return found.get(STATES)


def multiplies_out(proto: Any) -> bool:
    """Return whether ONNX Runtime decodes weights of 8 bits to float32 in each run.

    It does where only the weights are quantized, with a scale a row or one: blocks become MatMulNBits, and products of
    quantized activations take the codes.
    """
    constants = {tensor.name for tensor in proto.graph.initializer if len(tensor.dims) > 1}
    kinds = {node.op_type for node in proto.graph.node}
    return "QuantizeLinear" not in kinds and any(
        node.op_type == "DequantizeLinear"
        and node.input[0] in constants
        and not any(each.name == "block_size" and each.i for each in node.attribute)
        for node in proto.graph.node
    )


def _give(graph: Any, states: str) -> None:
    """Make the hidden states the first output instead of the logits; ONNX Runtime drops what only those need."""
    library = onnx()
    outputs = [output for output in graph.output if output.name != "logits"]
    del graph.output[:]
    graph.output.append(library.helper.make_tensor_value_info(states, library.TensorProto.FLOAT, None))
    graph.output.extend(outputs)


def _cut(graph: Any, states: str) -> None:
    """Insert nodes that pass only the last token's hidden state to the nodes after it."""
    library = onnx()
    place = next(n for n, node in enumerate(graph.node) if states in node.output)
    last = f"{states}.last"
    for node in graph.node[place + 1 :]:
        for number, name in enumerate(node.input):
            if name == states:
                node.input[number] = last
    minus_one = library.helper.make_tensor(f"{last}.index", library.TensorProto.INT64, [1], [-1])
    graph.initializer.append(minus_one)
    node = library.helper.make_node("Gather", [states, minus_one.name], [last], name=f"{last}_node", axis=1)
    graph.node.insert(place + 1, node)


__all__ = ["Variant", "exact", "multiplies_out", "states_of", "variant"]
