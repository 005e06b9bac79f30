"""`edgekit bench`: measure artifacts on runtimes."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import click

import edgekit
from edgekit.cli.options import runtime_options
from edgekit.cli.output import json_option, print_json, size, table
from edgekit.runtime import parse_option
from edgekit_workflow.bench import Interval, Measurement, measure
from edgekit_workflow.commands import described
from edgekit_workflow.hardware import this_machine


@click.command("bench", short_help="Measure speed and memory.")
@click.argument("artifacts", nargs=-1, required=True, metavar="ARTIFACT...")
@runtime_options
@click.option("--prompt", "prompt_tokens", type=click.IntRange(1), default=32, show_default=True, help="Prompt tokens.")
@click.option("--tokens", type=click.IntRange(2), default=64, show_default=True, help="Tokens to generate.")
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True, help="Repeats that count.")
@click.option("--warmup", type=click.IntRange(0), default=1, show_default=True, help="Repeats before them.")
@json_option
def command(
    artifacts: Sequence[str],
    runtime: str | None,
    options: Sequence[str],
    prompt_tokens: int,
    tokens: int,
    repeats: int,
    warmup: int,
    as_json: bool,
) -> None:
    """Measure each ARTIFACT in a process of its own: time to first token, tokens per second, latencies, memory."""
    given = dict(parse_option(text, "--option", "threads=2") for text in options)
    machine = this_machine(bandwidth=False)
    results = [
        measure(
            edgekit.open(path),
            runtime,
            prompt_tokens=prompt_tokens,
            tokens=tokens,
            repeats=repeats,
            warmup=warmup,
            options=given,
            machine=machine,
        )
        for path in artifacts
    ]
    if as_json:
        print_json([attrs.asdict(result) for result in results])
        return
    click.echo(described(machine) + "\n")
    header = ("artifact", "runtime", "first token", "tokens/s", "± 95 %", "p50", "p95", "p99", "peak", "J/token")
    click.echo(table(header, [_row(result) for result in results]))


def _row(result: Measurement) -> tuple[object, ...]:
    speed = result.tokens_per_second
    return (
        result.path,
        result.runtime,
        _milliseconds(result.first_token.mean),
        f"{speed.mean:.1f}" if speed else "–",
        _half(speed) if speed else "–",
        *(_milliseconds(value) for value in (result.p50, result.p95, result.p99)),
        size(result.peak_memory),
        "–" if result.joules_per_token is None else f"{result.joules_per_token:.3f}",
    )


def _half(interval: Interval) -> str:
    return f"{interval.high - interval.mean:.1f}"


def _milliseconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1e3 * seconds:.1f} ms"


__all__ = ["command"]
