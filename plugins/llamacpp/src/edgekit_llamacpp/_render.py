"""Renders a chat template: the program of a child process that may use little of anything.

Reads JSON on stdin and writes JSON on stdout. The template is Jinja source from a file that may be hostile: it runs in
Jinja's immutable sandbox, in a process of its own with an empty environment, limited memory and time, that can write no
file and start no process.
"""

from __future__ import annotations

import datetime
import json
import sys
from typing import Any, NoReturn

#: Bytes of address space, seconds of processor time, and characters of a rendered prompt.
MEMORY, SECONDS, LENGTH = 512 << 20, 5, 4 << 20


def limit() -> None:
    """Give up everything that rendering does not need; where the system has no such limits, only the clock is left."""
    try:
        import resource
    except ImportError:  # Windows
        return
    limits = {"RLIMIT_AS": MEMORY, "RLIMIT_CPU": SECONDS, "RLIMIT_FSIZE": 0, "RLIMIT_NPROC": 0, "RLIMIT_CORE": 0}
    for name, value in limits.items():
        kind = getattr(resource, name, None)
        if kind is not None:
            _, hard = resource.getrlimit(kind)
            soft = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (soft, soft))


def render(template: str, variables: dict[str, Any]) -> str:
    """The template's text, with the functions that chat templates expect."""
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals.update(raise_exception=_refuse, strftime_now=_now)
    return environment.from_string(template).render(**variables)


def _refuse(message: object) -> NoReturn:
    raise ValueError(str(message))


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def main() -> None:
    """Render what stdin holds."""
    given = json.load(sys.stdin)
    limit()
    try:
        text = render(given["template"], given["variables"])
        said = {"text": text} if len(text) <= LENGTH else {"error": f"it made {len(text)} characters"}
    except MemoryError:
        said = {"error": "it wanted too much memory"}
    except Exception as error:
        said = {"error": f"{type(error).__name__}: {error}"[:2000]}
    json.dump(said, sys.stdout)


if __name__ == "__main__":
    main()
