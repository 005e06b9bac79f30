"""`edgekit olive-passes` and `edgekit olive-run`."""

from __future__ import annotations

from collections.abc import Mapping

import click

from edgekit.cli.output import json_option, print_json, print_notes, size, table
from edgekit.errors import UsageError, near_names
from edgekit_olive.catalogue import Entry, entries
from edgekit_olive.workflow import Outcome, run_workflow, to_json


@click.command("olive-passes", short_help="List Olive's passes, and which can run here.")
@click.argument("names", metavar="[PASS]...", nargs=-1)
@json_option
def command_passes(names: tuple[str, ...], as_json: bool) -> None:
    """List the passes of Olive, or the options of PASS. `edgekit apply olive:PASS` runs one."""
    chosen = [_entry(name) for name in names] or list(entries().values())
    if as_json:
        print_json([_record(entry) for entry in chosen])
        return
    for entry in chosen:
        obstacle = entry.obstacle()
        click.echo(
            f"{entry.name:<34}{', '.join(entry.takes):<28}{'not here: ' + obstacle if obstacle else 'runs here'}"
        )
        if names:
            _show(entry)


def _entry(name: str) -> Entry:
    wanted = name.removeprefix("olive:")
    if wanted not in entries():
        near = near_names(wanted, entries(), 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(f"Olive has no pass {wanted!r:.80}{hint}; `edgekit olive-passes` lists them")
    return entries()[wanted]


def _show(entry: Entry) -> None:
    click.echo(f"  {entry.summary}")
    for option in entry.options.values():
        default = "required" if option.required else f"default {option.default!r}"
        click.echo(f"  {option.name} ({option.kind}; {default}): {option.about}")


def _record(entry: Entry) -> dict[str, object]:
    options = {
        option.name: {"takes": option.kind, "default": option.default, "required": option.required}
        for option in entry.options.values()
    }
    return {
        "name": entry.name,
        "summary": entry.summary,
        "takes": list(entry.takes),
        "needs": list(entry.needs),
        "providers": list(entry.providers),
        "obstacle": entry.obstacle(),
        "options": options,
    }


@click.command("olive-run", short_help="Run a workflow file of Olive's.")
@click.argument("workflow")
@click.option("--to", required=True, metavar="DIR", help="Directory of the best model.")
@click.option("--model", metavar="PATH", help="A model in place of the file's input_model.")
@click.option("--force", is_flag=True, help="Replace a target that edgekit did not write.")
@json_option
def command_run(workflow: str, to: str, force: bool, as_json: bool, model: str | None = None) -> None:
    """Run WORKFLOW, a JSON file of Olive's, and write the best model that its engine found.

    `edgekit optimize --olive WORKFLOW --to DIR` of edgekit-workflow does the same.
    """
    notes: list[str] = []
    outcome = run_workflow(workflow, to, model=model, overwrite=force, notes=notes)
    print_notes("olive-run", outcome.artifact.notes, notes)
    if as_json:
        print_json(to_json(outcome))
        return
    click.echo(compared(outcome))
    click.echo(f"\nChosen: {to}  {size(outcome.artifact.nbytes)}")


def compared(outcome: Outcome) -> str:
    """Return the source and the candidates as a table: metrics, the change from the source, and the front.

    Where a candidate misses a goal of the file's, a column says which candidates meet all of them.
    """
    goals = ["goals"] if not all(each.meets_goals for each in outcome.candidates) else []
    names = list(dict.fromkeys(name for metrics in (outcome.before, *_metrics(outcome)) for name in metrics))
    rows = [
        ("the source", *(_cell(outcome.before, outcome.before, name) for name in names), *("" for _ in goals), "", "")
    ]
    for each in outcome.candidates:
        cells = (_cell(each.metrics, outcome.before, name) for name in names)
        kept = ["met" if each.meets_goals else "missed"] if goals else []
        marks = *kept, "yes" if each.frontier else "", "yes" if each.chosen else ""
        rows.append((" + ".join(each.passes), *cells, *marks))
    return table(("model", *names, *goals, "front", "chosen"), rows)


def _metrics(outcome: Outcome) -> list[Mapping[str, float]]:
    return [each.metrics for each in outcome.candidates]


def _cell(metrics: Mapping[str, float], before: Mapping[str, float], name: str) -> str:
    if name not in metrics:
        return "–"
    change = f" ({metrics[name] / before[name]:.0%})" if metrics is not before and before.get(name) else ""
    return f"{metrics[name]:.6g}{change}"


__all__ = ["command_passes", "command_run", "compared"]
