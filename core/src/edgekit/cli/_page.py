"""The demo's page: one self-contained HTML file with the size-against-quality picture."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from urllib.parse import quote

from edgekit.cli._labels import CHARACTER, Box, Label, Point, place
from edgekit.cli._step import Step
from edgekit.cli.output import size

_Scale = Callable[[float], float]

#: Width of the chart in pixels, on wide and on narrow screens.
_WIDTH, NARROW, _HEIGHT = 860, 388, 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 44, 56
#: Height of the band for values up to the noise floor, which a logarithmic scale cannot show.
_BAND = 30
_COLOURS = {"gguf": "#3b82f6", "affine": "#d97706"}
_LEGEND = {"gguf": "GGUF recipes", "affine": "affine, groups of 32"}
_SVG_STYLE = """
.ladder{--back:#fff;--ink:#374151;--grid:#e5e7eb;--noise:#f3f4f6;font:12px system-ui,sans-serif}
@media (prefers-color-scheme:dark){.ladder{--back:#131416;--ink:#cfd0d0;--grid:#33363c;--noise:#1f2126}}
.ladder .back{fill:var(--back)} .ladder text{fill:var(--ink)} .ladder .grid{stroke:var(--grid)}
.ladder .name{paint-order:stroke;stroke:var(--back);stroke-width:3px;stroke-linejoin:round}
.ladder .noise{fill:var(--noise)}
.ladder .lead{stroke:var(--ink);stroke-opacity:.5}
"""
_STYLE = """
:root{color-scheme:light dark;--ink:#1f2937;--soft:#4b5563;--rule:#e5e7eb;--back:#fff}
@media (prefers-color-scheme:dark){:root{--ink:#e5e7eb;--soft:#a3a9b3;--rule:#33363c;--back:#131416}}
body{font:16px/1.5 system-ui,sans-serif;max-width:920px;margin:2rem auto;padding:0 1rem;color:var(--ink);background:var(--back)}
h1{font-size:1.6rem;margin-bottom:.2rem} p{color:var(--soft);max-width:44rem} a{color:inherit}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:14px}
th,td{padding:.3rem .6rem;text-align:right;border-bottom:1px solid var(--rule);white-space:nowrap}
th{color:var(--soft);font-weight:600} th:first-child,td:first-child,td.tier,th.tier{text-align:left}
svg{width:100%;height:auto;margin:1rem 0} .narrow{display:none}
@media (max-width:640px){
.wide,thead{display:none} .narrow{display:block} table,tbody{display:block}
tr{display:grid;grid-template-columns:1fr 1fr;column-gap:1rem;padding:.5rem 0;border-bottom:1px solid var(--rule)}
td{display:flex;justify-content:space-between;gap:.5rem;padding:.1rem 0;border:0}
td:first-child{grid-column:1/3;font-weight:600} td::before{content:attr(data-of);color:var(--soft)}
td:first-child::before{content:none} td.long{grid-column:1/3}
}
"""  # noqa: E501  - a style sheet


def render(steps: Sequence[Step], source_size: int, baseline: float) -> str:
    """Return the page as HTML.

    Args:
        steps: the measured ladder.
        source_size: bytes of the source model.
        baseline: perplexity of the source model.
    """
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>edgekit: what each bit costs</title><style>{_STYLE}</style></head><body>
<h1>What each bit costs</h1>
<p>The sample model ({size(source_size)} in BF16, perplexity {baseline:.4f}) quantized down the ladder, each artifact
measured on text that was not in its training data. Further left is smaller, further down is nearer to the source.
Beside each perplexity stands the standard error of its difference to the source's: with many bits the difference is
chance.</p> <div class="wide">{chart(steps)}</div> <div class="narrow">{chart(steps, NARROW)}</div> <p>The band at the
bottom is the noise floor, {_power(steps[0].noise_floor)} nats: the divergence of the source from itself when its sums
are taken in another order. Values in it may be due to rounding alone.</p> <p>Each name in the table leads to its
artifact; <a href="ladder.json">ladder.json</a> has the numbers, <a href="ladder.svg">ladder.svg</a> the picture.</p>
{_table(steps)} </body></html>
"""


def chart(steps: Sequence[Step], width: int = _WIDTH) -> str:
    """An SVG scatter of size (linear) against the KL divergence from the source (logarithmic), `width` pixels wide.

    Values up to the noise floor are drawn in a band below the logarithmic scale.
    """
    right = width - _RIGHT
    across = _scale(0, max(s.size for s in steps) * 1.08, _LEFT, right)
    low, high = _range(steps)
    border = _HEIGHT - _BOTTOM - _BAND
    up = _scale(math.log(low), math.log(high), border, _TOP)

    def height(step: Step) -> float:
        return border + _BAND / 2 if step.is_noise else up(math.log(step.kl))

    ticks = [_size_tick(across, value) for value in _steps(max(s.size for s in steps), 5 if width > NARROW else 3)]
    decades = range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high)) + 1)
    marks = [_kl_tick(up, 10.0**decade, right) for decade in decades]
    paths = {kind: _path(steps, kind, across, height) for kind in _COLOURS}
    lines = [_line(kind, path) for kind, path in paths.items() if path]
    dots = [_dot(step, across(step.size), height(step)) for step in steps]
    # On a narrow screen the figure stands in the caption alone: in the band it would leave no room for dots' names.
    figure = f": {_power(steps[0].noise_floor)} nats or less" if width > NARROW else ""
    words = Label(f"noise floor{figure}", _LEFT + 8, border + 19)
    area = Box(_LEFT, _TOP - 8, right, _HEIGHT - _BOTTOM)
    dots_named = [(_short(step), (across(step.size), height(step))) for step in steps]
    names = map(_name, place(dots_named, paths.values(), area, taken=[words.box]))
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    labels = (
        f'<text x="{(_LEFT + right) / 2}" y="{_HEIGHT - 12}" text-anchor="middle">size on disk</text>'
        f'<text x="16" y="{middle}" text-anchor="middle" transform="rotate(-90 16 {middle})">'
        "KL divergence (nats)</text>"
    )
    back = f'<rect class="back" width="{width}" height="{_HEIGHT}" rx="8"/>'
    body = "\n".join(
        [
            back,
            _band(border, right, words),
            *ticks,
            *marks,
            *lines,
            *names,
            *dots,
            *_legend(paths),
            labels,
        ]
    )
    return (
        f'<svg class="ladder" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {_HEIGHT}" role="img" '
        f'aria-label="Size against KL divergence"><style>{_SVG_STYLE}</style>\n{body}\n</svg>'
    )


def _range(steps: Sequence[Step]) -> tuple[float, float]:
    """Return the ends of the logarithmic scale, from a power of ten or the noise floor, whichever is higher."""
    above = [step.kl for step in steps if not step.is_noise] or [1e-6]
    low = 10.0 ** math.floor(math.log10(min(above)))
    return max(low, *(step.noise_floor for step in steps)), max(above) * 2


def _band(top: float, right: float, words: Label) -> str:
    return (
        f'<rect x="{_LEFT}" y="{top}" width="{right - _LEFT}" height="{_BAND}" class="noise"/>'
        f'<text x="{words.x}" y="{words.y}">{words.text}</text>'
    )


def _power(value: float) -> str:
    """Format a number as 7·10⁻¹³."""
    if value == 0:
        return "0"
    digit, exponent = f"{value:.0e}".split("e")
    return f"{digit}·10{str(int(exponent)).translate(_RAISED)}"


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _legend(paths: Mapping[str, Sequence[Point]]) -> Iterator[str]:
    """Return the legend of the colours, a row above the picture."""
    x = float(_LEFT)
    for kind in (kind for kind, path in paths.items() if path):
        yield f'<circle cx="{x + 5:.1f}" cy="22" r="5" fill="{_COLOURS[kind]}"/>'
        yield f'<text x="{x + 15:.1f}" y="26">{_LEGEND[kind]}</text>'
        x += 35 + CHARACTER * len(_LEGEND[kind])


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


def _kl_tick(up: _Scale, value: float, right: float) -> str:
    y, tick = up(math.log(value)), _decade(value)
    return (
        f'<line x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>'
        f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick}</text>'
    )


def _decade(value: float) -> str:
    """Format a power of ten: 0.01, or with an exponent (10⁻⁶) if it has many zeros."""
    exponent = round(math.log10(value))
    return f"{value:g}" if exponent > -4 else "10" + str(exponent).translate(_RAISED)


def _kind(step: Step) -> str:
    return "affine" if step.recipe.startswith("affine") else "gguf"


def _path(steps: Sequence[Step], kind: str, across: _Scale, height: Callable[[Step], float]) -> list[Point]:
    """Return the line through the dots of one kind, from the smallest artifact on."""
    return [(across(s.size), height(s)) for s in sorted(steps, key=lambda s: s.size) if _kind(s) == kind]


def _line(kind: str, path: Sequence[Point]) -> str:
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in path)
    return f'<polyline points="{points}" fill="none" stroke="{_COLOURS[kind]}" stroke-opacity=".4" stroke-width="2"/>'


def _dot(step: Step, x: float, y: float) -> str:
    title = f"{step.recipe}: {size(step.size)}, perplexity {step.perplexity:.4f}, KL {divergence(step)}"
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{_COLOURS[_kind(step)]}">'
        f"<title>{html.escape(title)}</title></circle>"
    )


def _name(label: Label) -> str:
    """Return the label of a dot, with a line to it if it is further away."""
    lead = ""
    if label.lead:
        (x1, y1), (x2, y2) = label.lead
        lead = f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="lead"/>'
    return f'{lead}<text class="name" x="{label.x:.1f}" y="{label.y:.1f}">{html.escape(label.text)}</text>'


def _short(step: Step) -> str:
    return step.recipe.removeprefix("affine:").removesuffix("-asym-g32")


def divergence(step: Step) -> str:
    """Return the KL divergence as text; values up to the noise floor are marked."""
    return "≤ noise floor" if step.is_noise else f"{step.kl:.6f}"


def _perplexity(step: Step) -> str:
    return f"{step.perplexity:.4f} <small>± {step.perplexity_error:.4f}</small>"


_HEADER = ("recipe", "size", "bits/weight", "tier", "rel. error", "perplexity", "KL divergence", "top-1")
#: Columns that hold no numbers, and those that take a whole line on narrow screens.
_CLASSES = {"tier": " class=tier", "perplexity": " class=long"}


def _table(steps: Sequence[Step]) -> str:
    header = "".join(f"<th{_CLASSES.get(name, '')}>{name}</th>" for name in _HEADER)
    rows = "\n".join(f"<tr>{''.join(_cells(step))}</tr>" for step in steps)
    return f"<table><thead><tr>{header}</tr></thead><tbody>\n{rows}\n</tbody></table>"


def _cells(step: Step) -> Iterator[str]:
    values = (
        f'<a href="{html.escape(quote(step.path))}">{html.escape(step.recipe)}</a>',
        size(step.size),
        f"{step.bits_per_weight:.3f}",
        step.tier,
        f"{step.error:.2%}",
        _perplexity(step),
        divergence(step),
        f"{step.top1:.2%}",
    )
    for name, value in zip(_HEADER, values, strict=True):
        yield f'<td{_CLASSES.get(name, "")} data-of="{name}"><span>{value}</span></td>'
