"""`edgekit warm`, and what `edgekit doctor` says about the kernels."""

from __future__ import annotations

import time

import click

from edgekit.errors import counted
from edgekit_numba import encoders, library
from edgekit_numba.compiler import cache, processor


@click.command("warm", short_help="Compile edgekit-numba's kernels ahead of use.")
@click.argument("names", nargs=-1)
def command(names: tuple[str, ...]) -> None:
    """Compile the kernels of edgekit-numba for this processor, so that no later call has to.

    NAMES picks those whose name begins so: Q4_K, mlx. Without any, all are compiled.
    """
    encoders.require()
    chosen = [name for name in library.MODULES if not names or name.startswith(names)]
    start, target = time.perf_counter(), processor()
    for done, name in enumerate(chosen, 1):
        click.echo(f"{done}/{len(chosen)} {name}", err=True)
        library.kernel(name)
    seconds = time.perf_counter() - start
    made_for = f"{target.name} ({target.instruction_set})"
    click.echo(f"{counted(len(chosen), 'kernel')} for {made_for} in {seconds:.1f} s, kept in {cache()}")


def devices() -> list[str]:
    """The instruction set in use, and how many kernels are compiled for it."""
    encoders.require()
    target = processor()
    compiled = sum((cache() / f"{name}.o").is_file() for name in library.MODULES)
    advice = "" if compiled == len(library.MODULES) else " (`edgekit warm` compiles the rest ahead)"
    return [f"{target.instruction_set}, {target.name}: {compiled} of {len(library.MODULES)} kernels compiled{advice}"]


__all__ = ["command", "devices"]
