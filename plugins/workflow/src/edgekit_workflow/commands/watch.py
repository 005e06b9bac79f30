"""`edgekit watch`: drift of what a served model writes."""

from __future__ import annotations

import os
from pathlib import Path

import attrs
import click

from edgekit.cli.output import json_option, print_json, table
from edgekit.errors import QualityGateError, UsageError
from edgekit.files.atomic import write_atomic
from edgekit_workflow.watching import Drift, Limits, Record, compare, read_record

_VERDICT = {True: "DRIFTED", False: "as before", None: "too few texts"}


@click.command("watch", short_help="Compare what a served model writes with a baseline.")
@click.argument("source")
@click.option("--record", "to", metavar="FILE", help="Write what SOURCE shows here, as a baseline.")
@click.option("--against", "baseline", metavar="FILE", help="The baseline to compare with; any SOURCE serves.")
@click.option("--since", metavar="FILE", help="Of metrics: only what came after this record of the same server.")
@click.option("--last", type=int, metavar="N", help="Of a log: only the last N texts.")
@click.option("--psi", type=float, default=0.2, show_default=True, help="Stability index from which on it is drift.")
@click.option("--p-value", type=float, default=0.01, show_default=True, help="And the test's p-value below which.")
@click.option("--least", type=int, default=50, show_default=True, help="Texts that each side needs to be judged.")
@json_option
def command(
    source: str,
    to: str | None,
    baseline: str | None,
    since: str | None,
    last: int | None,
    psi: float,
    p_value: float,
    least: int,
    as_json: bool,
) -> None:
    """Compare the length, confidence and refusals of served texts with a recorded baseline.

    SOURCE is the URL of a server's /metrics, a file of that page, or a log of `edgekit serve --log-format json`; the
    key is taken from EDGEKIT_API_KEY. Exit code 7 if a measure has drifted: both the population stability index and
    the p-value of Kolmogorov-Smirnov's test say so.
    """
    if (to is None) == (baseline is None):
        raise UsageError("give --record FILE to write a baseline, or --against FILE to compare with one")
    keys = os.environ.get("EDGEKIT_API_KEY", "").split()
    record = read_record(source, key=keys[0] if keys else None, last=last)
    if since is not None:
        record = record.since(read_record(since))
    if to is not None:
        write_atomic(Path(to), record.to_json().encode())
        print_json(_counts(record)) if as_json else click.echo(_recorded(record, to))
        return
    assert baseline is not None
    drifts = compare(record, read_record(baseline), _limits(psi, p_value, least))
    print_json([attrs.asdict(drift) for drift in drifts]) if as_json else click.echo(_shown(drifts))
    _refuse(drifts)


def _limits(psi: float, p_value: float, least: int) -> Limits:
    try:
        return Limits(psi, p_value, least)
    except ValueError as error:
        raise UsageError(f"--psi {psi} --p-value {p_value} --least {least}; {error.args[0]:.100}") from error


def _counts(record: Record) -> dict[str, dict[str, int]]:
    return {model: {name: d.total for name, d in measures.items()} for model, measures in record.models.items()}


def _recorded(record: Record, to: str) -> str:
    lines = [
        f"{model}: {', '.join(f'{name} of {count} texts' for name, count in measures.items())}"
        for model, measures in _counts(record).items()
    ]
    return "\n".join([*lines, f"written to {to}"])


def _shown(drifts: list[Drift]) -> str:
    header = ("model", "measure", "result", "texts", "baseline", "mean", "before", "PSI", "KS", "p")
    rows = [
        (
            *(d.model, d.measure, _VERDICT[d.drifted], d.texts, d.baseline),
            *(f"{value:.4g}" for value in (d.means[1], d.means[0], d.psi, d.distance, d.p_value)),
        )
        for d in drifts
    ]
    return table(header, rows)


def _refuse(drifts: list[Drift]) -> None:
    lines = [
        f"  {d.model} {d.measure}: mean {d.means[1]:.4g}, before {d.means[0]:.4g} (PSI {d.psi:.3g}, p {d.p_value:.2g})"
        for d in drifts
        if d.drifted
    ]
    if lines:
        raise QualityGateError(
            "what the model writes has drifted from the baseline; look at what is asked, then at the artifact "
            "(edgekit gate, edgekit diagnose), or record a new baseline:\n" + "\n".join(lines)
        )


__all__ = ["command"]
