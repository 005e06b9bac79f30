"""`edgekit assess`: what a model is, and what each backend would make of it."""

from __future__ import annotations

import attrs
import click

import edgekit
from edgekit.cli.output import json_option, print_json, size, table
from edgekit_workflow.assess import Assessment, Grid, Option, assess
from edgekit_workflow.rules import read_rules


@click.command("assess", short_help="Show what each backend makes of a model.")
@click.argument("model")
@click.option("--context", type=click.IntRange(1), help="Tokens; default: the model's context, at most 4096.")
@click.option("--rules", "rules_file", metavar="FILE", help="Rules that name the recipes, instead of the plugin's.")
@click.option("--no-values", is_flag=True, help="Read no weights, not even the few rows that show a coarse grid.")
@json_option
def command(model: str, context: int | None, rules_file: str | None, no_values: bool, as_json: bool) -> None:
    """Show a MODEL's parameters, blocks and tensors, and its size and memory in each installed backend's precisions."""
    rules = None if rules_file is None else read_rules(rules_file)
    result = assess(edgekit.open(model), context, rules=rules, values=not no_values)
    if as_json:
        print_json(attrs.asdict(result))
    else:
        _show(result)


def _show(result: Assessment) -> None:
    family = result.family or f"unknown ({result.problem})"
    click.echo(f"{result.path}: {result.format}, {family}{', multimodal' * result.multimodal}")
    active = f", {result.active:,} of them for a token" if result.active < 0.98 * result.parameters else ""
    click.echo(f"{result.parameters:,} parameters{active}; {size(result.nbytes)} on disk")
    click.echo("stored: " + ", ".join(f"{kind} {size(nbytes)}" for kind, nbytes in result.precisions.items()))
    if result.stored_quantized:
        click.echo("the weights are quantized already; quantizing them again adds to the loss")
    for grid in result.grids:
        click.echo(_grid(grid))
    if not result.family:
        return
    click.echo("blocks: " + ", ".join(f"{count} × {kind}" for kind, count in result.blocks.items()))
    shares = ((role, 100 * count / max(1, sum(result.roles.values()))) for role, count in result.roles.items())
    click.echo("weights: " + ", ".join(f"{role} {share:.1f} %" for role, share in shares))
    click.echo(f"keys, values and states at {result.planned_context:,} tokens: {size(result.state)} at 2 bytes each\n")
    header = ("backend", "recipe", "precision", "on disk", "memory", "fallbacks")
    click.echo(table(header, [_row(option) for option in result.options]))
    for line in sorted({_blocking(option) for option in result.options if option.fallbacks}):
        click.echo(line)


def _row(option: Option) -> tuple[object, ...]:
    title = option.title + ("" if option.installed else " (runtime not installed)")
    return title, option.recipe, option.tier, size(option.nbytes), size(option.memory.total), len(option.fallbacks)


def _blocking(option: Option) -> str:
    name, reason = next(iter(option.fallbacks.items()))
    return f"{option.title} {option.recipe}: {name} and {len(option.fallbacks) - 1} others: {reason}"


def _grid(grid: Grid) -> str:
    where = f"each {grid.group} neighbours" if grid.group else "each row"
    return (
        f"{grid.tensor}: {grid.bits} bits suffice for the values of {where}: these weights were quantized once, and "
        "quantizing them again adds to the loss; take the original"
    )


__all__ = ["command"]
