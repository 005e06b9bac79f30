"""How fast a runtime computes, as constants that do not depend on the model; see `edgekit_workflow.speed`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs
import numpy as np

#: Bytes a second, or pairs of a size and the bytes a second at that size, sizes in ascending order.
Rate = float | Sequence[tuple[float, float]]


@attrs.frozen
class Pace:
    """How fast a runtime computes; a table of ``runtimes.toml``, or of a profile.

    Attributes:
        overhead: seconds a token that no model avoids.
        layer: seconds a layer.
        rates: bytes a second of one core by kind of precision; ``other`` for all others. A number, or pairs of bytes
            that a token reads of the whole model and the rate at that size: small models stay in caches.
        gpu: vendors of GPUs that the runtime computes on where it can.
    """

    overhead: float = attrs.field()
    layer: float = attrs.field()
    rates: Mapping[str, Rate] = attrs.field()
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
            pairs = np.array([(1, rate)] if isinstance(rate, int | float) else rate, float)
            if pairs.ndim != 2 or pairs.shape[1] != 2 or not (pairs > 0).all() or (np.diff(pairs[:, 0]) <= 0).any():
                raise ValueError(
                    f"the rate of {kind} is {rate!r:.80}; give bytes a second, or pairs of a size and bytes a second, "
                    "all above 0 and the sizes in ascending order"
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


__all__ = ["Pace", "Rate"]
