"""The difference between a model's outputs before and after a change, on the same samples."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edgekit.errors import NonFiniteError
from edgekit.typing import F64


def difference(expected: list[F64], got: list[F64]) -> dict[str, float]:
    """Return the difference between two lists of outputs, one per sample.

    Returns:
        ``output_error``, the root mean square of the difference relative to that of the expected output; ``cosine``,
        the mean cosine similarity over the samples; ``top1``, the share of positions with the same largest value in the
        last dimension (if that has more than one value); and ``samples``, their number.

    Raises:
        NonFiniteError: an output is not finite.
    """
    for label, values in (("before", expected), ("after", got)):
        if not all(np.isfinite(each).all() for each in values):
            raise NonFiniteError(
                f"the model computes values that are not finite {label} the pass; choose milder options"
            )
    similarity = float(np.mean([cosine(a, b) for a, b in _pairs(expected, got)]))
    measures = {"output_error": _relative(expected, got), "cosine": similarity, "samples": float(len(expected))}
    if expected[0].ndim and expected[0].shape[-1] > 1:
        measures["top1"] = float(np.mean([np.mean(a.argmax(-1) == b.argmax(-1)) for a, b in _pairs(expected, got)]))
    return measures


def _pairs(a: list[F64], b: list[F64]) -> Iterator[tuple[F64, F64]]:
    return zip(a, b, strict=True)


def _relative(expected: list[F64], got: list[F64]) -> float:
    off = sum(float(np.square(a - b).sum()) for a, b in _pairs(expected, got))
    return float(np.sqrt(off / max(sum(float(np.square(a).sum()) for a in expected), 1e-300)))


def cosine(a: F64, b: F64) -> float:
    """Return the cosine similarity of two arrays of one shape; of two zeros it is 1."""
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float((a * b).sum()) / size if size else float(np.array_equal(a, b))


__all__ = ["cosine", "difference"]
