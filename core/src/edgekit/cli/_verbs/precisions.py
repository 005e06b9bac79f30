"""`edgekit precisions`: the catalogue of number formats."""

from __future__ import annotations

import click

from edgekit.cli.output import json_option, print_json, table
from edgekit.encoding._catalogue import entries


@click.command("precisions")
@click.option("--tier", type=click.Choice(["ultra-low", "low", "medium", "full"]), help="List only this tier.")
@json_option
def command(tier: str | None, as_json: bool) -> None:
    """List every precision: tier, bits a weight, block, and what its encoder is tested against."""
    listed = [entry for entry in entries() if tier in (None, entry.tier)]
    if as_json:
        print_json([entry.to_dict() for entry in listed])
        return
    rows = [(e.name, e.tier, f"{e.bits_per_weight:.4g}", e.block, e.proof) for e in listed]
    click.echo(table(("precision", "tier", "bits/weight", "block", "proof"), rows))


__all__ = ["command"]
