"""Computes with a model before and after a pass, on the same inputs; used in the process of a pass.

The inputs are seeded: token ids within the embedding, the mask and the positions that belong to them, no keys and
values of earlier tokens, noise for everything else. Where a pass fixed a shape, the inputs have it.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from edgekit.evaluation.outputs import difference
from edgekit.typing import F64, Array
from edgekit_olive.library import onnx, onnxruntime

Feed = dict[str, Array]
#: Number of the inputs, and of the tokens of one.
COUNT, LENGTH = 4, 8
#: Ways to say the size of a dimension that is empty before the first token.
_PAST = ("past", "past_sequence_length", "past_length")
_DTYPES = {"float": "float32", "float16": "float16", "double": "float64", "bool": "bool"}


@attrs.frozen
class Model:
    """A model of Olive's.

    Attributes:
        kind: ``onnx``, ``hf``, ``adapter`` (which its handler loads with the base model) or ``openvino``.
        path: its graph or its directory.
        handler: Olive's handler of it.
    """

    kind: str
    path: Path
    handler: Any = attrs.field(repr=False)


@attrs.frozen
class _Runner:
    """A loaded model: its inputs (name -> shape and numpy's dtype), and what computes its outputs by name."""

    inputs: Mapping[str, tuple[Sequence[Any], str]]
    run: Callable[[Feed], Mapping[str, Array]]


def compared(before: Model, after: Model) -> dict[str, Any]:
    """Return ``{"measured": …}`` for two models, or ``{"uncompared": reason}`` if their outputs cannot be compared.

    Raises:
        NonFiniteError: a model computes values that are not finite.
        Exception: as the framework does, if a model does not load or compute.
    """
    one, other = _load(before), _load(after)
    feeds = [_feed(one, other, before, seed) for seed in range(COUNT)]
    got = [other.run(_taken(other, feed)) for feed in feeds]
    missing = [name for name in (*one.inputs, *other.inputs) if name not in feeds[0]]
    if missing:
        return {"uncompared": f"no values are known for the input {missing[0]}"}
    renamed = set(other.inputs) - set(one.inputs)
    if renamed and before.kind == after.kind:
        return {"uncompared": f"the result has other inputs: {', '.join(sorted(renamed))}"}
    expected = [one.run(_taken(one, feed)) for feed in feeds]
    return _difference(expected, got)


def _difference(expected: Sequence[Mapping[str, Array]], got: Sequence[Mapping[str, Array]]) -> dict[str, Any]:
    name = next((name for name in expected[0] if name in got[0]), None)
    pairs = [
        (a[name], b[name]) if name is not None else (next(iter(a.values())), next(iter(b.values())))
        for a, b in zip(expected, got, strict=True)
    ]
    if any(a.shape != b.shape for a, b in pairs):
        return {"uncompared": f"the output has the shape {list(pairs[0][1].shape)}, before {list(pairs[0][0].shape)}"}
    return {"measured": difference([_wide(a) for a, _ in pairs], [_wide(b) for _, b in pairs])}


def _wide(array: Array) -> F64:
    return np.asarray(array, np.float64)


def _taken(runner: _Runner, feed: Feed) -> Feed:
    """Return the values that a model takes, in its dtypes."""
    return {name: feed[name].astype(dtype) for name, (_, dtype) in runner.inputs.items()}


def _feed(one: _Runner, other: _Runner, source: Model, seed: int) -> Feed:
    rng = np.random.default_rng(seed)
    # The shapes of the source, unless the pass fixed them.
    fixed = {n: each for n, each in other.inputs.items() if all(isinstance(size, int) for size in each[0])}
    wanted = {**other.inputs, **one.inputs, **fixed}
    limits = _limits(source)
    return {name: _values(name, shape, dtype, limits.get(name, 2), rng) for name, (shape, dtype) in wanted.items()}


def _values(name: str, shape: Sequence[Any], dtype: str, limit: int, rng: np.random.Generator) -> Array:
    sizes = tuple(_size(size, at, name) for at, size in enumerate(shape))
    if name == "attention_mask":
        return np.ones(sizes, dtype)
    if name == "token_type_ids":
        return np.zeros(sizes, dtype)
    if name in ("position_ids", "cache_position"):
        return np.broadcast_to(np.arange(sizes[-1]), sizes).astype(dtype)
    if np.dtype(dtype).kind in "iu":
        return rng.integers(0, limit, sizes).astype(dtype)
    return rng.standard_normal(sizes).astype(dtype)


def _size(size: Any, at: int, name: str) -> int:
    if isinstance(size, int):
        return size
    if str(size) in _PAST or (name.startswith("past") and at == 2):
        return 0
    return 1 if at == 0 else LENGTH


def _limits(model: Model) -> dict[str, int]:
    """Return the number of rows of the table in which each input is looked up, by its name."""
    if model.kind != "onnx":
        return {"input_ids": int(getattr(model.handler, "model_attributes", {}).get("vocab_size", 2))}
    graph = onnx().load(str(model.path), load_external_data=False).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    inputs = {each.name for each in graph.input}
    pairs = (
        (node.input[1], shapes[node.input[0]][0])
        for node in graph.node
        if node.op_type in ("Gather", "GatherBlockQuantized") and node.input[0] in shapes and node.input[1] in inputs
    )
    return dict(pairs)


def _load(model: Model) -> _Runner:
    return {"onnx": _onnx, "hf": _torch, "adapter": _torch, "openvino": _openvino}[model.kind](model)


def _onnx(model: Model) -> _Runner:
    library = onnxruntime()
    options = library.SessionOptions()
    options.log_severity_level = 4
    constant = _constant(model)
    session = library.InferenceSession(str(model.path), options, providers=["CPUExecutionProvider"])
    kinds = {port.name: port.type.removeprefix("tensor(").removesuffix(")") for port in session.get_inputs()}
    inputs = {
        port.name: (port.shape, _DTYPES.get(kinds[port.name], kinds[port.name]))
        for port in session.get_inputs()
        if port.name not in constant
    }
    names = [port.name for port in session.get_outputs()]
    return _Runner(inputs, lambda feed: dict(zip(names, session.run(None, {**feed, **constant}), strict=True)))


def _constant(model: Model) -> Feed:
    """Return the inputs whose values a pass wrote beside the graph: extracted adapters."""
    path = getattr(model.handler, "constant_inputs_path", None)
    found: Feed = importlib.import_module("olive.common.utils").load_weights(path) if path else {}
    return found


def _torch(model: Model) -> _Runner:
    torch = importlib.import_module("torch")
    module = model.handler.load_model(cache_model=False).eval()
    with contextlib.suppress(ValueError):  # a quantized module, which has its dtypes
        module = module.float()
    inputs = dict.fromkeys(("input_ids", "attention_mask"), ((1, LENGTH), "int64"))

    def run(feed: Feed) -> dict[str, Array]:
        with torch.no_grad():
            given = {name: torch.from_numpy(value) for name, value in feed.items()}
            output = module(**given)
        scores = getattr(output, "logits", None)
        name = "logits" if scores is not None else "last_hidden_state"
        return {name: (output[0] if scores is None else scores).float().numpy()}

    return _Runner(inputs, run)


def _openvino(model: Model) -> _Runner:
    core = importlib.import_module("openvino").Core()
    xml = model.path if model.path.suffix == ".xml" else next(model.path.glob("*.xml"))
    compiled = core.compile_model(str(xml), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    inputs = {}
    for port in compiled.inputs:
        sizes = [None if size.is_dynamic else size.get_length() for size in port.get_partial_shape()]
        inputs[port.get_any_name()] = (sizes, np.dtype(port.get_element_type().to_dtype()).name)

    def run(feed: Feed) -> dict[str, Array]:
        found = compiled.create_infer_request().infer(feed)
        return {next(iter(port.get_names()), str(n)): np.array(found[port]) for n, port in enumerate(compiled.outputs)}

    return _Runner(inputs, run)


__all__ = ["COUNT", "LENGTH", "Model", "compared"]
