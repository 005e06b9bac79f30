"""Rounds a model layer by layer, each matrix for the inputs that it gets in the quantized model.

Two models compute the calibration text side by side: the original, and the partly quantized one. Within a layer the
order is Q, K and V, the attention's output, gate and up, down; the inputs of a matrix are computed after the matrices
before it have been quantized. A matrix is rounded in the metric of its inputs X' in the quantized model,
H = X'^T X' / tokens. Its target compensates a part of the error that those inputs already have:

    W + CORRECTION * W ((X - X')^T X' / tokens) H^-1

with X its inputs in the original model. CORRECTION = 1 would be the least squares solution, which overfits the text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor

import attrs
import numpy as np

from edgekit.architectures import Model
from edgekit.architectures.forward import Observe
from edgekit.errors import NonFiniteError
from edgekit.files.workers import Workers
from edgekit.pipeline.rounding._integers import Integers, Scratch, mean_product, spread_out
from edgekit.pipeline.rounding._kernels import NUMPY, Accumulate, Kernels
from edgekit.pipeline.rounding._matrix import Metric, round_matrix
from edgekit.pipeline.rounding._ordered import OrderedTransformer, threaded
from edgekit.pipeline.rounding.calibration import Calibration
from edgekit.tensor import AnyTensor, QuantizedTensor, Tensor
from edgekit.typing import F32, Indices

#: The share of the error of a matrix's inputs that its target compensates.
CORRECTION = 0.5
#: Rows of a matrix whose targets one thread computes.
_TARGETS = 288
#: Tokens of the original that go through a layer at once.
_TOGETHER = 2048
EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"


@attrs.frozen(eq=False)
class Matrix:
    """How a matrix is encoded and stored.

    Attributes:
        encode: encodes values [rows, cols], weighted by an importance [cols]; rounding starts from its scales.
        order: for each stored row, its index in the canonical matrix; None if the order is the same.
    """

    encode: Callable[[F32, F32 | None], QuantizedTensor]
    order: Indices | None = None


@attrs.frozen(eq=False)
class Walk:
    """Rounds the matrices of a model, layer by layer.

    Attributes:
        model: the original model.
        calibration: the token ids to compute on, and which matrices share an input.
        matrices: the matrices to round, by canonical name.
        pool: the threads to compute on.
        kernels: the arithmetic.
        others: the tensors that are quantized without feedback, decoded, by canonical name; the quantized model uses
            them.
        known: reads the matrices that an interrupted run has rounded, by canonical name; they are not rounded again.
        scratch: the memory of large arrays.
    """

    model: Model
    calibration: Calibration
    matrices: Mapping[str, Matrix]
    pool: Executor | None = None
    kernels: Kernels = NUMPY
    others: Mapping[str, AnyTensor] = attrs.field(factory=dict)
    known: Mapping[str, Callable[[], QuantizedTensor]] = attrs.field(factory=dict)
    scratch: Scratch = attrs.field(factory=Scratch, init=False, repr=False)

    def run(self, progress: Callable[[int, int, str], None] | None = None) -> Iterator[tuple[str, QuantizedTensor]]:
        """Yield the canonical name and the rounded tensor of each matrix, in the order of the forward pass."""
        layers, windows = self.model.config.layers, self.calibration.windows
        tensors = {**self.model.tensors, **self.others}
        embedding = self._embedding()
        if embedding is not None:
            tensors[EMBEDDING] = Tensor.of(EMBEDDING, embedding.dequantize())
            yield EMBEDDING, embedding
        original = _Original(self, self.computing(self.model.tensors).embedded(windows))
        rounded = self.computing(tensors).embedded(windows)
        with ThreadPoolExecutor(1, "edgekit-original") as ahead:
            following, free = ahead.submit(original.layer, 0), list[F32]()
            for layer in range(layers):
                if progress:
                    progress(layer, layers, f"layer {layer}")
                inputs = following.result()
                if layer + 1 < layers:
                    following = ahead.submit(original.layer, layer + 1, free)
                done: dict[str, QuantizedTensor] = {}
                step = _Layer(self, tensors, inputs, done)
                rounded = self.computing(tensors, step.observe).layer(layer, rounded)
                free = list(inputs.values())
                del step, inputs  # with the metric of the last matrix
                for name in done:  # decoded, they would fill the memory layer by layer
                    tensors[name] = self.model.tensors[name]
                yield from done.items()
        states = original.states
        del original, following, free  # the output matrix is large itself
        self.scratch.clear()
        yield from self._output(tensors, states, rounded)
        if progress:
            progress(layers, layers, "")

    @property
    def wide(self) -> Accumulate:
        """The kernel on all threads of the pool; code that runs in the pool must not use it."""
        return threaded(self.kernels.accumulate, self.pool)

    def computing(
        self, tensors: Mapping[str, AnyTensor], observe: Observe | None = None, keep: bool = False
    ) -> OrderedTransformer:
        """Return the model with the given tensors, each decoded anew when it is used unless they are kept."""
        model = Model(self.model.config, tensors)
        return OrderedTransformer(model, keep, observe, kernels=self.kernels, threads=self.pool, scratch=self.scratch)

    def _embedding(self) -> QuantizedTensor | None:
        """Return the embedding, rounded, if it is the output matrix too; else None.

        It is rounded for the output matrix's inputs in the original model: the quantized model starts with the
        embedding, so that its own inputs are not known yet.
        """
        if not self.model.config.tied or EMBEDDING not in self.matrices:
            return None
        if EMBEDDING in self.known:
            return self.known[EMBEDDING]()
        moment, matrix = self.calibration.moment(EMBEDDING), self.matrices[EMBEDDING]
        assert moment is not None
        weights = self.model.tensors[EMBEDDING].float32()
        encoded = matrix.encode(weights, np.einsum("ii->i", moment).copy())
        metric = Metric.of(moment, self.wide)
        return round_matrix(weights, encoded, metric, pool=self.pool, kernels=self.kernels)

    def _output(
        self, tensors: dict[str, AnyTensor], states: F32, rounded: F32
    ) -> Iterator[tuple[str, QuantizedTensor]]:
        """Yield the name and the rounded output matrix, if the model has one apart from the embedding."""
        if OUTPUT not in self.matrices:
            return
        final, last = (self.computing(self.model.tensors).normalized(x) for x in (states, rounded))
        done: dict[str, QuantizedTensor] = {}
        step = _Layer(self, tensors, {OUTPUT: final.reshape(-1, final.shape[-1])}, done)
        step.observe(OUTPUT, last.reshape(-1, last.shape[-1]))
        yield from done.items()


@attrs.define(eq=False)
class _Original:
    """The original model, which computes a layer while the layer before is rounded.

    Attributes:
        walk: of the model.
        states: the states after the last layer that was computed, float32 [count, context, width]; changed in place.
    """

    walk: Walk
    states: F32
    _scratch: Scratch = attrs.field(factory=Scratch, init=False)

    def layer(self, layer: int, free: Sequence[F32] = ()) -> dict[str, F32]:
        """Compute the next layer, some windows at a time; return its matrices' inputs, in the place of `free` arrays.

        The inputs [tokens, cols] are those of matrices that share them once.
        """
        walk, states, inputs, unused = self.walk, self.states, dict[str, F32](), list(free)
        context, rows = states.shape[1], slice(0)

        def record(name: str, x: F32) -> None:
            if all(matrix in walk.known for matrix in walk.calibration.inputs.get(name, ())):
                return
            if name not in inputs:
                inputs[name] = _reused(unused, (len(states) * context, x.shape[1]))
            inputs[name][rows] = x

        # The matrices that are being rounded come first: the threads would else have nothing to do between them.
        threads = walk.pool.later if isinstance(walk.pool, Workers) else walk.pool
        computing = walk.computing(walk.model.tensors, record, True)
        computing = attrs.evolve(computing, threads=threads, scratch=self._scratch)
        step = max(1, _TOGETHER // context)
        for start in range(0, len(states), step):
            windows = slice(start, min(start + step, len(states)))
            rows = slice(start * context, windows.stop * context)
            states[windows] = computing.layer(layer, states[windows])
        return inputs


def _reused(arrays: list[F32], shape: tuple[int, int]) -> F32:
    """An array of that shape, taken out of those if there is one."""
    same = next((k for k, array in enumerate(arrays) if array.shape == shape), None)
    return np.empty(shape, np.float32) if same is None else arrays.pop(same)


@attrs.define(eq=False)
class _Layer:
    """One layer of the quantized model; each matrix is rounded when its inputs are known, just before it is used."""

    walk: Walk
    tensors: dict[str, AnyTensor]
    inputs: Mapping[str, F32]
    done: dict[str, QuantizedTensor]
    _group: str = ""
    _metric: Metric | None = None
    _importance: F32 | None = None
    _lost: F32 | None = None

    def observe(self, name: str, x: F32) -> None:
        """Round a matrix for its inputs [tokens, cols], and use the rounded one from here on; ignore other names."""
        if name not in self.walk.matrices:
            return
        rounded = self.walk.known[name]() if name in self.walk.known else self._rounded(name, x)
        self.done[name] = rounded
        values, order = rounded.dequantize(), self.walk.matrices[name].order
        if order is not None:
            values[order] = values.copy()
        self.tensors[name] = Tensor.of(name, values)

    def _rounded(self, name: str, x: F32) -> QuantizedTensor:
        group = next(key for key, names in self.walk.calibration.inputs.items() if name in names)
        if group != self._group:
            self._enter(group, x)
        assert self._metric is not None
        matrix = self.walk.matrices[name]
        weights = self.walk.model.tensors[name].float32()
        target = self._target(weights if matrix.order is None else weights[matrix.order])
        encoded = matrix.encode(target, self._importance)
        return round_matrix(target, encoded, self._metric, pool=self.walk.pool, kernels=self.walk.kernels)

    def _enter(self, group: str, x: F32) -> None:
        """Compute the metric, the importance and the input error for a group of matrices with the same inputs."""
        walk, lost = self.walk, self.inputs[group]
        self._group, self._metric, self._lost = group, None, None
        turned = Integers.of_columns(x, walk.kernels, walk.pool, walk.scratch)
        if not np.isfinite(turned.scale).all():
            raise NonFiniteError(f"the input of {group} is not finite after the layers before are quantized")
        moment = mean_product(turned, turned, len(x), walk.kernels, walk.pool)
        self._importance = np.einsum("ii->i", moment).copy()
        self._metric = Metric.of(moment, walk.wide, reuse=True)
        lost -= x  # the original's inputs are not needed any more
        if lost.any():
            columns = Integers.of_columns(lost, walk.kernels, walk.pool, walk.scratch)
            self._lost = mean_product(columns, turned, len(x), walk.kernels, walk.pool)

    def _target(self, weights: F32) -> F32:
        """Return the values to round, float32 [rows, cols]: the weights, corrected for the error of the inputs."""
        if self._lost is None:
            return weights
        metric, lost, kernels = self._metric, self._lost, self.walk.kernels
        assert metric is not None
        target = np.empty_like(weights)

        def part(start: int) -> None:
            rows = slice(start, start + _TARGETS)
            turned = np.ascontiguousarray(weights[rows].T)
            moved = np.zeros_like(turned)
            kernels.accumulate(moved, lost, turned)
            target[rows] = (turned + np.float32(CORRECTION) * metric.solve(moved, kernels)).T

        spread_out(self.walk.pool, part, range(0, len(weights), _TARGETS))
        return target


__all__ = ["CORRECTION", "Matrix", "Walk"]
