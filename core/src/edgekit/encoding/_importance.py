"""Importance of columns that a calibration text never activated.

The searches of ggml's types weigh squared errors by the importance. A block whose columns all weigh 0 has no error to
minimize, and most types then store zeros: the block is erased. A zero means no information, not no importance: such
columns get the smallest importance of their matrix, and a matrix of zeros is encoded without importance.

The products of a search are float32: importance times powers of a weight, summed over a block. Below 2^-64 they
underflow, above 2^64 they overflow, with the same result. So less than 2^-64 counts as 0, and a matrix with more than
2^64 is scaled down by a power of two, which changes no result otherwise.

A stack of experts has a row for each expert, which is filled as a matrix of its own. A row of zeros is an expert that
the text never reached.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import numpy as np
import numpy.typing as npt

from edgekit.typing import F32

_LEAST, _MOST = 2.0**-64, 2.0**64


@attrs.frozen
class Filled:
    """An importance matrix without zeros.

    Attributes:
        importance: float32 [cols] by name of the weight matrix, each value positive; without those in `without`. Of a
            stack of experts [experts, cols], a row of zeros for each expert without.
        columns: number of columns that were filled with the smallest importance, by name of the matrix, if any.
        without: names of the matrices of which no column has an importance.
        experts: number of experts without importance, by name of the stack, if any.
    """

    importance: dict[str, F32]
    columns: dict[str, int]
    without: tuple[str, ...]
    experts: dict[str, int] = attrs.field(factory=dict)


def stack_of(role: str) -> tuple[str, int | None]:
    """Return the stack and the expert's number of a role such as ``blk.0.ffn_up_exps.weight[3]``; else role, None."""
    stack, bracket, number = role.partition("[")
    return (stack, int(number.removesuffix("]"))) if bracket else (role, None)


def of_role(importance: Mapping[str, F32], role: str) -> F32 | None:
    """Return the importance of a role: [cols]; of a stack [experts, cols]; None where there is none.

    One expert's matrix gets the row of its stack, or None if that is all zeros.
    """
    stack, number = stack_of(role)
    values = importance.get(stack)
    return values if number is None or values is None or values.ndim == 1 else expert_row(values, number)


def expert_row(values: F32, number: int) -> F32 | None:
    """Return the importance of one expert, [cols]; None if the text never reached it."""
    row: F32 = values[number]
    return row if row.any() else None


def exact(importance: Mapping[str, F32]) -> dict[str, F32]:
    """Return the importance as llama.cpp takes it: unchanged, but ones for experts that the text never reached."""
    return {
        name: np.where(values.any(axis=1, keepdims=True), values, np.float32(1)) if values.ndim == 2 else values
        for name, values in importance.items()
    }


def fill_importance(importance: Mapping[str, F32]) -> Filled:
    """Replace the zeros of each matrix by its smallest importance; see the module's docstring.

    Args:
        importance: float32 [cols], or [experts, cols], finite and not negative, by name of the weight matrix.

    Example:
        >>> filled = fill_importance({"a": np.float32([0, 2, 1, 0]), "b": np.float32([0, 0])})
        >>> filled.importance["a"].tolist(), filled.columns, filled.without
        ([1.0, 2.0, 1.0, 1.0], {'a': 2}, ('b',))
    """
    scaled = {name: _scaled(np.asarray(values, np.float32)) for name, values in importance.items()}
    known = {name: values >= _LEAST for name, values in scaled.items()}
    filled = {name: _filled(values, known[name]) for name, values in scaled.items() if known[name].any()}
    counts = {name: int(np.count_nonzero((filled[name] > 0) & ~known[name])) for name in filled}
    experts = {n: int(np.count_nonzero(~known[n].any(axis=1))) for n, values in filled.items() if values.ndim == 2}
    return Filled(
        importance=filled,
        columns={name: count for name, count in counts.items() if count},
        without=tuple(name for name in scaled if name not in filled),
        experts={name: count for name, count in experts.items() if count},
    )


def _filled(values: F32, known: npt.NDArray[np.bool_]) -> F32:
    """Each row's unknown values replaced by its smallest known one; a row without any becomes zeros."""
    least = np.where(known, values, np.inf).min(axis=-1, keepdims=True)
    filled: F32 = np.where(known, values, np.where(np.isinf(least), 0, least)).astype(np.float32)
    return filled


def _scaled(values: F32) -> F32:
    """Return the values scaled by a power of two to at most 2^64."""
    most = float(values.max(initial=0))
    if not most > _MOST:
        return values
    return np.ldexp(values, 64 - int(np.frexp(most)[1])).astype(np.float32)


__all__ = ["Filled", "exact", "expert_row", "fill_importance", "of_role", "stack_of"]
