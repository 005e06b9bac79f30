"""Collects the nodes and constants of an ONNX graph; small constants are inside it, weights in a file beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from edgekit.typing import Array
from edgekit_olive.library import onnx

#: The domain of ONNX Runtime's own operators.
MICROSOFT = "com.microsoft"


class Builder:
    """A graph under construction. Values are identified by name; names depend only on the order of the calls.

    Args:
        prefix: prefix of every name, so that an inner graph has different names.

    Attributes:
        nodes: the nodes in the order of computation.
        initializers: the constants, by name.
        inputs, outputs: the graph's inputs and outputs, in order.
    """

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix
        self.nodes: list[Any] = []
        self.initializers: dict[str, Any] = {}
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self._counts: Counter[str] = Counter()
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def op(self, kind: str, *inputs: str, domain: str = "", output: str | None = None, **attributes: Any) -> str:
        """Add a node with one output; return the output's name."""
        return self.several(kind, inputs, [output or self.fresh(kind)], domain, **attributes)[0]

    def fused(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add one of ONNX Runtime's own operators with one output; return the output's name."""
        return self.op(kind, *inputs, domain=MICROSOFT, **attributes)

    def several(
        self, kind: str, inputs: Sequence[str], outputs: Sequence[str], domain: str = "", **attributes: Any
    ) -> list[str]:
        """Add a node with the given outputs and return their names; an empty name is an unused output."""
        name = self.fresh(f"{kind}_node")
        self.nodes.append(
            onnx().helper.make_node(kind, list(inputs), list(outputs), name=name, domain=domain, **attributes)
        )
        return list(outputs)

    def fresh(self, kind: str) -> str:
        """Return a name that no other value has."""
        self._counts[kind] += 1
        return f"{self._prefix}{kind.lower()}.{self._counts[kind] - 1}"

    def scan(
        self,
        state: str,
        sequences: Sequence[str],
        step: Callable[[Builder, str, Sequence[str]], tuple[str, str]],
        final: str,
    ) -> str:
        """Add a loop over the second dimension of sequences that carries a state.

        Args:
            state: the initial state.
            sequences: [batch, n, ...] each; an element is [batch, ...].
            step: adds the nodes of one step to the inner graph: given its builder, the state and an element of each
                sequence, the names of the next state and of an element of the result.
            final: name of the last state.

        Returns:
            The results, [batch, n, ...].
        """
        inner, helper = Builder(f"{self.fresh('Body')}/"), onnx().helper
        old = inner.input(f"{inner._prefix}state", "FLOAT", None)
        elements = [inner.input(f"{inner._prefix}element.{n}", "FLOAT", None) for n in range(len(sequences))]
        for name in step(inner, old, elements):
            inner.output(name, "FLOAT", None)
        constants = list(inner.initializers.values())
        body = helper.make_graph(inner.nodes, f"{inner._prefix}graph", inner.inputs, inner.outputs, constants)
        results = self.fresh("Scan")
        self.several(
            "Scan",
            (state, *sequences),
            (final, results),
            num_scan_inputs=len(sequences),
            scan_input_axes=[1] * len(sequences),
            scan_output_axes=[1],
            body=body,
        )
        return results

    def ints(self, values: int | Sequence[int]) -> str:
        """Add an int64 constant; return its name."""
        return self.constant(np.array(values, np.int64))

    def floats(self, values: float | Array) -> str:
        """Add a float32 constant; return its name."""
        return self.constant(np.asarray(values, np.float32))

    def constant(self, values: Array) -> str:
        """Add a constant inside the graph and return its name; equal constants are stored once."""
        key = values.dtype.str, values.shape, values.tobytes()
        if key not in self._constants:
            name = self._constants[key] = self.fresh("constant")
            self.initializers[name] = onnx().numpy_helper.from_array(values, name)
        return self._constants[key]

    def input(self, name: str, element: str, shape: Sequence[int | str | None] | None) -> str:
        """Add an input of the graph and return its name; names in the shape are dynamic dimensions."""
        self.inputs.append(self._value(name, element, shape))
        return name

    def output(self, name: str, element: str, shape: Sequence[int | str] | None, *, first: bool = False) -> None:
        """Make a value an output of the graph, before or after the others; a shape of None is unknown."""
        self.outputs.insert(0 if first else len(self.outputs), self._value(name, element, shape))

    def _value(self, name: str, element: str, shape: Sequence[int | str | None] | None) -> Any:
        library = onnx()
        return library.helper.make_tensor_value_info(name, getattr(library.TensorProto, element), shape)


__all__ = ["MICROSOFT", "Builder"]
