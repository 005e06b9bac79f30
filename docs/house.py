"""The page that draws the core as it is: its rooms, and which imports which, read from the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from html import escape
from pathlib import Path

import edgekit

SOURCE = Path(edgekit.__file__).parent
WIDTH, HEIGHT, ROW, MARGIN = 168, 44, 92, 14
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
    """The rooms by height: one above the highest that it imports."""
    height: dict[str, int] = {}

    def of(room: str) -> int:
        if room not in height:
            height[room] = max((of(used) + 1 for used in needed[room]), default=0)
        return height[room]

    for room in needed:
        of(room)
    return [sorted(room for room in needed if height[room] == level) for level in range(max(height.values()) + 1)]


def picture() -> str:
    """The rooms as boxes, the lowest at the bottom, and a line to each that is imported directly."""
    needed = imports()
    uses = {room: reduced(room, needed) for room in needed}
    rows = levels(uses)
    width = max(map(len, rows)) * (WIDTH + MARGIN) + MARGIN
    place = {room: spot for level, row in enumerate(rows) for room, spot in _spots(row, len(rows) - 1 - level, width)}
    height = len(rows) * ROW
    lines = [_line(place[room], place[used]) for room in uses for used in sorted(uses[room])]
    boxes = [_box(room, *place[room]) for room in place]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">'
    title = "<title>The rooms of the core and what each imports</title>"
    return "\n".join([head, title, f"<style>{STYLE}</style>", *lines, *boxes, "</svg>"]) + "\n"


def _spots(row: list[str], line: int, width: int) -> Iterator[tuple[str, tuple[int, int]]]:
    """Where each room of a row stands: centred, `line` rows from the top."""
    left = (width - len(row) * (WIDTH + MARGIN) + MARGIN) // 2
    yield from ((room, (left + i * (WIDTH + MARGIN), MARGIN + line * ROW)) for i, room in enumerate(row))


def _line(upper: tuple[int, int], lower: tuple[int, int]) -> str:
    x, y = upper[0] + WIDTH // 2, upper[1] + HEIGHT
    x2, y2 = lower[0] + WIDTH // 2, lower[1]
    middle = (y + y2) // 2
    return f'<path d="M{x} {y}C{x} {middle} {x2} {middle} {x2} {y2}"/>'


def _box(room: str, x: int, y: int) -> str:
    files = rooms()[room]
    lines = sum(len(file.read_text("utf-8").splitlines()) for file in files)
    size = f"{len(files)} files, about {max(100, round(lines, -2)):,} lines" if len(files) > 1 else "one file"
    middle = x + WIDTH // 2
    return (
        f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6"/>'
        f'<text class="room" x="{middle}" y="{y + 19}" text-anchor="middle">{escape(room)}</text>'
        f'<text class="size" x="{middle}" y="{y + 34}" text-anchor="middle">{size}</text>'
    )


def page() -> str:
    """The page: the picture, and a table of the rooms."""
    needed = imports()
    rows = [
        f"| `{room}` | {_summary(room)} | {', '.join(f'`{used}`' for used in sorted(needed[room])) or '–'} |"
        for row in levels(needed)
        for room in row
    ]
    table = "\n".join(["| room | what it holds | imports |", "|---|---|---|", *rows])
    return (
        "# The core, drawn from its imports\n\n"
        "Imports run one way, and no two modules import each other, neither inside functions nor for types; "
        "`tests/core/test_imports.py` holds the code to it. A line leads from a room to each that it imports directly; "
        "what follows from another line is left out.\n\n"
        f"![The rooms of the core and what each imports](../images/house.svg)\n\n{table}\n"
    )


def _summary(room: str) -> str:
    file = SOURCE / room / "__init__.py" if (SOURCE / room).is_dir() else SOURCE / f"{room}.py"
    return (ast.get_docstring(ast.parse(file.read_text("utf-8"))) or "").partition("\n")[0].replace("|", "\\|")
