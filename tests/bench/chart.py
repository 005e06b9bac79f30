"""The fast path's ratios out of the benchmark's table, as a table of their own and as a picture.

python tests/bench/chart.py          writes docs/explanation/fast-path-table.txt and docs/images/fast-path.svg
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
SOURCE = DOCS / "explanation" / "speed-table.txt"
TABLE = DOCS / "explanation" / "fast-path-table.txt"
PICTURE = DOCS / "images" / "fast-path.svg"

#: Columns: heading, and what the benchmark calls the rows.
COLUMNS = {
    "AVX-512": "encode (numba, AVX-512)",
    "two threads": "encode, 2 threads (numba, AVX-512)",
    "AVX2": "encode (numba, AVX2)",
    "SSE2": "encode (numba, SSE2)",
    "importance matrix": "encode (numba, AVX-512, importance)",
}
_ROW = re.compile(r"\| (?P<what>[^|]+) \| `ggml:(?P<kind>\w+)` \| (?P<speed>[\d.]+) \| (?P<peers>.*) \|")
_PEER = re.compile(r"libggml (?P<speed>[\d.]+) → \*\*(?P<ratio>[\d.]+)×\*\*")

Ratios = dict[str, dict[str, tuple[float, float, float]]]


def ratios(report: str) -> Ratios:
    """For each column and type: edgekit's GB/s, ggml's, and the ratio."""
    found: Ratios = {heading: {} for heading in COLUMNS}
    headings = {what: heading for heading, what in COLUMNS.items()}
    for row in _ROW.finditer(report):
        peer = _PEER.search(row["peers"])
        if peer and row["what"] in headings:
            figures = (float(row["speed"]), float(peer["speed"]), float(peer["ratio"]))
            found[headings[row["what"]]][row["kind"]] = figures
    return found


def table(found: Ratios) -> str:
    """Markdown: GB/s of both on AVX-512, and the ratios."""
    lines = [f"| type | GB/s | ggml's C | {' | '.join(COLUMNS)} |", "|---" * (3 + len(COLUMNS)) + "|"]
    for kind in _ordered(found):
        speed, peer, _ = found["AVX-512"][kind]
        cells = [f"{found[c][kind][2]:.1f}×" if kind in found[c] else "–" for c in COLUMNS]
        lines.append(f"| {kind} | {speed:.2f} | {peer:.3f} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _ordered(found: Ratios) -> list[str]:
    return sorted(found["AVX-512"], key=lambda kind: -found["AVX-512"][kind][2])


# The picture: a group of bars for each type, one bar for each instruction set.
_SETS = {"AVX-512": "#1b6ca8", "AVX2": "#58a5d8", "SSE2": "#b5d8ef"}
_LEFT, _WIDTH, _TOP, _BAR, _GAP = 84, 560, 62, 9, 10


def picture(found: Ratios) -> str:
    """The ratios as bars, SVG."""
    kinds = _ordered(found)
    group = len(_SETS) * _BAR + _GAP
    height = _TOP + len(kinds) * group + 34
    most = max(found[name][kind][2] for name in _SETS for kind in found[name])
    scale = _WIDTH / (2 * -(-most // 2))
    parts = [*_frame(height, scale, most)]
    for index, kind in enumerate(kinds):
        parts += _group(kind, _TOP + index * group, [(name, found[name].get(kind)) for name in _SETS], scale)
    return "\n".join([*parts, *_one(height, scale), "</svg>"]) + "\n"


def _frame(height: int, scale: float, most: float) -> Iterator[str]:
    width = _LEFT + _WIDTH + 60
    yield f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="system-ui, sans-serif">'
    yield f'<rect width="{width}" height="{height}" rx="8" fill="#ffffff"/>'
    yield f'<text x="16" y="26" font-size="15" font-weight="600" fill="#1c2733">{_TITLE}</text>'
    for place, (name, color) in enumerate(_SETS.items()):
        x = _LEFT + place * 92
        yield f'<rect x="{x}" y="38" width="12" height="12" rx="2" fill="{color}"/>'
        yield f'<text x="{x + 18}" y="48" font-size="12" fill="#445261">{name}</text>'
    for ratio in range(0, int(2 * -(-most // 2)) + 1, 2):
        x = _LEFT + ratio * scale
        yield f'<line x1="{x:.1f}" y1="{_TOP - 4}" x2="{x:.1f}" y2="{height - 28}" stroke="#e4e9ee"/>'
        text = f"{ratio}×" if ratio else "0"
        yield f'<text x="{x:.1f}" y="{height - 12}" font-size="11" text-anchor="middle" fill="#6b7885">{text}</text>'


def _one(height: int, scale: float) -> Iterator[str]:
    """The line of ggml itself, over the bars."""
    x = _LEFT + scale
    yield f'<line x1="{x:.1f}" y1="{_TOP - 4}" x2="{x:.1f}" y2="{height - 28}" stroke="#c0392b" stroke-dasharray="4 3"/>'
    yield f'<text x="{x:.1f}" y="{height - 12}" font-size="11" text-anchor="middle" fill="#c0392b">ggml</text>'


_TITLE = "Encoding speed of one thread, as a multiple of ggml's own C"


def _group(kind: str, y: int, bars: list[tuple[str, tuple[float, float, float] | None]], scale: float) -> Iterator[str]:
    middle = y + len(bars) * _BAR / 2 + 4
    yield f'<text x="{_LEFT - 10}" y="{middle:.1f}" font-size="12" text-anchor="end" fill="#1c2733">{kind}</text>'
    for place, (name, figures) in enumerate(bars):
        if figures is None:
            continue
        length, top = figures[2] * scale, y + place * _BAR
        yield f'<rect x="{_LEFT}" y="{top}" width="{length:.1f}" height="{_BAR - 1}" rx="1.5" fill="{_SETS[name]}"/>'
        if not place:
            label = f"{figures[2]:.1f}×"
            yield f'<text x="{_LEFT + length + 5:.1f}" y="{top + 9}" font-size="10" fill="#445261">{label}</text>'


def main() -> None:
    """Write both."""
    found = ratios(SOURCE.read_text("utf-8"))
    TABLE.write_text(table(found), "utf-8")
    PICTURE.write_text(picture(found), "utf-8")


if __name__ == "__main__":
    main()
