"""`edgekit recommend`: which framework, precision and recipe suit a model and a device."""

from __future__ import annotations

import attrs
import click

import edgekit
from edgekit.cli.output import json_option, print_json, size, table
from edgekit.errors import MissingPluginError
from edgekit.files.sizes import parse_size
from edgekit_workflow.assess import is_multimodal
from edgekit_workflow.commands import described
from edgekit_workflow.hardware import machine, profiles
from edgekit_workflow.recommend import Candidate, Recommendation, recommend
from edgekit_workflow.rules import PRIORITIES, USES, default_rules, read_rules


@click.command("recommend", short_help="Choose a framework and a precision.")
@click.argument("model")
@click.option(
    "--device", metavar="NAME", help=f"A profile or its file; default: this machine. {', '.join(profiles())}."
)
@click.option("--memory", metavar="SIZE", help="What the model may take in all, such as 4GB.")
@click.option(
    "--priority", type=click.Choice(PRIORITIES), default="quality", show_default=True, help="What matters most."
)
@click.option("--use", type=click.Choice(USES), help="Default: vision, embedding or chat, as the model is.")
@click.option("--context", type=click.IntRange(1), help="Tokens; default: 4096 for chat, 512 for embeddings.")
@click.option("--rules", "rules_file", metavar="FILE", help="Rules instead of the plugin's rules.toml.")
@json_option
def command(
    model: str,
    device: str | None,
    memory: str | None,
    priority: str,
    use: str | None,
    context: int | None,
    rules_file: str | None,
    as_json: bool,
) -> None:
    """Rank frameworks, precisions and recipes for a MODEL on a device, with reasons; no weights are read.

    The tokens per second are predictions; `edgekit bench` measures.
    """
    artifact = edgekit.open(model)
    rules = default_rules() if rules_file is None else read_rules(rules_file)
    result = recommend(
        artifact.model.config,
        machine(device),
        memory=None if memory is None else parse_size(memory),
        priority=priority,
        use=use or ("vision" if is_multimodal(artifact) else None),
        context=context,
        rules=rules,
        source=model,
    )
    if as_json:
        print_json(attrs.asdict(result))
    else:
        _show(result)
    if not any(candidate.installed for candidate in result.ranked):
        first = result.ranked[0]
        raise MissingPluginError(f"no plugin for any of these is installed; for the first: {first.command}")


def _show(result: Recommendation) -> None:
    click.echo(f"{result.machine.name}: {described(result.machine)}")
    click.echo(
        f"{result.use}, {result.priority} first, {result.context:,} tokens, at most {size(result.memory)} of memory\n"
    )
    header = ("", "framework", "recipe", "precision", "on disk", "memory", "tokens/s (predicted)")
    click.echo(table(header, [_row(number, each) for number, each in enumerate(result.ranked, 1)]))
    best = result.ranked[0]
    click.echo(f"\n{best.title}, {best.recipe}:")
    for reason in best.reasons:
        click.echo(f"  {reason}")
    click.echo(f"  {best.command}")
    for rejected in result.rejected:
        click.echo(f"not {rejected.framework}{' ' * bool(rejected.tier)}{rejected.tier}: {rejected.reason}")


def _row(number: int, each: Candidate) -> tuple[object, ...]:
    title = each.title + ("" if each.installed else " (not installed)")
    speed = "–" if each.tokens_per_second is None else f"{each.tokens_per_second:.1f}"
    return number, title, each.recipe, each.tier, size(each.nbytes), size(each.memory.needed), speed


__all__ = ["command"]
