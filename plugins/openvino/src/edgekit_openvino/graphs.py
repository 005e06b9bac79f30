"""Derives the graphs that the runtime needs from the IR's: all logits, the last logits, the last hidden states."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgekit.errors import InvalidFileError, UnsupportedModelError
from edgekit.files.memory import refuse_shortage
from edgekit_openvino.library import core, last_line, openvino

Variant = Literal["all", "last", "hidden"]


def read_model(xml: Path, mmap: bool = True) -> Any:
    """Return the `openvino.Model` of an IR that edgekit has checked.

    Raises:
        InvalidFileError: OpenVINO refuses the file; the message quotes it.
    """
    try:
        return core().read_model(str(xml), config={"ENABLE_MMAP": mmap})
    except RuntimeError as error:
        refuse_shortage(error, f"{xml}: reading it with OpenVINO")
        raise InvalidFileError(f"{xml}: OpenVINO refuses it: {last_line(error)}") from error


def variant(model: Any, which: Variant, path: Path) -> Any:
    """Return a decoder's graph with another output: all logits, those after the last token, or the last hidden states.

    Args:
        model: an `openvino.Model` whose first result is the logits; changed in place.
        which: ``all``, ``last`` or ``hidden``; an encoder's graph has its last states as output already.
        path: the file, for messages.

    Raises:
        UnsupportedModelError: the logits are not a product with an output matrix.
    """
    if which == "all" or "last_hidden_state" in model.outputs[0].names:  # of an encoder
        return model
    product = _output_product(model, path)
    if which == "hidden":
        return _with_result(model, product.input_value(0))
    op = openvino().opset13
    ints = [op.constant(np.array([n], np.int64)) for n in (-1, np.iinfo(np.int64).max, 1, 1)]
    last = op.slice(product.input_value(0), *ints)
    product.input(0).replace_source_output(last.output(0))
    model.validate_nodes_and_infer_types()
    return model


def _output_product(model: Any, path: Path) -> Any:
    """Return the product with the output matrix; between it and the result there may only be a soft cap."""
    node = model.outputs[0].get_node().input_value(0).get_node()
    while node.get_type_name() in ("Multiply", "Tanh", "Divide", "Add", "Convert"):
        node = node.input_value(0).get_node()
    if node.get_type_name() != "MatMul":
        raise UnsupportedModelError(f"{path}: its logits come of a {node.get_type_name()}, not of an output matrix")
    return node


def _with_result(model: Any, output: Any) -> Any:
    ov = openvino()
    result = ov.opset13.result(output)
    return ov.Model([result], model.get_sinks(), model.get_parameters(), "hidden")


__all__ = ["Variant", "read_model", "variant"]
