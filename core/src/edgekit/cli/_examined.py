"""Checks one plugin in a separate process, so that a hang or a crash is one line in the report.

``python -m edgekit.cli._examined NAME`` loads everything that a plugin registers, tests on a few rows whether its exact
encoders are exact, and prints the problems as the last line of stdout, in JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import attrs

from edgekit.errors import EdgekitError
from edgekit.files.workers import Workers
from edgekit.plugin._registry import BUILT_IN, PluginInfo, Registration, manager
from edgekit.precision import find_precision

#: Time limits in seconds: for loading everything that a plugin registers, and for testing its claims.
LOADING, TRYING = 60.0, 2.0


@attrs.frozen
class Examined:
    """Result of checking one plugin.

    Attributes:
        problems: one sentence each; empty if there are none.
        devices: the lines of each of its device reports, by name.
    """

    problems: tuple[str, ...] = ()
    devices: dict[str, list[str]] = attrs.field(factory=dict)


def examine(plugins: Iterable[PluginInfo]) -> dict[str, Examined]:
    """Check every loaded plugin, two at a time; return the results by name."""
    known = list(plugins)
    names = [p.name for p in known if p.status == "loaded" and p.distribution != BUILT_IN]
    left_out = ",".join(p.name for p in known if p.status != "loaded")
    with Workers(2, "edgekit-examine") as pool:
        return dict(zip(names, pool.map(lambda name: _elsewhere(name, left_out), names), strict=True))


def _elsewhere(name: str, left_out: str) -> Examined:
    environment = os.environ | {"EDGEKIT_NO_PLUGINS": left_out, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", __name__, name]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LOADING, check=False)
    except subprocess.TimeoutExpired:
        return Examined((f"loading its registrations did not end within {LOADING:g} s; EDGEKIT_NO_PLUGINS={name}",))
    try:
        result = json.loads(done.stdout.splitlines()[-1])
        return Examined(tuple(result["problems"]), result["devices"])
    except (ValueError, IndexError, TypeError, KeyError):
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return Examined((f"loading its registrations ends the process (exit {done.returncode}: {last[:200]})",))


def look(name: str) -> Examined:
    """Load everything that a plugin registers, and test its claims."""
    registrations = [r for r in manager().registrations if r.plugin == name]
    problems = [problem for r in registrations if (problem := _loading(r))]
    devices = {r.name: _asked(r) for r in registrations if r.role == "devices"}
    return Examined((*dict.fromkeys(problems), *_false_claims(registrations)), devices)


def _loading(registration: Registration) -> str:
    try:
        registration.load()
    except EdgekitError as error:
        return str(error)
    return ""


def _asked(registration: Registration) -> list[str]:
    try:
        return [str(line) for line in registration.load()()]
    except Exception as error:  # a framework's own failure must not hide the rest of the report
        return [f"fails: {type(error).__name__}: {error}"]


def _false_claims(registrations: list[Registration]) -> Iterator[str]:
    """Yield a sentence for each encoder that claims to be exact and is not; stops after `TRYING` seconds."""
    began = time.perf_counter()
    for registration in registrations:
        if registration.role != "quantizers" or registration.options.get("claim") != "exact":
            continue
        if time.perf_counter() - began > TRYING:
            return
        if not _as_claimed(registration):
            yield (
                f"quantizer {registration.name!r} of {registration.distribution} claims exact, and its bytes are not "
                f"the reference's; `edgekit verify {registration.plugin} --failed` shows where"
            )


def _as_claimed(registration: Registration) -> bool:
    """Whether it encodes a few rows as the reference does; True if it cannot be tested."""
    from edgekit.testing import vectors
    from edgekit.testing._explain import same_parts
    from edgekit.testing._subjects import encodable, registered

    try:
        if not encodable(find_precision(registration.name)):
            return True
        subject, drawn = registered(registration), vectors.inputs()
        rows = [drawn[name] for name, importance in vectors.questions(subject.precision) if importance is None]
        return all(same_parts(subject.expected(x), subject.encode(x)) for x in rows)
    except EdgekitError:  # it does not load, which is reported already, or its precision's plugin is missing
        return True
    except Exception:
        return False


def main() -> None:
    """Print the result as JSON."""
    result: dict[str, Any] = attrs.asdict(look(sys.argv[1]))
    print("\n" + json.dumps(result))


if __name__ == "__main__":
    main()
