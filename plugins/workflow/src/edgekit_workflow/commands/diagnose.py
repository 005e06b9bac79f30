"""`edgekit diagnose`: common troubles of deployment and their cures."""

from __future__ import annotations

import os

import attrs
import click

from edgekit.cli.output import json_option, print_json
from edgekit_workflow.diagnosing import Finding, diagnose


@click.command("diagnose", short_help="Look for common troubles of deployment.")
@click.argument("artifact", required=False)
@click.option("--against", "source", metavar="SOURCE", help="What ARTIFACT was made from, to compare with.")
@click.option("--runtime", metavar="NAME", help="Runtime; the default is the fastest that runs the format.")
@click.option("--context", type=click.IntRange(1), help="Tokens that are to be served.")
@click.option("--threads", type=click.IntRange(1), help="Threads that the runtime is given.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), help="Port to listen on.")
@click.option("--url", metavar="URL", help="Address of a running server.")
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    artifact: str | None,
    source: str | None,
    runtime: str | None,
    context: int | None,
    threads: int | None,
    host: str,
    port: int | None,
    url: str | None,
    as_json: bool,
) -> None:
    """Look for common troubles: of a model, of this machine, and of a running server; and say what to do.

    The key of a server is taken from EDGEKIT_API_KEY. Exit code 7 if something is wrong; remarks do not count.
    """
    keys = os.environ.get("EDGEKIT_API_KEY", "").split()
    found = diagnose(
        artifact,
        source=source,
        runtime=runtime,
        context=context,
        threads=threads,
        host=host,
        port=port,
        url=url,
        key=keys[0] if keys else None,
    )
    if as_json:
        print_json([attrs.asdict(finding) for finding in found])
    else:
        for finding in found:
            click.echo(shown(finding))
    ctx.exit(7 if any(f.trouble is not None and f.trouble.certain for f in found) else 0)


def shown(finding: Finding) -> str:
    """Return a finding as a line, with its cure on the next."""
    trouble = finding.trouble
    if trouble is None:
        return f"✓ {finding.check}"
    return f"{'✗' if trouble.certain else '–'} {finding.check}: {trouble.what}\n    {trouble.cure}"


__all__ = ["command", "shown"]
