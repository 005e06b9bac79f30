"""The page on the core's modules: what each holds, and which imports which, read from the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from html import escape
from pathlib import Path

import edgekit

SOURCE = Path(edgekit.__file__).parent
WIDTH, HEIGHT, ROW, MARGIN, GAP = 168, 44, 92, 14, 12
STYLE = (
    "text{font-family:system-ui,sans-serif;fill:#1c2733}rect{fill:#eef3f7;stroke:#8aa0b3}"
    "path{fill:none;stroke:#8aa0b3}.size{font-size:10px;fill:#5b6b7a}.room{font-size:13px;font-weight:600}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}rect{fill:#1b2733;stroke:#5b7083}path{stroke:#5b7083}"
    ".size{fill:#9fb0bf}}"
)


def rooms() -> dict[str, list[Path]]:
    """The files of each room of the core: a folder, or a single module."""
    found: dict[str, list[Path]] = {}
    for file in sorted(SOURCE.rglob("*.py")):
        room = file.relative_to(SOURCE).parts[0].removesuffix(".py")
        if not room.startswith("__"):
            found.setdefault(room, []).append(file)
    return found


def imports() -> dict[str, set[str]]:
    """Which rooms each room imports, anywhere in its files."""
    known = rooms()
    return {
        room: {used for file in files for used in _used(file)} & set(known) - {room} for room, files in known.items()
    }


def _used(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{name}" for name in names]
        yield from (name.split(".")[1] for name in names if name.startswith("edgekit."))


def reduced(room: str, needed: dict[str, set[str]]) -> set[str]:
    """The imports of a room that do not follow from its other imports."""
    indirect = {below for used in needed[room] for below in _below(used, needed)}
    return needed[room] - indirect


def _below(room: str, needed: dict[str, set[str]]) -> set[str]:
    return needed[room] | {deeper for used in needed[room] for deeper in _below(used, needed)}


def levels(needed: dict[str, set[str]]) -> list[list[str]]:
    """The modules by height, the lowest first: one above the highest that each imports."""
    height: dict[str, int] = {}

    def of(room: str) -> int:
        if room not in height:
            height[room] = max((of(used) + 1 for used in needed[room]), default=0)
        return height[room]

    for room in needed:
        of(room)
    return [sorted(room for room in needed if height[room] == level) for level in range(max(height.values()) + 1)]


def rows(uses: dict[str, set[str]]) -> list[list[str]]:
    """The rows of the picture, the highest first: each room just below the lowest that imports it."""
    height = {room: level for level, row in enumerate(levels(uses)) for room in row}
    for room in sorted(uses, key=height.__getitem__, reverse=True):
        importers = [height[other] for other in uses if room in uses[other]]
        height[room] = min(importers) - 1 if importers else height[room]
    return [sorted(room for room in uses if height[room] == level) for level in range(max(height.values()), -1, -1)]


def routed(uses: dict[str, set[str]], grid: list[list[str]]) -> set[tuple[str, str]]:
    """Lines from one row to the next. A longer one passes a gap, which is added to each row that it crosses.

    Lines to the same room share their gaps. A gap is named ``|room`` and its row.
    """
    line_of = {room: line for line, row in enumerate(grid) for room in row}
    lines = set()
    pairs = [(room, used) for room in sorted(uses) for used in sorted(uses[room])]
    for above, used in pairs:
        for line in range(line_of[above] + 1, line_of[used]):
            gap = f"|{used} {line}"
            if gap not in grid[line]:
                grid[line].append(gap)
            lines.add((above, gap))
            above = gap
        lines.add((above, used))
    return lines


def ordered(grid: list[list[str]], lines: set[tuple[str, str]]) -> list[list[str]]:
    """The rows with each item near the mean place of those above that lead to it, so that few lines cross."""
    place: dict[str, float] = {}
    done = []
    for row in grid:
        mean = {item: [place[above] for above, below in lines if below == item] for item in row}
        row = sorted(row, key=lambda item: sum(mean[item]) / len(mean[item]) if mean[item] else 0)
        place |= {item: index - (len(row) - 1) / 2 for index, item in enumerate(row)}
        done.append(row)
    return done


def picture() -> str:
    """The rooms as boxes, the lowest at the bottom, and a line to each that is imported directly."""
    needed = imports()
    uses = {room: reduced(room, needed) for room in needed}
    grid = rows(uses)
    lines = routed(uses, grid)
    grid = ordered(grid, lines)
    width = max(sum(map(_width, row)) + MARGIN for row in grid)
    place = {item: spot for line, row in enumerate(grid) for item, spot in _spots(row, line, width)}
    height = len(grid) * ROW
    paths = [_line(place[above], place[below]) for above, below in sorted(lines)]
    paths += [_line(spot, spot) for item, spot in sorted(place.items()) if item.startswith("|")]
    boxes = [_box(room, *place[room]) for room in needed]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">'
    title = "<title>The modules of the core and what each imports</title>"
    return "\n".join([head, title, f"<style>{STYLE}</style>", *paths, *boxes, "</svg>"]) + "\n"


def _width(item: str) -> int:
    return (GAP if item.startswith("|") else WIDTH) + MARGIN


def _spots(row: list[str], line: int, width: int) -> Iterator[tuple[str, tuple[int, int]]]:
    """The middle of each item of a row, and its top: the row is centred, `line` rows from the top."""
    left = (width - sum(map(_width, row)) + MARGIN) // 2
    for item in row:
        yield item, (left + (_width(item) - MARGIN) // 2, MARGIN + line * ROW)
        left += _width(item)


def _line(upper: tuple[int, int], lower: tuple[int, int]) -> str:
    """A curve from the foot of one item to the top of one below; within one item, a straight line through it."""
    (x, y), (x2, y2) = upper, lower
    if upper == lower:
        return f'<path d="M{x} {y}V{y + HEIGHT}"/>'
    y += HEIGHT
    middle = (y + y2) // 2
    return f'<path d="M{x} {y}C{x} {middle} {x2} {middle} {x2} {y2}"/>'


def _box(room: str, middle: int, y: int) -> str:
    files = rooms()[room]
    size = f"{len(files)} files" if len(files) > 1 else "one file"
    return (
        f'<rect x="{middle - WIDTH // 2}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6"/>'
        f'<text class="room" x="{middle}" y="{y + 19}" text-anchor="middle">{escape(room)}</text>'
        f'<text class="size" x="{middle}" y="{y + 34}" text-anchor="middle">{size}</text>'
    )


def page() -> str:
    """The page: the picture, and a table of the rooms."""
    needed = imports()
    lines = [
        f"| `{room}` | {_summary(room)} | {', '.join(f'`{used}`' for used in sorted(needed[room])) or '–'} |"
        for row in levels(needed)
        for room in row
    ]
    table = "\n".join(["| module | what it holds | imports |", "|---|---|---|", *lines])
    return (
        "# The core's modules\n\n"
        "Drawn from the imports in the source. A line leads from a module or package to each that it imports; a line "
        "that follows from two others is left out. No two modules import each other, not even inside functions or for "
        "types only: `tests/core/test_imports.py` fails on a violation. [Design](design.md) gives the order and the "
        "reasons.\n\n"
        f"![The modules of the core and what each imports](../images/modules.svg)\n\n{table}\n"
    )


def _summary(room: str) -> str:
    file = SOURCE / room / "__init__.py" if (SOURCE / room).is_dir() else SOURCE / f"{room}.py"
    return (ast.get_docstring(ast.parse(file.read_text("utf-8"))) or "").partition("\n")[0].replace("|", "\\|")
