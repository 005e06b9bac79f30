"""`edgekit verify`: run the conformance checks of a quantizer, a format, a runtime or a plugin."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import click

from edgekit.cli.output import json_option, print_json, table
from edgekit.errors import EdgekitError, QualityGateError, UnknownPrecisionError, UsageError
from edgekit.plugin._registry import BUILT_IN, Registration, manager


@click.command("verify")
@click.argument("name")
@click.option(
    "--backend", help="Encoder of the precision: reference, or a plugin's name; default: the fastest exact one."
)
@click.option("--check", "checks", multiple=True, help="Run only this check (repeatable).")
@click.option("--profile", type=click.Choice(["quick", "default", "deep"]), default="quick", show_default=True)
@click.option("--failed", is_flag=True, help="Show only failed checks.")
@json_option
def command(name: str, backend: str | None, checks: tuple[str, ...], profile: str, failed: bool, as_json: bool) -> None:
    """Run the conformance kit on NAME: a precision (ggml:Q4_K), a format, a runtime, or a plugin with its parts.

    \b
    edgekit verify ggml:Q4_K --backend numba
    edgekit verify gguf --json
    """  # noqa: D301  - click's mark, a real backspace
    results = list(_results(name, backend, list(checks) or None, profile))
    wrong = [result for result in results if not result.ok]
    shown = wrong if failed else results
    if as_json:
        print_json({"name": name, "profile": profile, "ok": not wrong, "results": [attrs.asdict(r) for r in shown]})
    else:
        _print(shown, results)
    if wrong:
        raise QualityGateError(f"{name}: {len(wrong)} of {len(results)} checks failed; the first: {wrong[0].check}")


def _print(shown: list[Any], results: list[Any]) -> None:
    rows = [(r.subject, r.check, r.status, f"{r.seconds:.2f} s") for r in shown]
    if rows:
        click.echo(table(("subject", "check", "result", "time"), rows))
    for result in shown:
        if not result.ok:
            click.echo(f"\n{result.message}")
    counts = {status: sum(r.status == status for r in results) for status in dict.fromkeys(r.status for r in results)}
    summary = ", ".join(f"{count} {status}" for status, count in counts.items()) or "no checks"
    click.echo(f"\n{summary}; {sum(r.seconds for r in results):.1f} s")


def _results(name: str, backend: str | None, checks: list[str] | None, profile: str) -> Iterator[Any]:
    """Yield the results of every subject of that name, in the order of the look-up: precisions first."""
    matched = False
    for kit, subject in _subjects(name, backend):
        known = [check for check in checks if check in kit.checks] if checks else None
        if known != []:
            matched = True
            yield from kit.run(subject, subject.label, checks=known, profile=profile)
    if not matched:
        raise UsageError(f"no check of {name} is called {' or '.join(checks or ())}; see docs/reference/checks.md")


def _subjects(name: str, backend: str | None) -> Iterator[tuple[Any, Any]]:
    """Yield pairs of a role's kit and a subject of that name.

    Raises:
        UsageError: nothing has that name.
    """
    from edgekit.testing import quantizers
    from edgekit.testing._subjects import backend_subject

    try:
        yield quantizers.KIT, backend_subject(name, backend)
        return
    except UnknownPrecisionError as error:
        unknown = error
    registered = [r for r in manager().registrations if name in (r.plugin, r.name) and _checked(r)]
    plugins = {r.plugin for r in registered if r.distribution != BUILT_IN and r.plugin == name}
    plugins |= {info.name for info in manager().plugins if info.name == name and info.distribution != BUILT_IN}
    if not registered and not plugins:
        names = ", ".join(sorted({r.name for r in manager().registrations if r.role in ("formats", "runtimes")}))
        raise UsageError(
            f"{name!r} is not a precision, and no format, runtime, pass or plugin of that name is installed "
            f"(available: {names}); {unknown}"
        )
    yield from _of_plugins(plugins)
    yield from (pair for each in registered if (pair := _subject_of(each)) is not None)


def _checked(registration: Registration) -> bool:
    return registration.role in ("quantizers", "formats", "runtimes", "passes", "precisions")


def _of_plugins(names: set[str]) -> Iterator[tuple[Any, Any]]:
    from edgekit.testing import plugins

    for name in sorted(names):
        yield plugins.KIT, plugins.adapt(name)


def _subject_of(registration: Registration) -> tuple[Any, Any] | None:
    """Return the kit and the subject of one registration; None for a precision that only decodes."""
    from edgekit.testing import _subjects as subjects
    from edgekit.testing import formats, passes, quantizers, runtimes

    match registration.role:
        case "quantizers":
            return quantizers.KIT, subjects.registered(registration)
        case "formats":
            return formats.KIT, formats.adapt(registration)
        case "runtimes":
            return runtimes.KIT, runtimes.adapt(registration)
        case "passes":
            return passes.KIT, passes.adapt(registration)
    try:
        subject = subjects.adapt(registration.name)
    except EdgekitError:
        return None
    return (quantizers.KIT, subject) if subjects.encodable(subject.precision) else None


__all__ = ["command"]
