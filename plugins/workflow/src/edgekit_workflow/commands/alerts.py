"""`edgekit alerts`: rules for Prometheus and a dashboard for Grafana."""

from __future__ import annotations

import click

from edgekit.cli.output import json_option, print_json
from edgekit_workflow.watching import Limits, read_record
from edgekit_workflow.watching.monitoring import TARGET, write_monitoring


@click.command("alerts", short_help="Write Prometheus rules and a Grafana dashboard.")
@click.option("--to", required=True, metavar="DIR", help="Directory to write.")
@click.option("--target", default=TARGET, show_default=True, metavar="HOST:PORT", help="Where the server listens.")
@click.option("--against", "baseline", metavar="FILE", help="A record of metrics, whose drift gets rules too.")
@click.option("--psi", type=float, default=0.2, show_default=True, help="Stability index from which on it is drift.")
@json_option
def command(to: str, target: str, baseline: str | None, psi: float, as_json: bool) -> None:
    """Write what Prometheus and Grafana need to watch `edgekit serve`.

    alerts.yml has the alerts, drift.yml those on drift from a baseline, prometheus.yml asks the server and loads both,
    dashboard.json is imported into Grafana.
    """
    record = None if baseline is None else read_record(baseline)
    written = write_monitoring(to, target=target, baseline=record, limits=Limits(psi=max(0.0, psi)))
    if as_json:
        print_json([str(path) for path in written])
        return
    for path in written:
        click.echo(path)


__all__ = ["command"]
