"""`edgekit olive-passes` and `edgekit olive-run`."""

from __future__ import annotations

import click

from edgekit.cli.output import json_option, print_json, print_notes, size
from edgekit.errors import UsageError, near_names
from edgekit_olive.catalogue import Entry, entries


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
@click.option("--force", is_flag=True, help="Replace a target that edgekit did not write.")
@json_option
def command_run(workflow: str, to: str, force: bool, as_json: bool) -> None:
    """Run WORKFLOW, a JSON file of Olive's, and write the best model that its engine found."""
    from edgekit_olive.workflow import run_workflow, to_json

    notes: list[str] = []
    outcome = run_workflow(workflow, to, overwrite=force, notes=notes)
    print_notes("olive-run", outcome.artifact.notes, notes)
    if as_json:
        print_json(to_json(outcome))
        return
    for candidate in outcome.candidates:
        metrics = ", ".join(f"{name} {value:.6g}" for name, value in candidate.metrics.items())
        mark = "*" if candidate.chosen else " "
        click.echo(f"{mark} {' + '.join(candidate.passes)}  {metrics}")
    click.echo(f"{to}  {size(outcome.artifact.nbytes)}")


__all__ = ["command_passes", "command_run"]
