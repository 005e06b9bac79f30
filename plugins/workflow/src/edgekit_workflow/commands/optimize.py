"""`edgekit optimize`: the best artifacts of a model for a budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgekit.cli.output import json_option, print_json, progress_bar, size, table
from edgekit.errors import UsageError
from edgekit.files.sizes import parse_size
from edgekit.plugin import manager
from edgekit_workflow.optimize import Optimized, Settings, optimize, read_settings
from edgekit_workflow.optimize.choice import measured
from edgekit_workflow.optimize.settings import METHODS, PRIORITIES, parse_time


@click.command("optimize")
@click.argument("model", required=False)
@click.option("--to", metavar="DIR", help="Directory of the run: artifacts, records and the result.")
@click.option("--budget", metavar="SIZE", help="Most bytes of an artifact, such as 3.5GB or 900MB.")
@click.option("--config", metavar="FILE", help="Settings as TOML; options override them.")
@click.option("--olive", metavar="FILE", help="Run this workflow file of Olive's, which names the model and the goals.")
@click.option(
    "--text",
    "texts",
    multiple=True,
    metavar="[NAME=]FILE",
    help="A text typical of the model's use, with the name of its category (repeatable); default: the model's own.",
)
@click.option("--formats", metavar="F,F,…", help="Formats to write; default: all that are installed.")
@click.option("--recipes", metavar="R,R,…", help="Recipes to try; default: a few of each format.")
@click.option("--methods", metavar="M,M,…", help=f"Of {', '.join(METHODS)}; default: all.")
@click.option("--allow", metavar="P,P,…", help="Precisions that fit chooses from; default: those of the format.")
@click.option("--runtimes", metavar="R,R,…", help="Runtimes to measure; default: the fastest of each format.")
@click.option("--priority", type=click.Choice(PRIORITIES), help="What decides in the end; default: quality.")
@click.option("--max-kl", type=float, metavar="NATS", help="Largest mean KL divergence from the source.")
@click.option("--min-top1", type=float, metavar="SHARE", help="Least top-1 agreement, 0 to 1.")
@click.option("--min-speed", type=float, metavar="N", help="Least tokens a second.")
@click.option(
    "--time",
    metavar="TIME",
    help="Begin no further step after so long, such as 10m.",
)
@click.option("--context", type=click.IntRange(min=3), help="Tokens in a window.")
@click.option("--tokens", type=click.IntRange(min=16), help="Most tokens to measure quality on; default: 8192.")
@click.option("--policy", metavar="FILE", help="Limits of the gates.")
@click.option("--speed/--no-speed", default=None, help="Measure speed and memory; default: yes.")
@click.option("--gates/--no-gates", default=None, help="Pass the best artifacts through the gates; default: yes.")
@click.option("--restart", is_flag=True, help="Forget a run in DIR that was begun otherwise.")
@json_option
def command(
    config: str | None, olive: str | None, texts: tuple[str, ...], restart: bool, as_json: bool, **options: Any
) -> None:
    """Make artifacts of MODEL in all installed formats, measure them, and choose one.

    An interrupted run goes on with the same command; `edgekit report DIR` draws what was measured.
    """
    if olive is not None:
        beside = {"config": config, "text": texts or None, "restart": restart or None, **options}
        run_olive(olive, as_json, **{name: value for name, value in beside.items() if value is not None})
        return
    given: dict[str, Any] = read_settings(Path(config)) if config else {}
    given |= {_NAMES.get(name, name): _parsed(name, value) for name, value in options.items() if value is not None}
    if texts:
        given["texts"] = dict(_text(text) for text in texts)
    for name, what in (("source", "a MODEL"), ("to", "--to DIR")):
        if name not in given:
            raise UsageError(f"give {what}, or name it in the settings as {name}")
    with progress_bar("optimize") as report:
        done = optimize(Settings(**given), restart=restart, progress=report)
    print_json(done.result) if as_json else show(done)


def run_olive(file: str, as_json: bool, **given: Any) -> None:
    """Run a workflow file with the command that edgekit-olive registers.

    Args:
        file: Olive's JSON.
        as_json: whether to print JSON.
        given: the other options of the command line; ``to`` alone is allowed, and needed.

    Raises:
        UsageError: another option is given, or ``to`` is not.
        MissingPluginError: edgekit-olive, or olive-ai, is not installed.
    """
    to = given.pop("to", None)
    if given:
        words = ["MODEL"] if given.pop("model", None) else []
        words += [f"--{name.replace('_', '-')}" for name in given]
        raise UsageError(f"--olive {file}: the file says what to optimize and how; leave out {', '.join(words)}")
    if to is None:
        raise UsageError(f"--olive {file}: give --to DIR, the directory of the best model")
    command = manager().load("commands", "olive-run")
    click.get_current_context().invoke(command, workflow=file, to=to, force=False, as_json=as_json)


_NAMES = {"model": "source"}
_LISTS = ("formats", "recipes", "methods", "allow", "runtimes")


def _parsed(name: str, value: Any) -> Any:
    if name in ("model", "to", "policy"):
        return Path(value)
    if name == "budget":
        return parse_size(value)
    if name == "time":
        return parse_time(value)
    return tuple(part.strip() for part in value.split(",") if part.strip()) if name in _LISTS else value


def _text(given: str) -> tuple[str, Path]:
    name, equals, file = given.partition("=")
    return (name, Path(file)) if equals else (Path(given).stem, Path(given))


_JUDGED = {True: "passed", False: "failed", None: "–"}


def show(done: Optimized) -> None:
    """Print the artifacts as a table, and the choice with its reasons."""
    result = done.result
    header = ("artifact", "size", "bits/weight", "KL divergence", "top-1", "tokens/s", "memory", "front", "gates")
    rows = []
    for each in sorted(measured(result), key=lambda m: m.record["nbytes"]):
        quality, speed = each.record["quality"], each.speed
        rows.append(
            (
                each.name,
                size(each.record["nbytes"]),
                f"{each.record['bits_per_weight']:.3f}",
                f"{quality['kl']:.6f} ± {quality['kl_error']:.6f}",
                f"{quality['top1']:.2%}",
                f"{speed['speed']:.1f}" if speed.get("speed") else "–",
                size(speed["memory"]) if speed.get("memory") else "–",
                "yes" if each.name in result["front"] else "",
                _JUDGED[each.gates.get("passed")],
            )
        )
    click.echo(table(header, rows))
    click.echo(f"\nChosen: {done.chosen.path}")
    for reason in result["reasons"]:
        click.echo(f"  {reason}")
    for name, why in result["left_out"].items():
        click.echo(f"left out: {name}: {why}", err=True)
    for name, why in result["not_gated"].items():
        click.echo(f"not gated: {name}: {why}", err=True)


__all__ = ["command", "run_olive", "show"]
