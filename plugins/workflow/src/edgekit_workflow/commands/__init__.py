"""The commands, a module each, and what they print alike."""

from __future__ import annotations

from edgekit.cli.output import size
from edgekit_workflow.hardware import Machine


def described(machine: Machine) -> str:
    """One line on a machine."""
    sets = ", ".join(machine.instructions[-3:])
    bandwidth = f", {machine.bandwidth / 1e9:.1f} GB/s" if machine.bandwidth else ""
    devices = "".join(f", {device.kind.upper()} {device.name}" for device in machine.devices)
    return (
        f"{machine.processor}, {machine.cores} cores ({sets}), {size(machine.memory)}{bandwidth}{devices}, "
        f"{machine.system}"
    )


__all__ = ["described"]
