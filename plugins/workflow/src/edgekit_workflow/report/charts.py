"""Charts of a run, as SVG by matplotlib: the same bytes every time, in colours that the page sets.

Every colour that depends on light or dark is drawn as a mark, which becomes a variable of the page's style sheet; the
others are readable on both. Text stays text. Each chart is drawn for a width in pixels, so that its words are as large
on a phone as on a desk.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgekit.cli.output import size

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Widths in pixels of the two renderings of each chart.
WIDE, NARROW = 860, 388
#: Marks for colours that the page sets, and the variables that they become.
_INK, _GRID, _NOISE, _BACK = "#010203", "#020304", "#030405", "#040506"
_VARIABLES = {_INK: "var(--ink)", _GRID: "var(--grid)", _NOISE: "var(--noise)", _BACK: "var(--back)"}
#: Colours of formats; the others take those that are left, in order.
_COLOURS = {"gguf": "#3b82f6", "openvino": "#d97706", "onnx": "#0d9488", "mlx": "#a855f7", "hf": "#64748b"}
_OTHERS = ("#dc2626", "#65a30d", "#db2777", "#0891b2", "#a16207", "#7c3aed", "#ea580c", "#64748b")
_LATENCY_BINS = 30
#: Colours of precisions, from few bits to many.
_PRECISIONS = ("#b91c1c", "#ea580c", "#d97706", "#65a30d", "#0d9488", "#0284c7", "#4f46e5", "#9333ea", "#64748b")
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.size": 11,
    "font.family": "sans-serif",
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _GRID,
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _GRID,
    "legend.frameon": False,
    "figure.facecolor": "none",
}
_DOT, _PIXELS = 6.5, 72
Point = Mapping[str, Any]


def drawn(name: str, label: str, width: int, height: int, draw: Callable[[Axes], None]) -> str:
    """Return a chart as SVG, for a page that sets ``--ink``, ``--grid``, ``--noise`` and ``--back``.

    Args:
        name: begins every id in it, so that several charts can stand on one page.
        label: read aloud instead of it.
        width: in pixels.
        height: in pixels.
        draw: draws into its axes.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(width / _PIXELS, height / _PIXELS), layout="constrained")
        draw(figure.subplots())
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    for mark, variable in _VARIABLES.items():
        text = text.replace(mark, variable)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r"(url\(|href=\")#", rf"\1#{name}-", text)
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"^<svg ", f'<svg role="img" aria-label="{label}" ', text)
    return "\n".join(line.rstrip() for line in text.splitlines())


def colours(formats: Sequence[str]) -> dict[str, str]:
    """Return the colour of each format."""
    others = iter(_OTHERS * (1 + len(formats) // len(_OTHERS)))
    return {name: _COLOURS.get(name) or next(others) for name in formats}


def tradeoff(points: Sequence[Point], noise: float, budget: int | None, name: str, width: int) -> str:
    """Return the chart of size against KL divergence, with the front, error bars and the noise floor.

    Args:
        points: ``number``, ``format``, ``nbytes``, ``kl`` (no less than the noise floor), ``error``, ``front``.
        noise: the noise floor in nats.
        budget: in bytes, drawn as a line.
        name: as for `drawn`.
        width: as for `drawn`.
    """

    def draw(axes: Axes) -> None:
        of_format = colours(list(dict.fromkeys(p["format"] for p in points)))
        ahead = sorted((p for p in points if p["front"]), key=lambda p: float(p["nbytes"]))
        axes.set_yscale("log")
        axes.plot([p["nbytes"] / 1e6 for p in ahead], [p["kl"] for p in ahead], color=_INK, lw=1, alpha=0.5, zorder=1)
        for format_name, colour in of_format.items():
            _dots(axes, [p for p in points if p["format"] == format_name], colour, format_name)
        low, high = min(p["kl"] for p in points), max(p["kl"] + p["error"] for p in points)
        bottom = max(low / 4, noise / 3) if noise > low / 50 else low / 4
        axes.set_ylim(bottom, high * 2)
        if noise > bottom:
            axes.axhspan(bottom, noise, color=_NOISE, zorder=0)
        if budget is not None:
            axes.axvline(budget / 1e6, color=_INK, lw=1, ls=(0, (4, 3)), alpha=0.6)
        axes.set_xlabel("size in MB")
        axes.set_ylabel("KL divergence in nats")
        axes.grid(True, lw=0.6)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, handletextpad=0.2, labelcolor=_INK)

    return drawn(name, "Size against KL divergence from the source", width, 440, draw)


def _dots(axes: Axes, points: Sequence[Point], colour: str, label: str) -> None:
    x, y = [p["nbytes"] / 1e6 for p in points], [p["kl"] for p in points]
    below = [min(p["error"], p["kl"] * 0.9) for p in points]
    axes.errorbar(
        x, y, yerr=[below, [p["error"] for p in points]], fmt="o", ms=2 * _DOT, color=colour, lw=1.4, label=label
    )
    for point in points:
        axes.annotate(
            str(point["number"]),
            (point["nbytes"] / 1e6, point["kl"]),
            color="#ffffff",
            fontsize=8,
            ha="center",
            va="center_baseline",
            zorder=5,
        )


def heat_map(cells: Mapping[tuple[str, str], tuple[float, int]], measure: str, name: str, width: int) -> str:
    """Return a heat map: a row for each tensor, its colour what is measured, the number its bytes.

    Args:
        cells: by tensor and column the measured value and the bytes.
        measure: in words, for the colour bar.
        name: as for `drawn`.
        width: as for `drawn`.
    """
    tensors, columns = (list(dict.fromkeys(key[at] for key in cells)) for at in (0, 1))

    def draw(axes: Axes) -> None:
        import matplotlib
        import numpy as np
        from matplotlib.colors import LogNorm

        least = min((value for value, _ in cells.values() if value > 0), default=1e-12)  # zero has no logarithm
        shown = {key: (max(value, least), nbytes) for key, (value, nbytes) in cells.items()}
        values = np.full((len(tensors), len(columns)), np.nan)
        for (tensor, column), (value, _) in shown.items():
            values[tensors.index(tensor), columns.index(column)] = value
        low = float(np.nanmin(values))
        high = max(float(np.nanmax(values)), low * 1.01)
        norm, shades = LogNorm(low, high), matplotlib.colormaps["viridis"]
        mesh = axes.pcolormesh(values, cmap=shades, norm=norm, edgecolor=_BACK, lw=1)
        for (tensor, column), (value, nbytes) in shown.items():
            dark = float(norm(value)) < 0.6
            axes.text(
                columns.index(column) + 0.5,
                tensors.index(tensor) + 0.5,
                _short_size(nbytes),
                ha="center",
                va="center_baseline",
                fontsize=8 if width > NARROW else 6.5,
                color="#ffffff" if dark else "#111827",
            )
        _named(axes, tensors, columns, width)
        bar = axes.figure.colorbar(mesh, ax=axes, location="top", aspect=40, shrink=0.9, pad=0.01)
        bar.set_label(measure)
        marks = [low, (low * high) ** 0.5, high]
        bar.set_ticks(marks, labels=[f"{mark:.1e}" for mark in marks])
        bar.minorticks_off()
        bar.outline.set_visible(False)

    height = 110 + 17 * len(tensors) + 6 * max(len(c) for c in columns)
    return drawn(name, f"{measure} and bytes of each tensor", width, height, draw)


def _named(axes: Axes, tensors: Sequence[str], columns: Sequence[str], width: int) -> None:
    axes.invert_yaxis()
    axes.set_yticks([n + 0.5 for n in range(len(tensors))], tensors, fontsize=9 if width > NARROW else 8)
    turned = sum(len(c) for c in columns) * 7 > width * 0.7
    axes.set_xticks([n + 0.5 for n in range(len(columns))], columns, fontsize=9, rotation=90 if turned else 0)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _short_size(nbytes: int) -> str:
    return size(nbytes).replace(".00", "") if nbytes < 1000 else _three_digits(nbytes)


def _three_digits(nbytes: float) -> str:
    for unit in ("B", "k", "M", "G"):
        if nbytes < 1000:
            return f"{nbytes:.3g}{unit}"
        nbytes /= 1000
    return f"{nbytes:.3g}T"


def precision_map(precisions: Mapping[str, tuple[str, float]], name: str, width: int) -> str:
    """Return the map of a recipe: a row for each kind of tensor, a column for each block, its colour the precision.

    Args:
        precisions: by canonical tensor name the precision and its bits a weight.
        name: as for `drawn`.
        width: as for `drawn`.
    """
    placed = {tensor: _place(tensor) for tensor in precisions}
    roles = list(dict.fromkeys(role for role, _ in placed.values()))
    blocks = sorted({block for _, block in placed.values()})
    bits = dict(sorted(precisions.values(), key=lambda pair: (pair[1], pair[0])))
    step = max(1, len(_PRECISIONS) // max(1, len(bits)))
    shade = {p: _PRECISIONS[min(n * step, len(_PRECISIONS) - 1)] for n, p in enumerate(bits)}

    def draw(axes: Axes) -> None:
        from matplotlib.patches import Patch, Rectangle

        for tensor, (role, block) in placed.items():
            at = blocks.index(block), roles.index(role)
            axes.add_patch(Rectangle(at, 1, 1, facecolor=shade[precisions[tensor][0]], edgecolor=_BACK, lw=1))
        axes.set_xlim(0, max(len(blocks), 8 if width > NARROW else 4))
        axes.set_ylim(0, len(roles))
        _named(axes, roles, [str(block) if block >= 0 else "–" for block in blocks], width)
        every = max(1, len(blocks) // (30 if width > NARROW else 12))
        for number, text in enumerate(axes.get_xticklabels()):
            text.set_visible(number % every == 0)
        axes.set_xlabel("block")
        handles = [Patch(color=shade[p], label=f"{p} ({each:g} bits)") for p, each in bits.items()]
        axes.legend(
            handles=handles,
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=3 if width > NARROW else 1,
            fontsize=9,
            labelcolor=_INK,
        )

    rows = len(bits) if width <= NARROW else -(-len(bits) // 3)
    return drawn(name, "The precision of each tensor", width, 70 + 17 * len(roles) + 17 * rows, draw)


def _place(tensor: str) -> tuple[str, int]:
    """Return the kind of a tensor and its block; -1 outside blocks."""
    match = re.match(r"(?:\w+\.)?blk\.(\d+)\.(.*)", tensor)
    return (match[2].removesuffix(".weight"), int(match[1])) if match else (tensor.removesuffix(".weight"), -1)


def categories(rows: Mapping[str, Mapping[str, tuple[float, float]]], name: str, width: int) -> str:
    """Return the divergence of some artifacts by category of text, with error bars.

    Args:
        rows: by artifact, then by category, the KL divergence in nats and its standard error.
        name: as for `drawn`.
        width: as for `drawn`.
    """
    texts = list(dict.fromkeys(category for row in rows.values() for category in row))
    height = 90 + len(texts) * (22 + 14 * len(rows)) + 17 * len(rows)

    def draw(axes: Axes) -> None:
        for number, (artifact, row) in enumerate(rows.items()):
            places = [at + (number + 1) / (len(rows) + 1) for at, text in enumerate(texts) if text in row]
            values = [row[text] for text in texts if text in row]
            axes.errorbar(
                [value for value, _ in values],
                places,
                xerr=[[min(e, v * 0.9) for v, e in values], [e for _, e in values]],
                fmt="o",
                ms=6,
                lw=1.4,
                color=_OTHERS[number % len(_OTHERS)],
                label=artifact,
            )
        axes.set_xscale("log")
        axes.set_ylim(len(texts), 0)
        axes.set_yticks([n + 0.5 for n in range(len(texts))], texts)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("KL divergence in nats")
        axes.grid(True, axis="x", lw=0.6)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), fontsize=9, labelcolor=_INK)

    return drawn(name, "KL divergence by category of text", width, height, draw)


def latencies(rows: Mapping[str, tuple[tuple[float, float, float], Sequence[float]]], name: str, width: int) -> str:
    """Return the latencies of the tokens of each artifact: their distribution, and on it three percentiles.

    Args:
        rows: by artifact p50, p95 and p99 in seconds, and the latency of every token; no distribution without them.
        name: as for `drawn`.
        width: as for `drawn`.
    """

    def draw(axes: Axes) -> None:
        for at, ((p50, p95, p99), every) in enumerate(rows.values()):
            _distribution(axes, at, every)
            axes.plot([p50 * 1e3, p99 * 1e3], [at, at], color=_COLOURS["gguf"], lw=5, alpha=0.45, solid_capstyle="butt")
            axes.plot([p50 * 1e3], [at], "|", ms=13, mew=3, color=_COLOURS["gguf"])
            axes.plot([p95 * 1e3], [at], "o", ms=5, color=_COLOURS["openvino"])
        axes.set_xscale("log")
        axes.set_yticks(range(len(rows)), list(rows), fontsize=9 if width > NARROW else 8)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        bars = "bar from p50 to p99, dot p95, above them how often"
        axes.set_xlabel(f"milliseconds a token: {bars}" if width > NARROW else f"milliseconds a token:\n{bars}")
        axes.grid(True, axis="x", lw=0.6)

    return drawn(name, "Latency of a token", width, 80 + 28 * len(rows), draw)


def _distribution(axes: Axes, at: float, seconds: Sequence[float]) -> None:
    """Draw a histogram of milliseconds above a line of the chart, in bins of equal ratios."""
    import numpy as np

    if len(seconds) < 8 or min(seconds) <= 0 or min(seconds) == max(seconds):
        return
    bounds = np.geomspace(min(seconds), max(seconds), _LATENCY_BINS + 1)
    counts, _ = np.histogram(seconds, bounds)
    heights = at - 0.85 * counts / counts.max()
    axes.fill_between(bounds * 1e3, np.append(heights, heights[-1]), at, step="post", color=_COLOURS["hf"], alpha=0.35)


__all__ = ["NARROW", "WIDE", "categories", "colours", "drawn", "heat_map", "latencies", "precision_map", "tradeoff"]
