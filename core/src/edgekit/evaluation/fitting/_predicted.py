"""Divergences of every tensor in every precision, of which one per tensor is measured.

The divergence that a small change of one tensor causes is quadratic in the change, and so is the rounding loss
``tr((w - q) M (w - q)^T)``, M the moment of the tensor's inputs. So the losses of a tensor's precisions, which take no
forward pass, say how their divergences compare; the measured one says how much one unit of loss costs in this tensor.
At two bits the change is not small: the loss then predicts more than is measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edgekit.errors import NonFiniteError, ScaleOverflowError
from edgekit.evaluation.fitting._encodings import Encodings
from edgekit.evaluation.fitting._marginals import Bench, Table
from edgekit.evaluation.fitting._measuring import Divergence
from edgekit.evaluation.fitting._problem import Unit
from edgekit.evaluation.fitting._record import Entry
from edgekit.precision import Precision
from edgekit.typing import F32

#: Rows of a matrix whose loss is computed at once.
_ROWS = 1024
Losses = dict[tuple[str, str], float]


def predicted(bench: Bench, units: Sequence[Unit], bits: int) -> Table:
    """Return the divergence of each unit in each of its precisions.

    Args:
        bench: measures, and records the losses too.
        units: what to choose precisions for.
        bits: bits per weight; the precision whose size comes next to it is measured.

    Raises:
        NonFiniteError: no precision can hold the values of a unit.
    """
    losses = _losses(bench, units)
    near = {unit.name: _near(unit, bits, losses) for unit in units}
    table = bench.each("alone", {}, [(unit, [near[unit.name]]) for unit in units])
    return {
        (unit.name, option.name): _scaled(
            table[unit.name, near[unit.name].name],
            losses[unit.name, option.name],
            losses[unit.name, near[unit.name].name],
        )
        for unit in units
        for option in unit.options
    }


def _losses(bench: Bench, units: Sequence[Unit]) -> Losses:
    total, losses = sum(len(unit.options) for unit in units), Losses()
    for unit in units:
        for option in unit.options:
            if bench.progress:
                bench.progress(len(losses), total, f"{unit.name} {option.name}")
            key = {"step": "loss", "tensor": unit.name, "precision": option.name}

            def entry(unit: Unit = unit, option: Precision = option) -> Entry:
                found = loss(bench.encodings, unit, option)
                return {"loss": found if math.isfinite(found) else None}

            found = bench.record.value(key, entry)["loss"]
            losses[unit.name, option.name] = math.inf if found is None else found
    return losses


def loss(encodings: Encodings, unit: Unit, precision: Precision) -> float:
    """Return the rounding loss of a unit in a precision; infinite if the precision cannot hold its values."""
    try:
        return sum(_loss(encodings, role, precision) for role in unit.roles)
    except ScaleOverflowError:
        return math.inf


def _loss(encodings: Encodings, role: str, precision: Precision) -> float:
    weights, total = encodings.model.tensors[role].float32(), 0.0
    changed = encodings.tensor(role, precision).float32()
    moment = _moment(encodings, role)
    for start in range(0, len(weights), _ROWS):
        error: F32 = weights[start : start + _ROWS] - changed[start : start + _ROWS]
        turned = error if moment is None else error @ moment
        total += float(np.vdot(turned.astype(np.float64), error.astype(np.float64)))
    return total


def _moment(encodings: Encodings, role: str) -> F32 | None:
    """The moment of a matrix's inputs; None if it is not known, as if all inputs were independent and alike."""
    known = any(role in shared for shared in encodings.calibration.inputs.values())
    return encodings.calibration.moment(role) if known else None


def _near(unit: Unit, bits: int, losses: Losses) -> Precision:
    """The option whose bits per weight are nearest to the given ones, of those whose loss is known and not 0."""
    usable = [option for option in unit.options if 0 < losses[unit.name, option.name] < math.inf]
    usable = usable or [option for option in unit.options if losses[unit.name, option.name] < math.inf]
    if not usable:
        raise NonFiniteError(f"{unit.name}: none of the precisions can hold its values; allow others")
    weights = sum(math.prod(slot.shape) for slot in unit.slots)
    return min(usable, key=lambda option: abs(8 * unit.size(option) / weights - bits))


def _scaled(known: Divergence, own: float, measured: float) -> Divergence:
    if own == measured:
        return known
    if not math.isfinite(own):
        return Divergence(math.inf, math.inf)
    ratio = own / measured if measured > 0 else 1.0
    return Divergence(known.kl * ratio, known.error * ratio)


__all__ = ["loss", "predicted"]
