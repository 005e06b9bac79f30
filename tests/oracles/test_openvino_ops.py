"""The operations of the OpenVINO plugin against numpy's, one by one: `edgekit.testing.operations`."""

from __future__ import annotations

import ast
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

os.environ["NNCF_CI"] = "1"  # no telemetry

import numpy as np
import openvino as ov
from openvino_cases import EXACT

from edgekit.architectures.ops import OPERATIONS, Recorder
from edgekit.testing.operations import OpsSubject, ops_checks
from edgekit_openvino.ops import GraphOps


def compute(program, weights: Mapping[str, np.ndarray], steps: Sequence) -> list[np.ndarray]:
    """A program as a graph whose values are parameters, run step by step."""
    recorder = Recorder()
    program(recorder, [object()] * len(steps[0][1]))
    shapes = {name: values.shape for name, values in weights.items()}
    graph = GraphOps(shapes, recorder.calls, lambda name: ov.opset13.constant(weights[name]))
    inputs = [
        ov.opset13.parameter([-1, *(-1 if axis == _tokens(x) else size for axis, size in enumerate(x.shape[1:], 1))])
        for x in steps[0][1]
    ]
    for number, node in enumerate(inputs):
        node.get_output_tensor(0).set_names({f"input {number}"})
    result = program(graph, inputs)
    request = ov.compile_model(graph.model(result, "program", inputs), "CPU", EXACT).create_infer_request()
    found, seen = [], 0
    for tokens, values in steps:
        batch, n = tokens.shape
        seen += n
        given = {
            "input_ids": tokens.astype(np.int64),
            "attention_mask": np.ones((batch, seen), np.int64),
            "position_ids": np.broadcast_to(np.arange(seen - n, seen), (batch, n)).astype(np.int64),
            "beam_idx": np.arange(batch, dtype=np.int32),
        }
        given |= {f"input {number}": x for number, x in enumerate(values)}
        found.append(request.infer(given)["logits"].copy())
    return found


def _tokens(x: np.ndarray) -> int:
    """The axis of the tokens: states [batch, n, width], heads [batch, heads, n, size]."""
    return x.ndim - 2


OPENVINO = OpsSubject("openvino", [name for name in OPERATIONS if hasattr(GraphOps, name)], compute)


@ops_checks(OPENVINO)
def test_operations(check):
    check()


def test_the_table_of_families_names_what_is_lacking():
    text = (Path(__file__).parents[2] / "docs" / "generate.py").read_text("utf-8")
    assigned = {ast.unparse(n.targets[0]): n.value for n in ast.parse(text).body if isinstance(n, ast.Assign)}
    lacking = [name for name in OPERATIONS if not hasattr(GraphOps, name)]
    assert list(ast.literal_eval(assigned["OPENVINO_LACKS"])) == lacking
