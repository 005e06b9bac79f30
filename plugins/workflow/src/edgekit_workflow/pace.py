"""How fast a runtime computes, as constants that do not depend on the model; see `edgekit_workflow.speed`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs
import numpy as np

#: A constant, or pairs of a size and the constant at that size, sizes in ascending order: bytes a second, or seconds.
Rate = float | Sequence[tuple[float, float]]


@attrs.frozen
class Pace:
    """How fast a runtime computes; a table of ``runtimes.toml``, or of a profile.

    Attributes:
        overhead: seconds a token that no model avoids.
        layer: seconds a layer.
        rates: bytes a second of one core by kind of precision; ``other`` for all others. A number, or pairs of bytes
            that a token reads of the whole model and the rate at that size: small models stay in caches.
        attention: seconds of one core for each head of queries and each position that it looks at. A number, or pairs
            of a head's size and the seconds: kernels compute sizes that fill no vector an element at a time.
        gpu: vendors of GPUs that the runtime computes on where it can.
    """

    overhead: float = attrs.field()
    layer: float = attrs.field()
    rates: Mapping[str, Rate] = attrs.field()
    attention: Rate = attrs.field(default=0.0)
    gpu: tuple[str, ...] = attrs.field(default=(), converter=tuple)

    @overhead.validator
    @layer.validator
    def _is_time(self, field: attrs.Attribute[float], value: float) -> None:
        if not 0 <= value < 60:
            raise ValueError(f"{field.name} is {value!r:.40}; give seconds from 0 to 60")

    @rates.validator
    def _are_rates(self, field: attrs.Attribute[Mapping[str, Rate]], value: Mapping[str, Rate]) -> None:
        if "other" not in value:
            raise ValueError("rates lack other, the rate of all other precisions")
        for kind, rate in value.items():
            if not _are_pairs(rate) or not (np.array(rate) > 0).all():
                raise ValueError(
                    f"the rate of {kind} is {rate!r:.80}; give bytes a second, or pairs of a size and bytes a second, "
                    "all above 0 and the sizes in ascending order"
                )

    @attention.validator
    def _is_by_size(self, field: attrs.Attribute[Rate], value: Rate) -> None:
        if not _are_pairs(value) or not (np.array(value) >= 0).all():
            raise ValueError(
                f"attention is {value!r:.80}; give seconds, or pairs of a head's size and seconds, none below 0 and "
                "the sizes in ascending order"
            )

    def rate(self, kind: str, total: float) -> float:
        """Return the bytes a second of one core.

        Args:
            kind: of precision.
            total: bytes that a token reads of the whole model.
        """
        rate = self.rates.get(kind, self.rates["other"])
        if isinstance(rate, int | float):
            return rate
        sizes, rates = np.array(rate, float).T
        # Seconds a byte, not bytes a second, add up; between two sizes they grow with the logarithm of the size.
        return 1 / float(np.interp(np.log(max(total, 1.0)), np.log(sizes), 1 / rates))

    def attending(self, size: int) -> float:
        """Return the seconds of one core for a head of queries and a position.

        Args:
            size: elements of a head.
        """
        if isinstance(self.attention, int | float):
            return self.attention
        sizes, seconds = np.array(self.attention, float).T
        return float(np.interp(size, sizes, seconds) * max(1.0, size / sizes[-1]))


def _are_pairs(rate: Rate) -> bool:
    """Whether this is a number, or pairs whose first numbers rise."""
    if isinstance(rate, int | float):
        return True
    pairs = np.array(rate, float)
    return pairs.ndim == 2 and pairs.shape[1] == 2 and bool((np.diff(pairs[:, 0]) > 0).all())


__all__ = ["Pace", "Rate"]
