"""`edgekit gate`: hold an artifact to a policy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from edgekit.cli.output import json_option, progress_bar, read_text, table
from edgekit.errors import UsageError
from edgekit.files.atomic import write_atomic
from edgekit_workflow.gates import Certificate, gate

_PASSED = {True: "passed", False: "FAILED", None: "not run"}


@click.command("gate", short_help="Hold an artifact to a policy.")
@click.argument("artifact")
@click.option("--against", "source", required=True, metavar="SOURCE", help="The model that it was made from.")
@click.option("--policy", metavar="FILE", help="Limits in TOML; the default ones are in docs/reference/gates.md.")
@click.option(
    "--text",
    "texts",
    multiple=True,
    metavar="FILE",
    help="A text to measure quality on; several are judged each by itself, by their names.",
)
@click.option(
    "--samples",
    metavar="FILE",
    help="Of a classifier: an .npz of arrays of its inputs, and labels, to measure quality on.",
)
@click.option("--full", is_flag=True, help="Compare every row of every tensor, not a sample.")
@click.option("--runtime", metavar="NAME", help="Runtime; the default is the fastest that runs the format.")
@click.option(
    "--signature", nargs=2, metavar="FILE KEY", help="A signature by model_signing, and the public key to verify it."
)
@click.option("--to", metavar="FILE", help="Write the certificate here.")
@json_option
def command(
    artifact: str,
    source: str,
    policy: str | None,
    texts: Sequence[str],
    samples: str | None,
    full: bool,
    runtime: str | None,
    signature: tuple[str, str] | None,
    to: str | None,
    as_json: bool,
) -> None:
    """Judge ARTIFACT against SOURCE: silent failures, derivation, quality, robustness, speed, files, licence.

    Exit code 7, and a line for each gate, if one fails. The certificate is an in-toto statement in JSON.
    """
    named = {Path(file).stem or "text": read_text(file) for file in texts}
    if len(named) < len(texts):
        raise UsageError(f"--text: two files of one name ({', '.join(texts)}); texts are told apart by their names")
    with progress_bar("gate") as report:
        certificate = gate(
            artifact,
            source,
            policy=policy,
            text=named,
            samples=samples,
            full=full,
            runtime=runtime,
            signature=signature,
            progress=report,
        )
    if to is not None:
        write_atomic(Path(to), certificate.to_json().encode())
    click.echo(certificate.to_json() if as_json else _shown(certificate), nl=not as_json)
    certificate.refuse()


def _shown(certificate: Certificate) -> str:
    rows = [
        (r.category, r.name, _PASSED[r.passed], _figure(r.measured), _figure(r.required), r.unit, r.detail)
        for r in certificate
    ]
    return table(("category", "gate", "result", "measured", "limit", "", "detail"), rows)


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


__all__ = ["command"]
