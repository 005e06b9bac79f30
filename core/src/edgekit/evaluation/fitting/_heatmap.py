"""Draws a heat map of divergences as SVG: one row per tensor, one column per precision."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Mapping

#: Sizes in pixels: of a cell, of the row names, of the column names, and of the margin.
_CELL, _ROW, _LEFT, _TOP, _EDGE = 74, 22, 190, 46, 12
#: Blue to yellow to red, from the smallest divergence to the largest.
_COLOURS = ((49, 104, 142), (142, 190, 160), (246, 232, 160), (233, 150, 90), (178, 42, 48))
_STYLE = (
    ".back{fill:#fff}text{fill:#222;font:12px system-ui,sans-serif}.dark{fill:#fff}.lead{fill:#555}"
    "@media(prefers-color-scheme:dark){.back{fill:#16181d}text{fill:#ddd}.light{fill:#222}.lead{fill:#aaa}}"
)
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
Cells = Mapping[tuple[str, str], float]


def draw(cells: Cells, noise_floor: float) -> str:
    """Return the heat map as SVG.

    Args:
        cells: KL divergence in nats by tensor and precision, in drawing order.
        noise_floor: values up to this are drawn as zero.

    Returns:
        The SVG; colours are on a logarithmic scale, each cell shows its value, and its title gives all digits.
    """
    tensors, precisions = (list(dict.fromkeys(key[place] for key in cells)) for place in (0, 1))
    known = [kl for kl in cells.values() if noise_floor < kl < math.inf]
    low, high = (math.log(f(known)) for f in (min, max)) if known else (0.0, 1.0)
    width, height = _LEFT + _CELL * len(precisions) + 2 * _EDGE, _TOP + _ROW * (len(tensors) + 1) + 2 * _EDGE
    heads = [
        f'<text x="{_LEFT + _EDGE + _CELL * (column + 0.5):.0f}" y="{_TOP}" text-anchor="middle">{_short(name)}</text>'
        for column, name in enumerate(precisions)
    ]
    rows = [
        f'<text x="{_LEFT + _EDGE - 8}" y="{_y(row) + 15}" text-anchor="end">{html.escape(tensor)}</text>'
        for row, tensor in enumerate(map(_unsuffixed, tensors))
    ]
    boxes = [
        _box(tensors.index(tensor), precisions.index(precision), tensor, precision, kl, (low, high), noise_floor)
        for (tensor, precision), kl in cells.items()
    ]
    title = f'<text class="lead" x="{_EDGE}" y="{_EDGE + 8}">KL divergence (nats) with one tensor quantized</text>'
    note = (
        f'<text class="lead" x="{_EDGE}" y="{height - _EDGE + 2}">noise floor: {power(noise_floor)} nats; cells '
        "without a figure are not above it</text>"
    )
    body = "\n".join(
        [f'<rect class="back" width="{width}" height="{height}" rx="8"/>', title, *heads, *rows, *boxes, note]
    )
    return (
        f'<svg class="heat-map" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="KL divergence of each tensor in each precision"><style>{_STYLE}</style>\n{body}\n</svg>\n'
    )


def power(value: float) -> str:
    """Return a number in the form 7.4·10⁻¹³."""
    if not value or not math.isfinite(value):
        return "0" if not value else "∞"
    digit, exponent = f"{value:.1e}".split("e")
    return f"{digit}·10{str(int(exponent)).translate(_RAISED)}"


def _y(row: int) -> int:
    return _TOP + 8 + _ROW * row


def _box(
    row: int, column: int, tensor: str, precision: str, kl: float, scale: tuple[float, float], noise: float
) -> str:
    x, y = _LEFT + _EDGE + _CELL * column, _y(row)
    share = _share(kl, scale, noise)
    title = f"<title>{html.escape(tensor)}, {html.escape(precision)}: {kl:.3g} nats</title>"
    words = "" if kl <= noise else power(kl)
    shade = "dark" if share < 0.2 or share > 0.85 else "light"
    return (
        f'<g>{title}<rect x="{x}" y="{y}" width="{_CELL - 2}" height="{_ROW - 2}" rx="3" fill="{_colour(share)}"/>'
        f'<text class="{shade}" x="{x + _CELL / 2 - 1:.0f}" y="{y + 14}" text-anchor="middle">{words}</text></g>'
    )


def _share(kl: float, scale: tuple[float, float], noise: float) -> float:
    """Return the position of a value on the logarithmic scale from the smallest to the largest, 0 to 1."""
    low, high = scale
    if kl <= noise:
        return 0.0
    return 1.0 if not math.isfinite(kl) else (math.log(kl) - low) / max(high - low, 1e-9)


def _colour(share: float) -> str:
    place = min(max(share, 0.0), 1.0) * (len(_COLOURS) - 1)
    index = min(int(place), len(_COLOURS) - 2)
    mixed = (round(a + (b - a) * (place - index)) for a, b in zip(_COLOURS[index], _COLOURS[index + 1], strict=True))
    return "#" + "".join(f"{value:02x}" for value in mixed)


def _short(precision: str) -> str:
    return html.escape(precision.rpartition(":")[2])


def _unsuffixed(tensor: str) -> str:
    return re.sub(r"\.weight\b", "", tensor)


__all__ = ["draw", "power"]
