"""`edgekit recipes`: list the recipes with their rules."""

from __future__ import annotations

from pathlib import Path

import attrs
import click

from edgekit.cli.output import json_option, print_json, table
from edgekit.pipeline._conversion import find_format
from edgekit.pipeline._recipes import Listed, list_recipes


@click.command("recipes")
@click.option("--format", "format_", metavar="NAME", help="List only the recipes for this format.")
@json_option
def command(format_: str | None, as_json: bool) -> None:
    """List the recipes with their rules; the first rule that applies decides.

    Besides these, every precision is a recipe for all weight matrices (`edgekit precisions`), and so is a TOML file of
    rules of your own.
    """
    name = find_format_name(format_) if format_ else None
    recipes = list(list_recipes(name))
    if as_json:
        print_json([attrs.asdict(recipe) for recipe in recipes])
        return
    click.echo(table(("recipe", "format", "tensors", "precision", "when"), [row for r in recipes for row in _rows(r)]))


def find_format_name(name: str) -> str:
    """Return the format's registered name.

    Raises:
        MissingPluginError: no such format is installed.
    """
    return find_format(name, Path(name)).name


def _rows(recipe: Listed) -> list[tuple[str, ...]]:
    first = (recipe.name, ", ".join(recipe.formats))
    clauses = [(clause.tensors, clause.precision, clause.when) for clause in recipe.clauses]
    lines = clauses or [(recipe.error or "not described", "", "")]
    return [(*(first if not index else ("", "")), *line) for index, line in enumerate(lines)]


__all__ = ["command", "find_format_name"]
