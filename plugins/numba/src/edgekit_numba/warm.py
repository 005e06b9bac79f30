"""`edgekit warm`, and what `edgekit doctor` says about the kernels."""

from __future__ import annotations

import time

import click

from edgekit_numba import encoders, library
from edgekit_numba.compiler import cache, processor


@click.command("warm")
def command() -> None:
    """Compile the kernels of edgekit-numba for this processor, so that no later call has to."""
    encoders.require()
    start, target = time.perf_counter(), processor()
    for done, name in enumerate(library.MODULES, 1):
        click.echo(f"{done}/{len(library.MODULES)} {name}", err=True)
        library.kernel(name)
    seconds = time.perf_counter() - start
    click.echo(
        f"{len(library.MODULES)} kernels for {target.name} ({target.instruction_set}) in {seconds:.1f} s: {cache()}"
    )


def devices() -> list[str]:
    """The instruction set in use, and how many kernels are compiled for it."""
    encoders.require()
    target = processor()
    kept = sum((cache() / f"{name}.o").is_file() for name in library.MODULES)
    advice = "" if kept == len(library.MODULES) else " (`edgekit warm` compiles the rest ahead)"
    return [f"{target.instruction_set}, {target.name}: {kept} of {len(library.MODULES)} kernels compiled{advice}"]
