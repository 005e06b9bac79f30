"""Size against divergence, out of the tables of the benchmark of quality, as a picture.

python tests/bench/bench.py --only quality      writes docs/images/divergence.svg where all models are there
python tests/bench/divergence_chart.py          draws it again from docs/explanation/feedback.md and docs/how-to/fit.md
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import attrs

DOCS = Path(__file__).parents[2] / "docs"
SOURCES = (DOCS / "explanation" / "feedback.md", DOCS / "how-to" / "fit.md")
PICTURE = DOCS / "images" / "divergence.svg"

#: AutoRound 0.16, 200 iterations, as figures given from outside this benchmark: model, type, mean KL divergence.
AUTOROUND = {
    ("sample", "Q4_K_M"): 0.00063,
    ("sample", "Q4_0"): 0.00082,
    ("sample", "Q2_K_S"): 0.0142,
    ("SmolLM2-135M", "Q4_0"): 0.0779,
}
MODELS = ("SmolLM2-135M", "sample")
FITTED = "fitted, with feedback"
WAYS = {
    "encoder": "#b0bac4",
    "with importance": "#58a5d8",
    "feedback": "#1b6ca8",
    FITTED: "#2e8b57",
    "AutoRound (given)": "#c0392b",
}
_HEAD = re.compile(r"^(?P<model>[\w-]+): \d+ tokens of calibration")
ROW = re.compile(r"^\| `(?P<name>[^`]+)` \| (?P<size>[\d.]+) MB \| (?P<figures>.*) \| (?P<ratio>[\d.]+|–) \| \d+ \|$")
#: The size of a figure's file where it is not the row's.
_OWN = re.compile(r"\((?P<size>[\d.]+) MB\)")
#: A row of the table of fitted files, all of the sample model; the last figure but one is that with feedback.
_FIT = re.compile(r"^\| (?P<name>[\w:-]+) \| (?P<bytes>[\d,]+) \| .* \| (?P<fitted>[\d.e+-]+) \| [\d.]+ \|$")
#: A row of the table of fitted files of SmolLM2-135M.
_REAL = re.compile(
    r"^\| (?P<what>fitted to [\d.]+ bits|`(?P<name>[^`]+)`, (?P<way>its own encoder|with feedback))"
    r" \| (?P<bytes>[\d,]+) \| (?P<figure>[\d.]+) ± "
)
_REAL_WAYS = {"its own encoder": "encoder", "with feedback": "feedback", None: FITTED}
_FLOOR = re.compile(r"^noise floor (?P<floor>[\d.e+-]+)$")
_WIDTH, _HEIGHT, _LEFT, _TOP, _GAP = 330, 260, 64, 70, 70


@attrs.frozen
class Point:
    """A file: its size in MB, its mean KL divergence in nats, and how it was made."""

    name: str
    size: float
    divergence: float
    way: str


@attrs.frozen
class Panel:
    """What is known of a model: its points, and what float32's rounding alone makes of it, in nats."""

    points: list[Point] = attrs.field(factory=list)
    floors: list[str] = attrs.field(factory=list)


def panels(lines: Iterable[str]) -> dict[str, Panel]:
    """The models of the benchmark's lines, by name; the tables of fitted files come after them."""
    found: dict[str, Panel] = {}
    model = ""
    for line in lines:
        if head := _HEAD.match(line):
            model = head["model"]
            found[model] = Panel()
        elif row := ROW.match(line):
            found[model].points.extend(_measured(model, row["name"], float(row["size"]), row["figures"]))
        elif floor := _FLOOR.match(line):
            found[model].floors.append(floor["floor"])
        elif (fit := _FIT.match(line)) and "sample" in found:
            point = Point(f"as large as {fit['name']}", _megabytes(fit["bytes"]), float(fit["fitted"]), FITTED)
            found["sample"].points.append(point)
        elif (real := _REAL.match(line)) and MODELS[0] in found:
            name, way = real["name"] or real["what"], _REAL_WAYS[real["way"]]
            found[MODELS[0]].points.append(Point(name, _megabytes(real["bytes"]), float(real["figure"]), way))
    return found


def _megabytes(written: str) -> float:
    """Bytes as a table gives them, in MB."""
    return int(written.replace(",", "")) / 1e6


def _measured(model: str, name: str, size: float, cells: str) -> Iterator[Point]:
    for way, cell in zip(WAYS, cells.split(" | "), strict=False):
        figure, own = cell.split(" ")[0], _OWN.search(cell)
        if figure != "–":
            yield Point(name, float(own["size"]) if own else size, float(figure), way)
    if (model, name) in AUTOROUND:
        yield Point(name, size, AUTOROUND[model, name], "AutoRound (given)")


def picture(found: dict[str, Panel]) -> str:
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
        parts.append(f'<circle cx="{22 + place * 152}" cy="44" r="5" fill="{color}"/>')
        parts.append(f'<text x="{32 + place * 152}" y="48" font-size="12" fill="#445261">{way}</text>')
    for place, model in enumerate(MODELS):
        parts += panel(model, found[model], _LEFT + place * (_LEFT + _WIDTH + _GAP // 2))
    return "\n".join([*parts, "</svg>"]) + "\n"


def panel(model: str, shown: Panel, left: int) -> Iterator[str]:
    """The points of a model, both axes labelled; the divergence is logarithmic."""
    given = shown.points
    sizes, logs = [p.size for p in given], [math.log10(p.divergence) for p in given]
    low, high = math.floor(min(logs)), math.ceil(max(logs))
    first, last = min(sizes) * 0.97, max(sizes) * 1.03

    def x(size: float) -> float:
        return left + (size - first) / (last - first) * _WIDTH

    def y(log: float) -> float:
        return _TOP + (high - log) / (high - low) * _HEIGHT

    yield f'<text x="{left}" y="{_TOP - 6}" font-size="12" font-weight="600" fill="#1c2733">{model}</text>'
    if shown.floors:
        floor = f"noise floor {shown.floors[0]}"
        yield (
            f'<text x="{left + _WIDTH}" y="{_TOP - 6}" font-size="11" text-anchor="end" fill="#6b7885">{floor}</text>'
        )
    for power in range(low, high + 1):
        yield f'<line x1="{left}" y1="{y(power):.1f}" x2="{left + _WIDTH}" y2="{y(power):.1f}" stroke="#e4e9ee"/>'
        yield (
            f'<text x="{left - 6}" y="{y(power) + 4:.1f}" font-size="11" text-anchor="end" fill="#6b7885">'
            f"{10.0**power:g}</text>"
        )
    for point in given:
        place = f'cx="{x(point.size):.1f}" cy="{y(math.log10(point.divergence)):.1f}"'
        title = f"{point.name}, {point.way}: {point.size:.2f} MB, {point.divergence:.2g} nats"
        yield f'<circle {place} r="4.5" fill="{WAYS[point.way]}"><title>{title}</title></circle>'
    for size in (min(sizes), max(sizes)):
        yield (
            f'<text x="{x(size):.1f}" y="{_TOP + _HEIGHT + 18}" font-size="11" text-anchor="middle" fill="#6b7885">'
            f"{size:.4g} MB</text>"
        )
    yield (
        f'<text x="{left + _WIDTH / 2}" y="{_TOP + _HEIGHT + 38}" font-size="11" text-anchor="middle" fill="#6b7885">'
        "size of the weights; mean KL divergence in nats, logarithmic</text>"
    )


def draw(lines: Iterable[str]) -> str:
    """Write the picture if all models were measured; says which ones lack."""
    found = panels(lines)
    lacking = [model for model in MODELS if model not in found]
    if lacking:
        return f"no picture is drawn without {', '.join(lacking)}"
    PICTURE.write_text(picture(found), "utf-8")
    return f"drawn: {PICTURE.relative_to(DOCS.parent)}"


if __name__ == "__main__":
    print(draw(line for source in SOURCES for line in source.read_text("utf-8").splitlines()))
