"""The demo's page: one self-contained HTML file with the size-against-quality picture."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from edgekit.cli._output import size

if TYPE_CHECKING:
    from edgekit.cli.demo import Step

_Scale = Callable[[float], float]

_WIDTH, _HEIGHT = 860, 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 30, 24, 56
#: Height of the band for what is not above the noise floor: a logarithm has no zero.
_BAND = 30
#: Between the names of two dots.
_LINE = 13
_COLOURS = {"gguf": "#2563eb", "affine": "#d97706"}
_SVG_STYLE = """
svg{background:#fff} svg text{font:12px system-ui,sans-serif;fill:#374151} .axis{stroke:#9ca3af} .grid{stroke:#e5e7eb}
.noise{fill:#f3f4f6} svg .noise-label{font-size:11px;fill:#6b7280}
"""
_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:920px;margin:2rem auto;padding:0 1rem;color:#1f2937}
h1{font-size:1.6rem;margin-bottom:.2rem} p{color:#4b5563;max-width:44rem}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:14px}
th,td{padding:.3rem .6rem;text-align:right;border-bottom:1px solid #e5e7eb} th{color:#6b7280;font-weight:600}
th:first-child,td:first-child,td.tier,th.tier{text-align:left} svg{width:100%;height:auto;margin:1rem 0}
.key{display:inline-block;width:.8em;height:.8em;border-radius:50%;margin:0 .3em 0 1em}
"""


def render(steps: Sequence[Step], source_size: int, baseline: float) -> str:
    """The page as text.

    Args:
        steps: the measured ladder.
        source_size: bytes of the source model.
        baseline: perplexity of the source model.
    """
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>edgekit: what each bit costs</title><style>{_STYLE}</style></head><body>
<h1>What each bit costs</h1>
<p>The sample model ({size(source_size)} in BF16, perplexity {baseline:.4f}) quantized down the ladder, each artifact
measured on text that the model never saw. Further left is smaller, further down is nearer to the source. Beside each
perplexity stands the standard error of its difference to the source's: with many bits the difference is chance.</p>
{chart(steps)}
<p><span class="key" style="background:{_COLOURS["gguf"]}"></span>GGUF recipes
<span class="key" style="background:{_COLOURS["affine"]}"></span>textbook affine, groups of 32
&nbsp; grey band: not above the noise floor of this measurement, {_power(steps[0].noise_floor)} nats, the divergence of
the source from itself when its sums are taken in another order</p>
{_table(steps)}
</body></html>
"""


def chart(steps: Sequence[Step]) -> str:
    """An SVG scatter of size (linear) against the KL divergence from the source (logarithmic).

    What is not above the noise floor lies in a band below the logarithmic scale.
    """
    across = _scale(0, max(s.size for s in steps) * 1.08, _LEFT, _WIDTH - _RIGHT)
    low, high = _range(steps)
    border = _HEIGHT - _BOTTOM - _BAND
    up = _scale(math.log(low), math.log(high), border, _TOP)

    def height(step: Step) -> float:
        return border + _BAND / 2 if step.is_noise else up(math.log(step.kl))

    ticks = [_size_tick(across, value) for value in _steps(max(s.size for s in steps), 5)]
    decades = range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high)) + 1)
    marks = [_kl_tick(up, 10.0**decade) for decade in decades]
    lines = [_line(steps, kind, across, height) for kind in _COLOURS]
    dots = [_dot(step, across(step.size), height(step)) for step in steps]
    names = [name for kind in _COLOURS for name in _names(steps, kind, across, height)]
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    labels = (
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 12}" text-anchor="middle">size on disk</text>'
        f'<text x="16" y="{middle}" text-anchor="middle" transform="rotate(-90 16 {middle})">'
        "KL divergence (nats)</text>"
    )
    body = "\n".join([_band(border, steps[0].noise_floor), *ticks, *marks, *lines, *dots, *names, labels])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="Size against KL divergence"><style>{_SVG_STYLE}</style>\n{body}\n</svg>'
    )


def _range(steps: Sequence[Step]) -> tuple[float, float]:
    """Ends of the logarithmic scale: from a power of ten, or the noise floor where that is higher."""
    above = [step.kl for step in steps if not step.is_noise] or [1e-6]
    low = 10.0 ** math.floor(math.log10(min(above)))
    return max(low, *(step.noise_floor for step in steps)), max(above) * 2


def _band(top: float, floor: float) -> str:
    return (
        f'<rect x="{_LEFT}" y="{top}" width="{_WIDTH - _RIGHT - _LEFT}" height="{_BAND}" class="noise"/>'
        f'<text x="{_LEFT + 8}" y="{top + 19}" class="noise-label">noise floor: {_power(floor)} nats or less</text>'
    )


def _power(value: float) -> str:
    """7·10⁻¹³."""
    if value == 0:
        return "0"
    digit, exponent = f"{value:.0e}".split("e")
    return f"{digit}·10{str(int(exponent)).translate(_RAISED)}"


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _scale(low: float, high: float, start: float, stop: float) -> _Scale:
    return lambda value: start + (value - low) / (high - low) * (stop - start)


def _steps(high: float, count: int) -> list[float]:
    step = 10 ** math.floor(math.log10(high / count))
    step *= next(m for m in (1, 2, 5, 10) if high / (m * step) <= count)
    return [step * i for i in range(int(high / step) + 1)]


def _size_tick(across: _Scale, value: float) -> str:
    x, bottom = across(value), _HEIGHT - _BOTTOM
    return (
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{bottom}" class="grid"/>'
        f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{size(value).replace(".00", "")}</text>'
    )


def _kl_tick(up: _Scale, value: float) -> str:
    y = up(math.log(value))
    return (
        f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>'
        f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{_decade(value)}</text>'
    )


def _decade(value: float) -> str:
    """0.01, and with an exponent where there would be many zeros: 10⁻⁶."""
    exponent = round(math.log10(value))
    return f"{value:g}" if exponent > -4 else "10" + str(exponent).translate(_RAISED)


def _kind(step: Step) -> str:
    return "affine" if step.recipe.startswith("affine") else "gguf"


def _line(steps: Sequence[Step], kind: str, across: _Scale, height: Callable[[Step], float]) -> str:
    points = sorted((s for s in steps if _kind(s) == kind), key=lambda s: s.size)
    path = " ".join(f"{across(s.size):.1f},{height(s):.1f}" for s in points)
    return f'<polyline points="{path}" fill="none" stroke="{_COLOURS[kind]}" stroke-opacity=".35" stroke-width="2"/>'


def _dot(step: Step, x: float, y: float) -> str:
    title = f"{step.recipe}: {size(step.size)}, perplexity {step.perplexity:.4f}, KL {divergence(step)}"
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{_COLOURS[_kind(step)]}">'
        f"<title>{html.escape(title)}</title></circle>"
    )


def _names(steps: Sequence[Step], kind: str, across: _Scale, height: Callable[[Step], float]) -> Iterator[str]:
    """The names beside the dots, from the top down: affine to the right, GGUF to the left, none upon another."""
    dx, dy, anchor = (9, -5, "start") if kind == "affine" else (-9, 13, "end")
    above = -math.inf
    for step in sorted((s for s in steps if _kind(s) == kind), key=height):
        above = y = max(height(step) + dy, above + _LINE)
        label = html.escape(step.recipe.removeprefix("affine:").removesuffix("-asym-g32"))
        yield f'<text x="{across(step.size) + dx:.1f}" y="{y:.1f}" text-anchor="{anchor}">{label}</text>'


def divergence(step: Step) -> str:
    """The KL divergence; what is not above the noise floor is marked."""
    return "≤ noise floor" if step.is_noise else f"{step.kl:.6f}"


def _perplexity(step: Step) -> str:
    return f"{step.perplexity:.4f} <small>± {step.perplexity_error:.4f}</small>"


def _table(steps: Sequence[Step]) -> str:
    header = "".join(
        f"<th{' class=tier' if h == 'tier' else ''}>{h}</th>"
        for h in ("recipe", "size", "bits/weight", "tier", "rel. error", "perplexity", "KL divergence", "top-1")
    )
    rows = "\n".join(
        f"<tr><td>{html.escape(s.recipe)}</td><td>{size(s.size)}</td><td>{s.bits_per_weight:.3f}</td>"
        f"<td class=tier>{s.tier}</td><td>{s.error:.2%}</td><td>{_perplexity(s)}</td><td>{divergence(s)}</td>"
        f"<td>{s.top1:.2%}</td></tr>"
        for s in steps
    )
    return f"<table><thead><tr>{header}</tr></thead><tbody>\n{rows}\n</tbody></table>"
