"""Drift of what a served model writes, against a baseline: the population stability index and Kolmogorov-Smirnov.

    PSI = Σ (p - q) ln(p / q)        over bins of the baseline: p the share of the new texts, q that of the baseline
    KS  = max |F - G|                the largest distance of the two cumulative distributions, with its p-value

A measure has drifted where both say so: the index is the size of the change, and of few texts it is large by chance;
the p-value says whether chance explains the distance, and of many texts it is small for changes that do not matter.
The distance of histograms is taken at the bounds of their buckets, where it is at most that of the values; with
equal values in both, as of lengths and of refusals, the p-value is an upper bound.

Sources: B. Yurdakul, "Statistical Properties of Population Stability Index" (2018), for the index;
`scipy.special.rel_entr`, `scipy.stats.kstwo` and `scipy.stats.ks_2samp` (its asymptotic method) for the figures.
"""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import numpy as np

from edgekit.errors import UsageError
from edgekit.typing import F64
from edgekit_workflow.watching.records import MEASURES, Distribution, Record

#: Bins of the baseline, of equal shares as far as its values allow.
BINS = 10
#: Smallest share of a bin: the logarithm of 0 is infinite.
FLOOR = 1e-4


@attrs.frozen
class Limits:
    """When a measure has drifted: both the index and the p-value say so.

    Attributes:
        psi: the index from which on; 0.1 is called a small change, 0.25 a large one.
        p_value: of Kolmogorov-Smirnov's test, below which.
        least: texts that the baseline and the comparison need to be judged.
    """

    psi: float = attrs.field(default=0.2, validator=attrs.validators.ge(0))
    p_value: float = attrs.field(default=0.01, validator=[attrs.validators.ge(0), attrs.validators.le(1)])
    least: int = attrs.field(default=50, validator=attrs.validators.ge(1))


@attrs.frozen
class Drift:
    """The comparison of one measure of one model.

    Attributes:
        model, measure: what was compared.
        baseline, texts: the number of texts of the baseline, and of those that are compared.
        psi: the population stability index.
        distance, p_value: Kolmogorov-Smirnov's.
        means: of the baseline and of the texts; of a histogram from the upper bounds.
        drifted: None where there are too few texts to say.
    """

    model: str
    measure: str
    baseline: int
    texts: int
    psi: float
    distance: float
    p_value: float
    means: tuple[float, float]
    drifted: bool | None


def compare(record: Record, baseline: Record, limits: Limits | None = None) -> list[Drift]:
    """Compare what a server's models wrote with a baseline.

    Args:
        record: what came now.
        baseline: of the same models.
        limits: None takes the defaults.

    Raises:
        UsageError: a model is missing in one of the two, or they have no measure in common.
    """
    if record.models.keys() != baseline.models.keys():
        ours, theirs = (", ".join(sorted(each.models)) for each in (record, baseline))
        raise UsageError(f"the record is of {ours}, the baseline of {theirs}; record a baseline of the same models")
    found = list(_compared(record, baseline, limits or Limits()))
    if not found:
        raise UsageError("the record and the baseline have no measure in common; record both in the same way")
    return found


def _compared(record: Record, baseline: Record, limits: Limits) -> Iterator[Drift]:
    for model, measures in record.models.items():
        for measure in MEASURES:
            old, new = baseline.models[model].get(measure), measures.get(measure)
            if old is not None and new is not None and old.total and new.total:
                yield _drift(model, measure, *_alike(new, old), limits)


def _alike(new: Distribution, old: Distribution) -> tuple[Distribution, Distribution]:
    """The two with the same bounds, if one of them is a histogram."""
    if new.bucketed and not old.bucketed:
        return new, old.into(new.values)
    return (new.into(old.values) if old.bucketed else new), old


def _drift(model: str, measure: str, new: Distribution, old: Distribution, limits: Limits) -> Drift:
    distance, p_value = kolmogorov_smirnov(new, old)
    index = stability_index(new, old)
    enough = min(new.total, old.total) >= limits.least
    drifted = index >= limits.psi and p_value < limits.p_value if enough else None
    means = (_mean(old), _mean(new))
    return Drift(model, measure, old.total, new.total, index, distance, p_value, means, drifted)


def _mean(distribution: Distribution) -> float:
    finite = np.isfinite(distribution.values)
    largest = distribution.values[finite].max(initial=0.0)
    return float(np.average(np.where(finite, distribution.values, largest), weights=distribution.counts))


def cuts(old: Distribution, bins: int = BINS) -> F64:
    """Return the upper bounds of bins, float64 [n], that hold equal shares of a baseline as far as its values allow.

    The last is infinite. Where the smallest value alone fills the first bin, smaller ones get a bin of their own.
    """
    shares = old.counts.cumsum() / old.counts.sum()
    places = np.searchsorted(shares, np.arange(1, bins) / bins - 1e-12)
    smallest = int(np.flatnonzero(old.counts)[0])
    below = [old.values[smallest - 1] if old.bucketed and smallest else np.nextafter(old.values[smallest], -np.inf)]
    if places[0] != smallest or (old.bucketed and not smallest):
        below = []
    return np.unique([*below, *old.values[places], np.inf])


def stability_index(new: Distribution, old: Distribution) -> float:
    """Return the population stability index of two distributions; bins are the baseline's."""
    from scipy.special import rel_entr

    bounds = cuts(old)
    p, q = (np.maximum(each.into(bounds).counts / each.counts.sum(), FLOOR) for each in (new, old))
    return float(np.sum(rel_entr(p, q) + rel_entr(q, p)))


def kolmogorov_smirnov(new: Distribution, old: Distribution) -> tuple[float, float]:
    """Return the distance of two distributions, and its p-value by the asymptotic distribution."""
    from scipy.stats import kstwo

    values = np.union1d(new.values, old.values)
    first, second = (each.into(values).counts.cumsum() / each.counts.sum() for each in (new, old))
    distance = float(np.abs(first - second).max())
    effective = new.total * old.total / (new.total + old.total)
    return distance, float(np.clip(kstwo.sf(distance, max(1, np.round(effective))), 0, 1))


__all__ = ["BINS", "FLOOR", "Drift", "Limits", "compare", "cuts", "kolmogorov_smirnov", "stability_index"]
