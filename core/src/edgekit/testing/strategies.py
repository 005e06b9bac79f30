"""Hypothesis strategies: labelled draws that shrink to one small block.

Needs ``edgekit-core[testing]``. `edgekit.encode` accepts all drawn rows. Every draw notes its label
(`hypothesis.note`), so that a failing example shows its distribution, seed and shape.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
from hypothesis import note, reject

from edgekit.architectures import Model
from edgekit.artifact import Artifact
from edgekit.encoding._codecs import REFERENCE, codec
from edgekit.errors import NonFiniteError, ScaleOverflowError
from edgekit.precision import Precision, catalogue, find_precision
from edgekit.recipe import Uniform
from edgekit.reference import reference
from edgekit.testing import _samples
from edgekit.testing._subjects import encodable
from edgekit.testing._trips import small_config
from edgekit.testing.models import artifact_of, random_model
from edgekit.typing import F32

#: Values on which quantizers have differed, the simplest first, towards which hypothesis shrinks.
_SPECIAL = [0.0, 1.0, -1.0, 0.5, -0.5, 7.0, -8.0, 2.5, 127.0, -0.0, 0.49999997, 1e-40, -1e-45, 3e38]


@st.composite
def tensors(draw: st.DrawFn, precision: str | Precision = "affine:int4-sym-g32", rows: int = 3) -> F32:
    """Draw rows that a precision can encode, float32 [1 to rows, blocks]: from a distribution, or value by value."""
    record = find_precision(precision)
    if not draw(st.booleans()):  # the simpler of the two, towards which hypothesis shrinks
        return draw(adversarial_blocks(record))
    label = draw(st.sampled_from(list(_samples.LABELS)))
    seed = draw(st.integers(0, 2**16))
    shape = (draw(st.integers(1, rows)), draw(_widths(record)))
    note(f"{label}, seed {seed}, shape {shape}")
    return _accepted(_samples.draw(label, seed, shape), record)


def _accepted(x: F32, precision: Precision) -> F32:
    """Return the rows, if necessary clipped to what `encode` accepts: finite values and scales that do not overflow."""
    for largest in (np.inf, 60_000.0, 400.0, 1.0):
        rows = x if largest == np.inf else np.clip(x, -largest, largest)
        try:
            needed = reference(precision).traits.needs_importance
            codec(precision, REFERENCE).encode_checked(rows, np.ones(rows.shape[1], np.float32) if needed else None)
        except (NonFiniteError, ScaleOverflowError):
            continue
        return rows
    reject()  # not observed so far; hypothesis draws again


def _widths(precision: Precision) -> st.SearchStrategy[int]:
    block = _samples.unit(precision)
    whole = st.integers(1, 3).map(lambda blocks: blocks * block)
    return whole if precision.whole_blocks else st.one_of(whole, st.integers(1, 2 * block + 7))


@st.composite
def adversarial_blocks(draw: st.DrawFn, precision: str | Precision) -> F32:
    """Draw one block [1, block] with a few special values among equal ones; shrinks to zeros and one special value."""
    record = find_precision(precision)
    cols = _samples.unit(record)
    value = st.one_of(st.sampled_from(_SPECIAL), st.floats(-100, 100, width=32))
    x = np.full((1, cols), draw(st.sampled_from([0.0, 1.0, -1.0, 0.02])), np.float32)
    for column, one in draw(st.lists(st.tuples(st.integers(0, cols - 1), value), max_size=8)):
        x[0, column] = one
    x = _accepted(x, record)
    note(f"adversarial block of {cols}: {sorted(set(x[0].tolist()))[:8]}")
    return x


@st.composite
def ties(draw: st.DrawFn, precision: str | Precision) -> F32:
    """Draw rows with values midway between two levels of a precision, or one unit in the last place beside."""
    record = find_precision(precision)
    seed = draw(st.integers(0, 2**16))
    label = draw(st.sampled_from([*_samples.KINDS["ties"], "between two levels", "its own grid"]))
    note(f"ties: {label}, seed {seed}")
    if label == "between two levels":
        return _accepted(_samples.level_midpoints(record, seed, 1), record)
    if label == "its own grid":
        return _accepted(_samples.own_ties(record, seed, 6), record)
    return _accepted(_samples.draw(label, seed, (1, _samples.widths(record)[0])), record)


@st.composite
def weights_like(draw: st.DrawFn, model: Model) -> tuple[str, F32]:
    """Draw the name of one of a model's matrices, and rows with its width and standard deviation and a few outliers."""
    matrices = sorted(name for name, tensor in model.tensors.items() if len(tensor.shape) == 2)
    name = draw(st.sampled_from(matrices))
    tensor = model.tensors[name]
    spread = float(tensor.float32(0, min(tensor.rows, 64)).std())
    label = draw(st.sampled_from(["normal", "heavy tailed", "outliers"]))
    rows, seed = draw(st.integers(1, min(4, tensor.rows))), draw(st.integers(0, 2**16))
    note(f"weights like {name}: {label}, seed {seed}, {rows} rows")
    return name, _samples.draw(label, seed, (rows, tensor.shape[-1])) * np.float32(spread)


def recipes() -> st.SearchStrategy[Uniform]:
    """Return a strategy for recipes with one precision for every weight matrix.

    The precisions are those that can be encoded without an importance matrix.
    """
    blind = [p.name for p in catalogue() if not reference(p).traits.needs_importance]
    return st.sampled_from(blind).map(find_precision).filter(encodable).map(Uniform)


@st.composite
def artifacts(draw: st.DrawFn, /, folder: Path = Path("memory"), **sizes: Any) -> Artifact:
    """Draw a small Llama in memory: random weights, one to three layers, tied embeddings or not."""
    config = small_config(layers=draw(st.integers(1, 3)), ffn=32 * draw(st.integers(1, 3)), **sizes)
    seed = draw(st.integers(0, 2**16))
    note(f"{config.family}, {config.layers} layers, ffn {config.ffn}, seed {seed}")
    return artifact_of(random_model(config, seed), folder)


__all__ = ["adversarial_blocks", "artifacts", "recipes", "tensors", "ties", "weights_like"]
