"""The operations of the ONNX plugin against numpy's, one by one, in both dialects: `edgekit.testing.operations`."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime

from edgekit.architectures.ops import OPERATIONS, Recorder
from edgekit.precision import find_precision
from edgekit.testing.operations import OpsSubject, ops_checks
from edgekit_olive.builder import Builder
from edgekit_olive.elements import Stored
from edgekit_olive.graph import _model
from edgekit_olive.ops import GraphOps, Value, groupable
from edgekit_olive.weights import DATA, GraphWeights, Placed, Weight


def compute(program, weights: Mapping[str, np.ndarray], steps: Sequence, *, fused: bool) -> list[np.ndarray]:
    """A program as a graph whose values are inputs, run step by step."""
    recorder = Recorder()
    program(recorder, [object()] * len(steps[0][1]))
    builder, f32 = Builder(), find_precision("float:F32")
    placed, content = {}, b""
    for name, values in weights.items():
        stored = Stored(name, "FLOAT", values.shape, values.size * 4)
        placed[name] = Weight(name, f32, values.shape, {"values": Placed(stored, len(content))})
        content += np.ascontiguousarray(values, np.float32).tobytes()
    attends = any(call.operation == "attend" for call in recorder.calls)
    grouped = fused and attends and all(map(groupable, recorder.calls)) and _whole_heads(steps)
    graph = GraphOps(builder, GraphWeights(builder, placed, fused), fused=fused, grouped=grouped)
    inputs = [_input(builder, number, x) for number, x in enumerate(steps[0][1])]
    result = program(graph, inputs)
    heads = isinstance(result, Value) and result.heads
    builder.op("Identity", graph.real(result) if isinstance(result, Value) else result.present, output="result")
    builder.output("result", "FLOAT", None, first=True)
    model = _model(builder, "program", {})
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, DATA).write_bytes(content)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return _Run(session, bool(heads), grouped).of(steps)


class _Run:
    """Runs a session step by step, and carries what it remembers."""

    def __init__(self, session, heads: bool, grouped: bool) -> None:
        self.session, self.heads, self.grouped = session, heads, grouped
        self.ports = {port.name: port for port in session.get_inputs()}
        self.names = [port.name for port in session.get_outputs()]
        self.states: dict[str, np.ndarray] = {}
        self.seen = 0

    def of(self, steps: Sequence) -> list[np.ndarray]:
        return [np.concatenate([self._once(*part) for part in self._parts(*step)], axis=-2) for step in steps]

    def _parts(self, tokens: np.ndarray, values: Sequence[np.ndarray]):
        """GroupQueryAttention takes several new tokens of several sequences only where nothing is remembered."""
        if not (self.grouped and len(tokens) > 1 and self.seen):
            return [(tokens, values)]
        return [(tokens[:, i : i + 1], [x[..., i : i + 1, :] for x in values]) for i in range(tokens.shape[1])]

    def _once(self, tokens: np.ndarray, values: Sequence[np.ndarray]) -> np.ndarray:
        batch, n = tokens.shape
        self.seen += n
        given = {
            "input_ids": tokens.astype(np.int64),
            "attention_mask": np.ones((batch, self.seen), np.int64),
            "position_ids": np.broadcast_to(np.arange(self.seen - n, self.seen), (batch, n)).astype(np.int64),
        }
        given |= {f"input {number}": _inward(x) for number, x in enumerate(values)}
        for name, port in self.ports.items():
            if name.startswith("past"):
                sizes = [size if isinstance(size, int) else 0 for size in port.shape]
                given[name] = self.states.get(name, np.zeros([batch, *sizes[1:]], np.float32))
        found = self.session.run(None, {name: value for name, value in given.items() if name in self.ports})
        outputs = dict(zip(self.names, found, strict=True))
        self.states = {
            name: outputs[name.replace("past_key_values", "present").replace("past_", "present_")]
            for name in self.ports
            if name.startswith("past")
        }
        return outputs["result"].swapaxes(1, 2) if self.heads else outputs["result"]


def _whole_heads(steps) -> bool:
    return all(x.shape[-1] % 8 == 0 for _, values in steps for x in values if x.ndim == 4)


def _input(builder: Builder, number: int, x: np.ndarray) -> Value:
    name = builder.input(f"input {number}", "FLOAT", [None] * x.ndim)
    return Value(name, x.shape[-1], x.shape[1] if x.ndim == 4 else 0)


def _inward(x: np.ndarray) -> np.ndarray:
    """Heads as the graph has them, [batch, n, heads, size]."""
    return np.ascontiguousarray(x.swapaxes(1, 2)) if x.ndim == 4 else x


HAS = [name for name in OPERATIONS if hasattr(GraphOps, name)]
FUSED = OpsSubject("onnxruntime, fused", HAS, partial(compute, fused=True))
PORTABLE = OpsSubject("onnxruntime, portable", HAS, partial(compute, fused=False))


@ops_checks(FUSED)
def test_fused_operations(check):
    check()


@ops_checks(PORTABLE)
def test_portable_operations(check):
    check()
