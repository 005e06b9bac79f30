"""`edgekit profile`, and `edgekit doctor --profile`: what a machine has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import attrs
import click

from edgekit.cli.output import json_option, print_json, progress_bar, size
from edgekit.errors import UsageError
from edgekit_workflow.hardware import Machine, machine, profile_text, profiles
from edgekit_workflow.pace import Pace


@click.command("profile", short_help="Describe a machine.")
@click.argument("name", required=False)
@click.option("--list", "listed", is_flag=True, help="List the profiles.")
@click.option("--measure", is_flag=True, help="Time the installed runtimes on models made for it (minutes).")
@click.option("--to", metavar="FILE", help="Write the profile into FILE.toml, for `edgekit recommend --device`.")
@json_option
def command(name: str | None, listed: bool, measure: bool, to: str | None, as_json: bool) -> None:
    """Describe this machine, its memory's bandwidth measured, or the profile of that NAME."""
    if listed:
        print_json(profiles()) if as_json else click.echo("\n".join(profiles()))
        return
    if measure and name not in (None, "this"):
        raise UsageError(f"--measure times this machine, not {name}; leave NAME out")
    if to is not None and not to.endswith(".toml"):
        raise UsageError(f"--to {to}: a profile's file ends in .toml")
    found = machine(name)
    if measure:
        found = attrs.evolve(found, paces=_measured())
    if to is not None:
        Path(to).write_text(profile_text(found), "utf-8")
    if as_json:
        print_json(attrs.asdict(found))
    else:
        show(found)


def _measured() -> Mapping[str, Pace]:
    from edgekit_workflow.calibration import calibrate

    with progress_bar("calibrate") as report:
        return calibrate(progress=report)


def show(found: Machine) -> None:
    """Print a machine, a line for each thing that it has."""
    lines = {
        "processor": f"{found.processor} ({found.vendor}, {found.architecture})",
        "instructions": ", ".join(found.instructions) or "none of those that kernels are written for",
        "cores": f"{found.cores}, {found.threads} threads",
        "caches": ", ".join(f"{level} {size(nbytes)}" for level, nbytes in found.caches.items()),
        "memory": size(found.memory) + (", shared with the accelerators" if found.unified else ""),
        "bandwidth": f"{size(found.bandwidth)}/s" if found.bandwidth else "",
        "disk": f"{size(found.disk)} free" if found.disk is not None else "",
        "system": found.system,
        "source": found.source,
    }
    for device in found.devices:
        own = f", {size(device.memory)}" if device.memory else ""
        lines[f"{device.kind.upper()} {device.name}"] = f"{device.vendor}{own}"
    for runtime, pace in found.paces.items():
        lines[runtime] = f"{1e6 * pace.overhead:.0f} µs a token, {1e6 * pace.layer:.0f} µs a layer"
    for label, text in lines.items():
        if text:
            click.echo(f"{label:<14} {text}")


__all__ = ["command", "show"]
