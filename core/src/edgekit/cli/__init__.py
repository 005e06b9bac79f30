"""The `edgekit` command, one module a verb. Data on stdout, progress on stderr, `--json` for every verb."""

from __future__ import annotations

import importlib
import io
import sys
from typing import Any

import click

from edgekit.cli._log import log_on_stderr
from edgekit.errors import EdgekitError, on_command_line
from edgekit.files import memory

#: Verb to its short help, for narrow terminals.
VERBS = {
    "inspect": "Show the contents of a model.",
    "quantize": "Quantize a model.",
    "convert": "Write a model in another format.",
    "merge": "Merge a LoRA adapter into its model.",
    "apply": "Transform a whole model with an installed pass.",
    "package": "Write the directory of a model server.",
    "run": "Answer or continue a prompt.",
    "chat": "Chat with a model.",
    "calibrate": "Measure the inputs of a model's matrices.",
    "sensitivity": "Measure what each tensor costs.",
    "fit": "Choose precisions for a size.",
    "compare": "Measure the loss of a conversion.",
    "eval": "Measure perplexity on a text.",
    "precisions": "List every number format.",
    "recipes": "List the recipes with their rules.",
    "plugins": "List the installed plugins.",
    "doctor": "Check the installation and list devices.",
    "demo": "Quantize the sample model at every size.",
    "verify": "Run the checks of a precision, a format or a plugin.",
    "vectors": "Write test vectors of precisions.",
    "new-plugin": "Write the skeleton of a plugin.",
}

#: Verbs of plugins; calling one that is not installed raises an error with the package to install.
_OF_PLUGINS = (
    *("finetune", "fuse", "serve"),
    *("assess", "bench", "blame", "diagnose", "gate", "optimize", "profile", "recommend", "report", "watch"),
)


#: Exit code after Ctrl-C: 128 plus the number of SIGINT, as in shells.
INTERRUPTED = 130


class _Verbs(click.Group):
    """Imports a verb when it is called; includes the commands of plugins."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb; Ctrl-C prints what is kept and exits with `INTERRUPTED`."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            if ctx.obj and ctx.obj["debug"]:
                raise
            notes = "; ".join(getattr(error, "__notes__", ()))
            click.secho(f"\nedgekit: interrupted{': ' * bool(notes)}{notes}", fg="red", err=True)
            ctx.exit(INTERRUPTED)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*VERBS, *_plugin_commands()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in VERBS:
            module = importlib.import_module(f"edgekit.cli._verbs.{cmd_name.replace('-', '_')}")
            command: click.Command = module.command
            command.short_help = VERBS[cmd_name]
            return command
        if cmd_name in (*_plugin_commands(), *_OF_PLUGINS):
            from edgekit.plugin._registry import manager

            loaded: click.Command = manager().load("commands", cmd_name)
            return loaded
        return None


def _plugin_commands() -> list[str]:
    from edgekit.plugin._registry import BUILT_IN, manager

    return sorted({r.name for r in manager().all("commands") if r.distribution != BUILT_IN})


@click.command(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="edgekit-core")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Convert and quantize models for edge devices, and verify the result.

    \b
    Exit codes: 0 done, 2 usage, 3 bad input, 4 a plugin is missing or broken,
    5 out of resources, 6 locked, 7 a quality gate failed, 130 interrupted (Ctrl-C).
    """  # noqa: D301  - click's mark, a real backspace
    ctx.obj = {"debug": debug}
    ctx.with_resource(on_command_line())


def main(args: list[str] | None = None) -> Any:
    """Run the command line; an `EdgekitError` is printed as one line on stderr and sets the exit code."""
    arguments = sys.argv[1:] if args is None else args
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # names may not be Unicode text, and a terminal may be ASCII
    try:
        with log_on_stderr():
            return cli.main(arguments, prog_name="edgekit")
    except EdgekitError as error:
        if "--debug" in arguments:
            raise
        click.secho(f"edgekit: error: {error}", fg="red", err=True)
        sys.exit(error.exit_code)
    except (MemoryError, SystemError) as raised:
        if not memory.is_shortage(raised):
            raise
        shortage = memory.shortage("this", memory.requested_by(raised))
        click.secho(f"edgekit: error: {shortage}", fg="red", err=True)
        sys.exit(shortage.exit_code)
    except BrokenPipeError:  # the reader (head, less) closed the pipe
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:  # not wrapped in an EdgekitError by the verb
        where = f"{error.filename}: " if error.filename else ""
        click.secho(
            f"edgekit: error: {where}{error.strerror or error}; check permissions and free space", fg="red", err=True
        )
        sys.exit(5)


__all__ = ["INTERRUPTED", "VERBS", "cli", "main"]
