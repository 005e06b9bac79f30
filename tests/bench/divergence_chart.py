"""Size against divergence, out of the tables in docs/explanation/feedback.md, as a picture.

python tests/bench/divergence_chart.py          writes docs/images/divergence.svg
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

import attrs

DOCS = Path(__file__).parents[2] / "docs"
SOURCE = DOCS / "explanation" / "feedback.md"
PICTURE = DOCS / "images" / "divergence.svg"

#: AutoRound 0.16, 200 iterations, as figures given from outside this benchmark: model, type, mean KL divergence.
AUTOROUND = {("sample", "Q4_K_M"): 0.00063, ("sample", "Q4_0"): 0.00082, ("SmolLM2-135M", "Q4_0"): 0.0779}
MODELS = ("SmolLM2-135M", "sample")
WAYS = {"encoder": "#b0bac4", "with importance": "#58a5d8", "feedback": "#1b6ca8", "AutoRound (given)": "#c0392b"}
_HEAD = re.compile(r"^(?P<model>[\w-]+): \d+ tokens of calibration")
_ROW = re.compile(r"^\| `(?P<name>[^`]+)` \| (?P<size>[\d.]+) MB \| (?P<figures>.*) \| (?:[\d.]+|–) \| \d+ \|$")
_WIDTH, _HEIGHT, _LEFT, _TOP, _GAP = 330, 260, 64, 70, 70


@attrs.frozen
class Point:
    """A file: its size in MB, its mean KL divergence in nats, and how it was made."""

    name: str
    size: float
    divergence: float
    way: str


def points(page: str) -> dict[str, list[Point]]:
    """The points of each model."""
    found: dict[str, list[Point]] = {}
    model = ""
    for line in page.splitlines():
        if head := _HEAD.match(line):
            model = head["model"]
        if row := _ROW.match(line):
            size = float(row["size"])
            figures = [cell.split(" ")[0] for cell in row["figures"].split(" | ")]
            made = [
                Point(row["name"], size, float(figure), way)
                for way, figure in zip(WAYS, figures, strict=False)
                if figure != "–"
            ]
            if (model, row["name"]) in AUTOROUND:
                made.append(Point(row["name"], size, AUTOROUND[model, row["name"]], "AutoRound (given)"))
            found.setdefault(model, []).extend(made)
    return found


def picture(found: dict[str, list[Point]]) -> str:
    """One panel for each model, SVG."""
    width = len(MODELS) * (_LEFT + _WIDTH) + _GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {_TOP + _HEIGHT + 50}" '
        'font-family="system-ui, sans-serif">',
        f'<rect width="{width}" height="{_TOP + _HEIGHT + 50}" rx="8" fill="#ffffff"/>',
        '<text x="16" y="24" font-size="15" font-weight="600" fill="#1c2733">'
        "Divergence from the unquantized model against the size of the weights</text>",
    ]
    for place, (way, color) in enumerate(WAYS.items()):
        parts.append(f'<circle cx="{22 + place * 140}" cy="44" r="5" fill="{color}"/>')
        parts.append(f'<text x="{32 + place * 140}" y="48" font-size="12" fill="#445261">{way}</text>')
    for place, model in enumerate(MODELS):
        parts += panel(model, found[model], _LEFT + place * (_LEFT + _WIDTH + _GAP // 2))
    return "\n".join([*parts, "</svg>"]) + "\n"


def panel(model: str, given: list[Point], left: int) -> Iterator[str]:
    """The points of a model, both axes labelled; the divergence is logarithmic."""
    sizes, logs = [p.size for p in given], [math.log10(p.divergence) for p in given]
    low, high = math.floor(min(logs)), math.ceil(max(logs))
    first, last = min(sizes) * 0.97, max(sizes) * 1.03

    def x(size: float) -> float:
        return left + (size - first) / (last - first) * _WIDTH

    def y(log: float) -> float:
        return _TOP + (high - log) / (high - low) * _HEIGHT

    yield f'<text x="{left}" y="{_TOP - 6}" font-size="12" font-weight="600" fill="#1c2733">{model}</text>'
    for power in range(low, high + 1):
        yield f'<line x1="{left}" y1="{y(power):.1f}" x2="{left + _WIDTH}" y2="{y(power):.1f}" stroke="#e4e9ee"/>'
        yield (
            f'<text x="{left - 6}" y="{y(power) + 4:.1f}" font-size="11" text-anchor="end" fill="#6b7885">'
            f"{10.0**power:g}</text>"
        )
    for point in given:
        place = f'cx="{x(point.size):.1f}" cy="{y(math.log10(point.divergence)):.1f}"'
        title = f"{point.name}, {point.way}: {point.size} MB, {point.divergence:.2g} nats"
        yield f'<circle {place} r="4.5" fill="{WAYS[point.way]}"><title>{title}</title></circle>'
    for size in (min(sizes), max(sizes)):
        yield (
            f'<text x="{x(size):.1f}" y="{_TOP + _HEIGHT + 18}" font-size="11" text-anchor="middle" fill="#6b7885">'
            f"{size:g} MB</text>"
        )
    yield (
        f'<text x="{left + _WIDTH / 2}" y="{_TOP + _HEIGHT + 38}" font-size="11" text-anchor="middle" fill="#6b7885">'
        "size of the weights; mean KL divergence in nats, logarithmic</text>"
    )


def main() -> None:
    """Write it."""
    PICTURE.write_text(picture(points(SOURCE.read_text("utf-8"))), "utf-8")


if __name__ == "__main__":
    main()
