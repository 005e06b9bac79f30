"""The report of a training run as one self-contained HTML page, with the losses as a chart and as a table."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgekit_mlx.training import Report

Points = Sequence[tuple[int, float]]
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 720, 320, 56, 16, 16, 40
_STYLE = """
:root{color-scheme:light dark;--ink:#1f2937;--soft:#4b5563;--rule:#e5e7eb;--back:#fff;--train:#2563eb;--valid:#b45309}
@media (prefers-color-scheme:dark){:root{--ink:#e5e7eb;--soft:#a3a9b3;--rule:#33363c;--back:#131416;--train:#7aa7ff;--valid:#f0a860}}
body{font:16px/1.5 system-ui,sans-serif;max-width:760px;margin:2rem auto;padding:0 1rem;color:var(--ink);background:var(--back)}
svg{width:100%;height:auto} text{fill:var(--soft);font:12px system-ui,sans-serif} .rule{stroke:var(--rule)}
polyline{fill:none;stroke-width:2} .train{stroke:var(--train)} .valid{stroke:var(--valid)} circle.valid{fill:var(--valid)}
text.train{fill:var(--train);stroke:none} text.valid{fill:var(--valid);stroke:none}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:14px}
th,td{padding:.2rem .8rem;text-align:right;border-bottom:1px solid var(--rule)}
"""  # noqa: E501  - a style sheet


def page(report: Report) -> str:
    """Return the HTML page of a report."""
    title = html.escape(f"Fine-tuning: {report.method}, {report.steps} steps")
    facts = f"{report.examples} examples, {report.tokens:,} tokens, {report.trainable:,} trained parameters"
    if report.gain is not None:
        before, after = report.validation[0][1], report.validation[-1][1]
        facts += f"; validation loss {before:.4f} before, {after:.4f} after ({-report.gain:+.1%})"
    head = f'<meta charset="utf-8"><title>{title}</title><meta name="viewport" content="width=device-width">'
    body = f"<h1>{title}</h1><p>{facts}.</p>\n{picture(report.training, report.validation)}\n{_table(report)}"
    return f'<!doctype html>\n<html lang="en"><head>{head}<style>{_STYLE}</style></head>\n<body>{body}</body></html>\n'


def picture(training: Points, validation: Points) -> str:
    """Return the losses as an SVG chart: training as a line, validation as a line with dots."""
    losses = [loss for _, loss in (*training, *validation)]
    steps = max(step for step, _ in (*training, *validation))
    low, high = min(losses), max(losses)
    margin = (high - low) * 0.08 or abs(high) * 0.08 or 1.0
    low, high = max(0.0, low - margin), high + margin

    def place(point: tuple[int, float]) -> tuple[float, float]:
        x = _LEFT + (_WIDTH - _LEFT - _RIGHT) * point[0] / max(1, steps)
        y = _TOP + (_HEIGHT - _TOP - _BOTTOM) * (high - point[1]) / (high - low)
        return round(x, 1), round(y, 1)

    body = [*_grid(low, high, steps, place)]
    body.append(_line("train", map(place, training)))
    if validation:
        body.append(_line("valid", map(place, validation)))
        body += [f'<circle class="valid" cx="{x}" cy="{y}" r="3"/>' for x, y in map(place, validation)]
    body.append(f'<text class="train" x="{_WIDTH - _RIGHT}" y="{_TOP + 10}" text-anchor="end">training</text>')
    if validation:
        body.append(f'<text class="valid" x="{_WIDTH - _RIGHT}" y="{_TOP + 26}" text-anchor="end">validation</text>')
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="Loss by step">\n' + "\n".join(body) + "\n</svg>"
    )


def _grid(low: float, high: float, steps: int, place: object) -> Iterator[str]:
    assert callable(place)
    for number in range(5):
        loss = low + (high - low) * number / 4
        _, y = place((0, loss))
        yield f'<line class="rule" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>'
        yield f'<text x="{_LEFT - 8}" y="{y + 4}" text-anchor="end">{loss:.3g}</text>'
    for number in range(5):
        step = round(steps * number / 4)
        x, _ = place((step, low))
        yield f'<text x="{x}" y="{_HEIGHT - _BOTTOM + 20}" text-anchor="middle">{step}</text>'
    yield f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 4}" text-anchor="middle">step</text>'


def _line(name: str, points: Iterable[tuple[float, float]]) -> str:
    return f'<polyline class="{name}" points="{" ".join(f"{x},{y}" for x, y in points)}"/>'


def _table(report: Report) -> str:
    training, validation = dict(report.training), dict(report.validation)
    rows = "".join(
        f"<tr><td>{step}</td><td>{_cell(training.get(step))}</td><td>{_cell(validation.get(step))}</td></tr>"
        for step in sorted({*training, *validation})
    )
    return (
        f"<table><thead><tr><th>step</th><th>training</th><th>validation</th></tr></thead><tbody>{rows}</tbody></table>"
    )


def _cell(loss: float | None) -> str:
    return "" if loss is None else f"{loss:.4f}"


__all__ = ["page", "picture"]
