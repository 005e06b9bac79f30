"""`calibrate`: run a text through a model, layer by layer, and keep the second moments of its matrices' inputs.

A layer is read once, computes all windows, and is forgotten: memory holds one layer, its moments, and the states of
the text (``4 * width`` bytes a token), so that a model larger than memory can be calibrated.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

import attrs
import numpy as np

from edgekit.architectures import Model
from edgekit.architectures.forward import Observe, Transformer
from edgekit.artifact import Artifact
from edgekit.errors import EdgekitError, NonFiniteError, UsageError
from edgekit.evaluation import _afar
from edgekit.evaluation._experts import ExpertSums
from edgekit.evaluation.language import CONTEXT, Text, cut, tokens_of
from edgekit.files.atomic import AtomicFile
from edgekit.files.guard import refuse_harm
from edgekit.files.memory import enough_memory
from edgekit.files.workers import Workers, cores
from edgekit.formats.safetensors import to_bytes
from edgekit.pipeline import _remote
from edgekit.pipeline._conversion import as_artifact
from edgekit.pipeline._feedback import fastest
from edgekit.pipeline._progress import Progress, Shown, reporting
from edgekit.pipeline.rounding._integers import Integers, mean_product
from edgekit.pipeline.rounding._kernels import NUMPY, Kernels
from edgekit.pipeline.rounding._ordered import OrderedTransformer
from edgekit.pipeline.rounding.calibration import (
    COUNTS,
    Calibration,
    as_ids,
    experts_of,
    header_of,
    inputs_of,
    model_digest,
    moment_shape,
    read_calibration,
    text_digest,
)
from edgekit.tensor import Tensor
from edgekit.typing import F32, F64, Ints

#: Tokens that go through a layer at once.
_BATCH = 2048
#: Inputs whose moments may wait while the model computes on.
_WAITING = 2
#: Bytes of states and sums that are under way to and from workers elsewhere, at most; but two batches in any case.
_HELD = 2 << 30
#: Share of the windows that is set aside to measure with, unless the caller says otherwise.
HOLDOUT = 0.125


@enough_memory("calibrating a model")
def calibrate(
    source: Artifact | str | os.PathLike[str],
    text: Text,
    *,
    to: str | os.PathLike[str] | None = None,
    context: int | None = None,
    outputs: bool = True,
    holdout: float = HOLDOUT,
    runtime: str | None = None,
    executor: Executor | None = None,
    progress: Shown = None,
    overwrite: bool = False,
) -> Calibration:
    """Measure how the inputs of every weight matrix go together on a text, for `edgekit.quantize`.

    Args:
        source: the model before quantization, or its path.
        text: a text typical of the model's use, or token ids [n]; ten thousand tokens are enough. It is cut into
            windows that do not overlap, the rest is dropped.
        to: a calibration file to write; the moments then go there one by one and never are in memory together.
        context: tokens of a window; None takes 512, or the model's context where that is less.
        outputs: whether to include the matrix that makes the logits (also where it is the embedding); importance
            matrices of llama.cpp leave it out.
        holdout: share of the windows, 0 to below 1, that is set aside for measurements: the last ones, which become
            `Calibration.held_out`.
        runtime: None for numpy, the only one that gives second moments; importance matrices can be made with others
            (`edgekit.evaluation.calibration.collect`).
        executor: computes each layer, a batch of windows at a time, such as `edgekit.pipeline.executors.connected`
            gives; None computes here with a thread for each core, and so do threads. The model has to be given by its
            path, which the workers open; states go to them, and states and sums come back (for a layer of ``width``
            columns and a batch of 2048 tokens ``4 * width * (2048 + width)`` bytes and more). The bits are the same.
        progress: called before each layer; True draws a bar on stderr.
        overwrite: replace a file at `to` that is no calibration file.

    Returns:
        The calibration, opened from `to` or in memory.

    Raises:
        UsageError: a text shorter than a window, no tokenizer for a text, a bad `context` or `holdout`, or a target
            that must not be replaced; or an executor and an opened artifact.
        UnsupportedModelError: the family is not supported.
        NonFiniteError: the model computes a NaN or an infinity.
        PluginError, MissingFileError, ChangedSourceError: a worker has other versions or sees other files.
        ResourceError, LockedError: about the target; or the executor lost its workers.

    Example:
        >>> calibration = edgekit.calibrate("model-F16.gguf", text)  # doctest: +SKIP
        >>> edgekit.quantize("model-F16.gguf", "Q4_0", to="model-Q4_0.gguf", calibration=calibration)  # doctest: +SKIP
    """
    if runtime is not None:
        raise UsageError(f"runtime {runtime} gives no second moments; leave it out: numpy computes them")
    artifact = as_artifact(source)
    workers = _afar.Workers.of(executor, source, artifact)
    windows = _windows(artifact, text, context)
    used = windows[: len(windows) - _held_out(len(windows), holdout)]
    target = None if to is None else Path(to)
    if target is not None:
        refuse_harm(target, artifact.reads)
        _refuse_overwriting(target, overwrite)
    inputs = inputs_of(artifact.model, outputs)
    digests = model_digest(artifact), text_digest(text)
    experts = experts_of(artifact.model)
    record = Calibration(as_ids(used), as_ids(windows[len(used) :]), *digests, inputs, {}, target, experts)
    with reporting(progress, "calibrate") as report, Workers(cores(), "edgekit-calibrate") as pool:
        if target is None:
            found = layer_moments(artifact, record, report, pool=pool, workers=workers)
            return attrs.evolve(record, moments={name: Tensor.of(name, moment) for name, moment in found})
        _write(record, artifact, report, pool, workers)
    return read_calibration(target)


def _windows(artifact: Artifact, text: Text, context: int | None) -> Ints:
    longest = artifact.model.config.context
    length = min(CONTEXT, longest) if context is None else context
    if not 3 <= length <= longest:
        raise UsageError(f"a window of {context} tokens; choose between 3 and the model's context of {longest}")
    tokens, tokenizer = tokens_of(artifact, text), artifact.tokenizer
    if tokens.ndim == 1 and tokens.size < length:
        raise UsageError(
            f"the text has {tokens.size} tokens, fewer than a window of {length}; give more text, better ten thousand "
            f"tokens, or choose a smaller context"
        )
    return cut(tokens, length, tokenizer.bos if tokenizer is not None and tokenizer.add_bos else None)


def _held_out(count: int, share: float) -> int:
    if not 0 <= share < 1:
        raise UsageError(f"a holdout of {share}; choose a share from 0 to below 1")
    return int(count * share)


def _refuse_overwriting(target: Path, overwrite: bool) -> None:
    if overwrite or not target.exists():
        return
    try:
        read_calibration(target)
    except EdgekitError as error:
        raise UsageError(
            f"{target} exists already and is not a calibration file; choose another file, or replace it with "
            "overwrite=True (--force)"
        ) from error


def layer_moments(
    artifact: Artifact,
    calibration: Calibration,
    progress: Progress | None = None,
    done: int = 0,
    pool: Executor | None = None,
    workers: _afar.Workers | None = None,
) -> Iterator[tuple[str, F32]]:
    """Yield the name of each moment and its values [cols, cols], in the order of the forward pass; then the experts'.

    Of each stack of experts the mean squares [experts, cols] follow, and how many tokens reached each [experts].

    Args:
        artifact: the model.
        calibration: its windows and inputs.
        progress: called before each layer.
        done: how many of them are there already; the following ones are yielded.
        pool: threads that compute.
        workers: workers elsewhere, which then compute the layers.
    """
    wanted = dict(list(calibration.inputs.items())[done:])
    model, windows = artifact.model, calibration.windows
    step = max(1, _BATCH // windows.shape[1])
    batches = [slice(start, start + step) for start in range(0, len(windows), step)]
    kernels = fastest()
    states = OrderedTransformer(model, cache=False, kernels=kernels).embedded(windows)
    experts = ExpertSums(model)
    shapes = {name: moment_shape(model.tensors[name].shape[-1]) for name in wanted}
    with ThreadPoolExecutor(1, "edgekit-moments") as beside:
        for layer in range(model.config.layers):
            if progress:
                progress(layer, model.config.layers, f"layer {layer}")
            sums = _Sums(wanted, kernels, pool, beside)
            if workers is not None:
                _through_there(workers, bool(calibration.experts), layer, states, batches, shapes, sums, experts)
                yield from sums.means()
                continue
            observe = partial(_observed, sums, experts)
            computing = _computing(bool(calibration.experts), model, observe, kernels, pool)
            for batch in batches:
                # A copy: it may be the input of a matrix, whose moment is still being computed when it is replaced.
                states[batch] = computing.layer(layer, states[batch].copy())
            yield from sums.means()
    outputs = [name for name in ("token_embd.weight", "output.weight") if name in wanted]
    if outputs:
        sums = _Sums(wanted, kernels, pool)
        last = OrderedTransformer(model, cache=False)
        for batch in batches:
            sums.add(outputs[0], last.normalized(states[batch]).reshape(-1, model.config.width))
        yield from sums.means()
    arrays = _expert_means(calibration, model, experts)
    yield from list(arrays.items())[max(0, done - len(calibration.inputs)) :]
    if progress:
        progress(model.config.layers, model.config.layers, "")


@attrs.frozen
class _Batch:
    """What a worker elsewhere computes of a layer and a batch of windows.

    Attributes:
        states: after the layer, float32 [count, context, width].
        sums: of the outer products of the inputs, by the name of the moment.
        counts: over how many tokens, by the same names.
        expert_sums: of the squared inputs of experts, float64 [experts, cols], by the name of the stack.
        expert_counts: how many tokens reached each expert, float64 [experts], by the same names.
    """

    states: F32
    sums: Mapping[str, F32]
    counts: Mapping[str, int]
    expert_sums: Mapping[str, F64]
    expert_counts: Mapping[str, F64]


def _through_there(
    workers: _afar.Workers,
    mixture: bool,
    layer: int,
    states: F32,
    batches: Sequence[slice],
    shapes: Mapping[str, tuple[int, ...]],
    sums: _Sums,
    experts: ExpertSums,
) -> None:
    """Compute a layer's states in place and add what its inputs sum up to, batch by batch in the order of the text."""
    names = tuple(name for name in sums.names if name.startswith(f"blk.{layer}."))
    calls = (partial(_batch_there, workers.source, layer, states[batch], names, mixture) for batch in batches)
    nbytes = states[batches[0]].nbytes + 4 * sum(math.prod(shapes[name]) for name in names)
    with closing(workers.in_order(calls, min(_afar.MANY, max(2, _HELD // nbytes)))) as results:
        for batch, result in zip(batches, results, strict=True):
            states[batch] = result.states
            sums.merge(result.sums, result.counts)
            experts.merge(result.expert_sums, result.expert_counts)


def _batch_there(source: _remote.Source, layer: int, states: F32, names: tuple[str, ...], mixture: bool) -> _Batch:
    """Return what a layer makes of a batch of windows; a worker elsewhere does, in one thread."""
    model, kernels = _afar.model(source), fastest()
    sums, experts = _Sums(dict.fromkeys(names, ()), kernels, None), ExpertSums(model)
    computing = _computing(mixture, model, partial(_observed, sums, experts), kernels, None)
    kept = _weights_there(source, layer)
    computing.weights.kept.update(kept)
    after = computing.layer(layer, states)
    kept.update(computing.weights.kept)
    return _Batch(after, sums.sums, sums.counts, experts.sums, experts.counts)


@functools.lru_cache(maxsize=1)
def _weights_there(source: _remote.Source, layer: int) -> dict[str, F32]:
    """Return the decoded weights of a layer, which are filled in by the first batch that a worker computes."""
    return {}


def _computing(mixture: bool, model: Model, observe: Observe, kernels: Kernels, pool: Executor | None) -> Transformer:
    """The model, which keeps the decoded weights of its layer; routers choose their experts in float32."""
    if mixture:
        return Transformer(model, True, observe)
    return OrderedTransformer(model, True, observe, kernels=kernels, threads=pool)


def _observed(sums: _Sums, experts: ExpertSums, name: str, x: F32) -> None:
    if not experts.add(name, x):
        sums.add(name, x)


def _expert_means(calibration: Calibration, model: Model, experts: ExpertSums) -> dict[str, F32]:
    """Mean squares and counts of each stack in the order of the file; zeros for a stack that no token reached."""
    found: dict[str, F32] = {}
    for name in calibration.experts:
        count, _, cols = model.tensors[name].shape
        sums, counts = experts.sums.get(name, np.zeros((count, cols))), experts.counts.get(name, np.zeros(count))
        found[name] = (sums / np.maximum(counts, 1)[:, None]).astype(np.float32)
        found[name + COUNTS] = counts.astype(np.float32)
        if not np.isfinite(found[name]).all():
            expert, column = np.argwhere(~np.isfinite(found[name]))[0]
            raise NonFiniteError(
                f"the input of {name}[{expert}] is not finite on this text (column {column}); calibrate on the "
                "unquantized model"
            )
    return found


class _Sums:
    """Sums of outer products of inputs, by the name of the moment.

    `beside` is one thread that adds while the model computes on: what it is given must not be changed.
    """

    def __init__(
        self,
        inputs: Mapping[str, tuple[str, ...]],
        kernels: Kernels,
        pool: Executor | None,
        beside: Executor | None = None,
    ) -> None:
        self._inputs, self._kernels, self._pool, self._beside = inputs, kernels, pool, beside
        self.sums: dict[str, F32] = {}
        self.counts: dict[str, int] = {}
        self._waiting: deque[Future[None]] = deque()

    @property
    def names(self) -> Iterable[str]:
        """The moments that are wanted."""
        return self._inputs.keys()

    def add(self, name: str, x: F32) -> None:
        """Add the inputs [tokens, cols] of a matrix; those of the others that share them are the same."""
        if name not in self._inputs:
            return
        if self._beside is None:
            self._add(name, x)
            return
        while len(self._waiting) >= _WAITING:
            self._waiting.popleft().result()
        self._waiting.append(self._beside.submit(self._add, name, x))

    def _add(self, name: str, x: F32) -> None:
        self.merge({name: outer(x, moment_shape(x.shape[1]), self._kernels, self._pool)}, {name: len(x)})

    def merge(self, sums: Mapping[str, F32], counts: Mapping[str, int]) -> None:
        """Add sums of outer products over so many tokens each; those that come first are kept and changed."""
        for name, products in sums.items():
            if name in self.sums:
                self.sums[name] += products
            else:
                self.sums[name] = products if products.flags.writeable else products.copy()  # engines share memory
            self.counts[name] = self.counts.get(name, 0) + counts[name]

    def means(self) -> Iterator[tuple[str, F32]]:
        """Yield the moments in the order of the inputs, and forget them."""
        while self._waiting:
            self._waiting.popleft().result()
        for name in [name for name in self._inputs if name in self.sums]:
            moment = self.sums.pop(name)
            moment /= np.float32(self.counts[name])
            if not np.isfinite(moment).all():
                column = int(np.argmin(np.isfinite(np.diagonal(moment, axis1=-2, axis2=-1).reshape(-1))))
                raise NonFiniteError(
                    f"the input of {name} is not finite on this text (column {column}); calibrate on the unquantized "
                    "model"
                )
            yield name, moment


def outer(x: F32, shape: tuple[int, ...], kernels: Kernels = NUMPY, pool: Executor | None = None) -> F32:
    """``x^T x`` of inputs [tokens, cols], or its blocks on the diagonal, in the shape of a moment."""
    width = shape[-1]
    blocks = [Integers.of_columns(x[:, start : start + width], kernels, pool) for start in range(0, x.shape[1], width)]
    parts = [mean_product(block, block, 1, kernels, pool) for block in blocks]
    products = parts[0][None] if len(parts) == 1 else np.stack(parts)
    with np.errstate(over="ignore", invalid="ignore"):  # refused with the name of the matrix
        squares = np.add.reduce(x * x, axis=0)  # one row after another on every machine
    np.einsum("kii->ki", products)[...] = squares.reshape(len(products), width)  # the importance, in all its bits
    return products.reshape(shape)


def _write(
    record: Calibration,
    artifact: Artifact,
    progress: Progress | None,
    pool: Executor,
    workers: _afar.Workers | None,
) -> None:
    """Write a calibration file; an interrupted run goes on after the last moment that is whole."""
    assert record.path is not None
    tensors = artifact.model.tensors
    shapes = {name: moment_shape(tensors[name].shape[-1]) for name in record.inputs}
    for name in record.experts:
        shapes |= {name: (tensors[name].shape[0], tensors[name].shape[-1]), name + COUNTS: tensors[name].shape[:1]}
    header = header_of(record, shapes)
    windows = to_bytes(record.windows), to_bytes(record.held_out)
    fingerprint = hashlib.sha256(b"".join([header, *windows])).digest()
    with AtomicFile(record.path, fingerprint=fingerprint) as file:
        file.reserve(len(header) + sum(len(data) for data in windows) + 4 * sum(map(math.prod, shapes.values())))
        if not file.done:
            file.write(header)
            for data in windows:
                file.write(data)
            file.unit_done()
        for _, moment in layer_moments(artifact, record, progress, file.done - 1, pool, workers):
            file.write(to_bytes(moment))
            file.unit_done()
        file.commit()


__all__ = ["HOLDOUT", "calibrate", "layer_moments", "outer"]
