"""The report's page: one HTML file that needs nothing else, for desk and phone, light and dark."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from edgekit.cli.output import size
from edgekit_workflow.report import charts
from edgekit_workflow.report.data import Run

_STYLE = """
:root{color-scheme:light dark;--ink:#1f2937;--soft:#4b5563;--rule:#e5e7eb;--grid:#e5e7eb;--noise:#f3f4f6;--back:#fff;
--good:#15803d;--bad:#b91c1c}
@media (prefers-color-scheme:dark){:root{--ink:#e5e7eb;--soft:#a3a9b3;--rule:#33363c;--grid:#33363c;--noise:#1f2126;
--back:#131416;--good:#4ade80;--bad:#f87171}}
body{font:16px/1.5 system-ui,sans-serif;max-width:920px;margin:2rem auto;padding:0 1rem;color:var(--ink);background:var(--back)}
h1{font-size:1.6rem;margin-bottom:.2rem} h2{font-size:1.2rem;margin:2.2rem 0 .2rem} p{color:var(--soft);max-width:44rem}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:14px}
th,td{padding:.3rem .6rem;text-align:right;border-bottom:1px solid var(--rule)} td span{white-space:nowrap}
td:first-child span,.text span{white-space:normal;overflow-wrap:break-word} code{overflow-wrap:anywhere}
th{color:var(--soft);font-weight:600} th:first-child,td:first-child,.text{text-align:left}
.chosen td{font-weight:600} .good{color:var(--good)} .bad{color:var(--bad)} code,pre{font-size:13px}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:var(--noise);padding:.6rem .8rem;border-radius:6px}
svg{width:100%;height:auto;margin:.6rem 0} svg text{font-family:system-ui,sans-serif!important} .narrow{display:none}
blockquote{margin:.7rem 0;padding:.1rem 0 .1rem .8rem;border-left:3px solid var(--rule);overflow-wrap:anywhere}
blockquote small{color:var(--soft);display:block} mark{background:var(--noise);color:inherit;border-radius:3px;padding:0 .15em}
ul{padding-left:1.2rem} li{margin:.15rem 0}
@media (max-width:640px){
.wide,thead{display:none} .narrow{display:block} table,tbody{display:block}
tr{display:grid;grid-template-columns:1fr 1fr;column-gap:1rem;padding:.5rem 0;border-bottom:1px solid var(--rule)}
td{display:flex;justify-content:space-between;gap:.5rem;padding:.1rem 0;border:0;text-align:left}
td:first-child{grid-column:1/3;font-weight:600} td::before{content:attr(data-of);color:var(--soft)}
td:first-child::before{content:none} td:has(span:empty){display:none} td.text,td.long{grid-column:1/3}
}
"""  # noqa: E501  - a style sheet

Section = tuple[str, str]


def render(run: Run) -> str:
    """Return the page of a run as HTML; the same bytes for the same records."""
    title = f"edgekit: {run.source['path']} optimized"
    body = "\n".join(f"<section><h2>{heading}</h2>\n{content}\n</section>" for heading, content in _sections(run))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_text(title)}</title><style>{_STYLE}</style></head><body>
<h1>{_text(run.source["path"])}, optimized</h1>
{_introduction(run)}
{body}
</body></html>
"""


def _introduction(run: Run) -> str:
    source, quality = run.source, run.source["quality"]
    texts = ", ".join(run.head["texts"] or ["a text that the model wrote itself"])
    return (
        f"<p>{source['parameters']:,} parameters, {size(source['nbytes'])} in {_text(source['format'])}, perplexity "
        f"{quality['perplexity']:.4f} on {quality['positions']:,} tokens of {_text(texts)}, none of which calibrated "
        "or chose anything. Divergences are from this source.</p>"
    )


def _sections(run: Run) -> Iterator[Section]:
    yield "Recommendation", _recommendation(run)
    if run.made:
        yield "Size against quality", _tradeoff(run)
        yield "Artifacts", _artifacts(run)
    measure, cells = run.tensor_costs()
    if cells:
        note = (
            f"<p>Colour: {_text(measure)}. Number: the tensor's bytes. Where the colour is bright and the bytes are "
            "few, a better precision pays most.</p>"
        )
        yield "Divergence and bytes of each tensor", note + _chart("heat", charts.heat_map, cells, measure)
    if run.precisions():
        assert run.chosen is not None
        note = f"<p>The precisions of {_text(run.chosen.name)}; norms, which stay in float, are left out.</p>"
        yield "Precision map", note + _chart("map", charts.precision_map, run.precisions())
    if any(run.categories().values()):
        yield "Divergence by category", _chart("categories", charts.categories, run.categories())
    if run.chosen and run.chosen.record["quality"]["worst"]:
        yield "Worst tokens", _worst(run)
    if run.latencies():
        yield "Latency", _latency(run)
    yield "Gates", _gates(run)
    yield "Fallbacks and what was left out", _fallbacks(run)
    yield "Make it again", _origin(run)


def _chart(name: str, draw: Callable[..., str], *data: Any) -> str:
    """Return a chart twice: for wide and for narrow screens."""
    return "".join(
        f'<div class="{kind}">{draw(*data, f"{name}-{kind}", width)}</div>'
        for kind, width in (("wide", charts.WIDE), ("narrow", charts.NARROW))
    )


def _recommendation(run: Run) -> str:
    if run.result["chosen"] is None:
        faults = (f"{_text(name)}: {_text(why)}" for name, why in run.result["refused"].items())
        return f'<p class="bad">No artifact meets every requirement.</p>{_list(faults)}'
    assert run.chosen is not None
    return f"<p><b>{_text(run.label(run.chosen))}</b></p>{_list(map(_text, run.result['reasons']))}"


def _tradeoff(run: Run) -> str:
    budget = run.result["settings"]["budget"]
    note = (
        "<p>Further left is smaller, further down is nearer to the source. The line joins the Pareto front: what no "
        "other artifact beats in quality, size, memory and speed. Bars are one standard error."
        + (f" The dashed line is the budget of {size(budget)}." if budget else "")
        + f" The noise floor is {run.noise:.1e} nats, the divergence of the source from itself when its sums are taken "
        "in another order; values in its band are drawn at its edge.</p>"
    )
    return note + _chart("tradeoff", charts.tradeoff, run.points(), run.noise, budget)


def _artifacts(run: Run) -> str:
    ahead = {m.name for m in run.front}
    header = ("artifact", "size", "bits/weight", "KL divergence", "top-1", "perplexity", "tokens/s", "memory", "front")
    rows = []
    for m in run.made:
        quality = m.record["quality"]
        rows.append(
            (
                _text(run.label(m)),
                size(m.record["nbytes"]),
                f"{m.record['bits_per_weight']:.3f}",
                f"{quality['kl']:.6f} <small>± {quality['kl_error']:.6f}</small>",
                f"{quality['top1']:.2%}",
                f"{quality['perplexity']:.4f}",
                f"{m.speed['speed']:.0f}" if m.speed.get("speed") else "–",
                size(m.speed["memory"]) if m.speed.get("memory") else "–",
                "yes" if m.name in ahead else "",
            )
        )
    chosen = run.result["chosen"]
    return _table(header, rows, marked=[m.name == chosen for m in run.made])


def _worst(run: Run) -> str:
    assert run.chosen is not None
    note = f"<p>Where {_text(run.chosen.name)} differs most from the source, with the text before it.</p>"
    quotes = (
        f"<blockquote>…{_text(w['before'])}<mark>{_text(w['actual'])}</mark><small>the source expects "
        f"{_token(w['expected'])} ({w['expected_share']:.0%}), the artifact {_token(w['predicted'])} "
        f"({w['predicted_share']:.0%}); {w['kl']:.3f} nats, {_text(w['category'])}</small></blockquote>"
        for w in run.chosen.record["quality"]["worst"]
    )
    return note + "\n".join(quotes)


def _latency(run: Run) -> str:
    rows = []
    for m in run.made:
        if m.speed.get("latency"):
            options = ", ".join(f"{k}={v}" for k, v in m.speed["options"].items())
            interval = m.speed["interval"] or {"low": 0.0, "high": 0.0}
            rows.append(
                (
                    _text(run.label(m)),
                    _text(m.speed["runtime"] + (f" ({options})" if options else "")),
                    f"{m.speed['first_token']['mean'] * 1e3:.1f} ms",
                    f"{m.speed['speed'] or 0:.0f}",
                    f"{max(0.0, interval['low']):.0f} to {interval['high']:.0f}",
                    f"{m.speed['load_seconds']:.2f} s",
                )
            )
    header = ("artifact", "runtime", "first token", "tokens/s", "95 %", "load")
    return _chart("latency", charts.latencies, run.latencies()) + _table(header, rows)


def _gates(run: Run) -> str:
    results = run.gates()
    if not results:
        return "<p>Not judged in this run.</p>"
    words = {True: '<span class="good">passed</span>', False: '<span class="bad">failed</span>', None: "not run"}
    rows = [
        (
            _text(run.label(m)),
            f"{_text(g['category'])} {_text(g['name'])}",
            words[g["passed"]],
            _figure(g),
            _text(g["detail"]),
        )
        for m, g in results
        if g["passed"] is False or m is run.chosen
    ]
    passed = sum(g["passed"] is True for _, g in results)
    judged = len({m.name for m, _ in results})
    note = (
        f"<p>{passed} of {len(results)} gates passed, over {judged} artifacts; shown are those of the chosen one, and"
    )
    return f"{note} all that failed.</p>" + _table(("artifact", "gate", "result", "measured", "detail"), rows)


def _figure(gate: Mapping[str, Any]) -> str:
    if gate["measured"] is None:
        return ""
    unit = f" {_text(gate['unit'])}" if gate["unit"] else ""
    required = "" if gate["required"] is None else f" <small>(required {gate['required']:.4g})</small>"
    return f"{gate['measured']:.4g}{unit}{required}"


def _fallbacks(run: Run) -> str:
    fallbacks = [f"{_text(run.label(m))}: {_text(tensor)}: {_text(why)}" for m, tensor, why in run.fallbacks()]
    more = len(fallbacks) - 40
    shown = fallbacks[:40] + ([f"and {more} more, in the records"] if more > 0 else [])
    parts = [_list(shown) if shown else "<p>Every tensor has the precision that its recipe asks for.</p>"]
    if run.result["left_out"]:
        parts.append("<p>Left out:</p>" + _list(f"{_text(n)}: {_text(w)}" for n, w in run.result["left_out"].items()))
    if run.not_gated:
        parts.append("<p>Not gated:</p>" + _list(f"{_text(n)}: {_text(w)}" for n, w in run.not_gated.items()))
    return "".join(parts)


def _origin(run: Run) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in run.head["versions"].items())
    rows = [(_text(name), f"<code>{digest}</code>") for name, digest in run.hashes().items()]
    return f"<pre>{_text(run.result['command'])}</pre><p>{_text(versions)}</p>" + _table(("file", "SHA-256"), rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], marked: Sequence[bool] = ()) -> str:
    """Return a table whose rows become cards on narrow screens; columns of words are aligned left."""
    words, long = {"gate", "detail", "runtime", "result", "SHA-256"}, {"KL divergence", "measured"}
    classes = [' class="text"' if name in words else ' class="long"' if name in long else "" for name in header]
    head = "".join(f"<th{c}>{name}</th>" for name, c in zip(header, classes, strict=True))
    lines = []
    for number, row in enumerate(rows):
        cells = "".join(
            f'<td{c} data-of="{name}"><span>{value}</span></td>'
            for name, value, c in zip(header, row, classes, strict=True)
        )
        chosen = ' class="chosen"' if number < len(marked) and marked[number] else ""
        lines.append(f"<tr{chosen}>{cells}</tr>")
    body = "\n".join(lines)
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>"


def _list(items: Any) -> str:
    return "<ul>" + "".join(f"<li>{item}</li>" for item in items) + "</ul>"


def _token(text: str) -> str:
    shown = _text(text.replace("\n", "⏎")) or "∅"
    return f"<code>{shown}</code>"


def _text(text: object) -> str:
    return html.escape(str(text))


__all__ = ["render"]
