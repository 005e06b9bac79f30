"""Label placement in a chart: beside the dot, clear of lines, dots and other labels."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence

import attrs

Point = tuple[float, float]

#: Size of 12 px text in the widest common font: pixels a character, above and below the baseline.
CHARACTER, ASCENT, DESCENT = 7.9, 10.0, 3.0
#: Radius of a dot, and the radius that labels of other dots keep clear.
DOT, CLEAR = 6.0, 9.0
#: Distances from the dot's edge to its label, nearest first.
_DISTANCES = (3.0, 14.0, 26.0, 40.0, 56.0, 74.0, 94.0)
#: Directions of a label from its dot.
_SIDES = ((1, -1), (-1, 1), (1, 0), (-1, 0), (1, 1), (-1, -1), (0, -1), (0, 1))


@attrs.frozen
class Box:
    """A rectangle in pixels, y downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Box) -> bool:
        """Whether the two rectangles intersect."""
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )

    def inside(self, other: Box) -> bool:
        """Whether it lies inside the other rectangle."""
        return (
            self.left >= other.left
            and self.top >= other.top
            and self.right <= other.right
            and self.bottom <= other.bottom
        )

    def crossed(self, start: Point, stop: Point) -> bool:
        """Whether a segment passes through it (Liang and Barsky's clipping)."""
        enter, leave = 0.0, 1.0
        dx, dy = stop[0] - start[0], stop[1] - start[1]
        edges = (
            (-dx, start[0] - self.left),
            (dx, self.right - start[0]),
            (-dy, start[1] - self.top),
            (dy, self.bottom - start[1]),
        )
        for slope, room in edges:
            if slope == 0:
                if room < 0:
                    return False
            elif slope < 0:
                enter = max(enter, room / slope)
            else:
                leave = min(leave, room / slope)
        return enter <= leave


@attrs.frozen
class Label:
    """A label with the start of its baseline.

    Attributes:
        lead: the line that leads from the dot to a name that stands further away; None beside the dot.
    """

    text: str
    x: float
    y: float
    lead: tuple[Point, Point] | None = None

    @property
    def box(self) -> Box:
        """The rectangle that it covers."""
        return Box(self.x, self.y - ASCENT, self.x + CHARACTER * len(self.text), self.y + DESCENT)


def place(
    names: Sequence[tuple[str, Point]], lines: Iterable[Sequence[Point]], area: Box, taken: Sequence[Box] = ()
) -> list[Label]:
    """Place a name beside each dot.

    Args:
        names: each dot's name and centre; all dots are kept clear.
        lines: paths that names should not stand on.
        area: where names may stand.
        taken: rectangles of other text.

    Returns:
        One label for each name, in their order. A name that fits nowhere takes the place that hides least.
    """
    segments = [pair for line in lines for pair in itertools.pairwise(line)]
    placed: list[Label] = []
    for text, dot in names:
        others = [*taken, *(Box(x - CLEAR, y - CLEAR, x + CLEAR, y + CLEAR) for _, (x, y) in names if (x, y) != dot)]
        cost = functools.partial(_cost, taken=[label.box for label in placed] + others, segments=segments, area=area)
        placed.append(min(_candidates(text, dot), key=cost))  # ties take the first, and the nearest come first
    return placed


def _cost(label: Label, taken: Sequence[Box], segments: Sequence[tuple[Point, Point]], area: Box) -> int:
    """Return the cost of a place: names and dots count more than lines; outside the area is not allowed."""
    box, lead = label.box, label.lead
    hidden = 100 * sum(box.meets(other) for other in taken) + 5 * sum(box.crossed(*segment) for segment in segments)
    led_over = 20 * sum(other.crossed(*lead) for other in taken) if lead else 0
    return hidden + led_over + 1000 * (not box.inside(area))


def _candidates(text: str, dot: Point) -> Iterator[Label]:
    width, middle = CHARACTER * len(text), (ASCENT - DESCENT) / 2
    for distance, (across, down) in itertools.product(_DISTANCES, _SIDES):
        reach = DOT + distance
        x = {1: dot[0] + reach, 0: dot[0] - width / 2, -1: dot[0] - reach - width}[across]
        y = dot[1] + middle + down * reach * 0.8  # beside the dot, a little higher or lower
        if not across:
            y = dot[1] + (reach + ASCENT if down > 0 else -reach - DESCENT)
        end = (min(max(dot[0], x), x + width), y - middle)
        yield Label(text, x, y, (dot, end) if distance > _DISTANCES[0] else None)
