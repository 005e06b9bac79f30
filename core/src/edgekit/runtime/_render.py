"""Renders chat templates: the main program of a process with limited resources.

Frames of JSON come on stdin and go to stdout, each after its length (u32, little-endian). A template is Jinja source
from a file that may be malicious: it runs in Jinja's immutable sandbox, in a separate process with an empty environment
and limited memory and time, that can write no file and start no process. Where the system can fork, that process is a
copy of this one, which has Jinja imported already: that takes 7 to 10 ms a template, a new interpreter 90 to 100.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import struct
import sys
from typing import Any, NoReturn

#: Bytes of address space, seconds of processor time, and characters of a rendered prompt.
MEMORY, SECONDS, LENGTH = 512 << 20, 5, 4 << 20


def limit() -> None:
    """Limit this process to what rendering needs; on a system without such limits, only the time-out remains."""
    try:
        import resource
    except ImportError:  # Windows
        return
    limits = {"RLIMIT_AS": MEMORY, "RLIMIT_CPU": SECONDS, "RLIMIT_FSIZE": 0, "RLIMIT_NPROC": 0, "RLIMIT_CORE": 0}
    for name, value in limits.items():
        kind = getattr(resource, name, None)
        if kind is not None:
            _, hard = resource.getrlimit(kind)
            least = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (least, least))


def render(template: str, variables: dict[str, Any]) -> str:
    """Return the template's text, rendered with the functions and tags that chat templates expect."""
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generated(Extension):
        """``{% generation %}`` … ``{% endgeneration %}`` marks the model's answers, for training."""

        tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

        def parse(self, parser: Parser) -> nodes.Node:
            """Parse the block's content in a separate scope, as transformers does."""
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    tags = [loopcontrols, Generated]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=tags)
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals.update(raise_exception=_refuse, strftime_now=_now)
    return environment.from_string(template).render(**variables)


def _refuse(message: object) -> NoReturn:
    raise ValueError(str(message))


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def answer(request: bytes) -> bytes:
    """Render the template of one frame; return the answer or the error."""
    limit()
    try:
        given = json.loads(request)
        text = render(given["template"], given["variables"])
        result = {"text": text} if len(text) <= LENGTH else {"error": f"it made {len(text)} characters"}
    except MemoryError:
        result = {"error": "it wanted too much memory"}
    except Exception as error:
        result = {"error": f"{type(error).__name__}: {error}"[:2000]}
    return json.dumps(result).encode()


def in_a_copy(request: bytes) -> bytes:
    """Render in a copy of this process; return an error if it dies."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with open(writer, "wb") as pipe:
                pipe.write(answer(request))
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    with open(reader, "rb") as pipe:
        result = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == 0:
        return result
    how = f"by signal {-code}: too much time or memory" if code < 0 else f"with code {code}"
    return json.dumps({"error": f"its process was ended {how}"}).encode()


def main() -> None:
    """Answer frames until stdin ends; without fork only one, since the limits then are this process's own."""
    with contextlib.suppress(ImportError):  # reported in each answer
        render("{{ 1 }}", {})  # imports everything that rendering needs
    copies = hasattr(os, "fork")
    while header := sys.stdin.buffer.read(4):
        request = sys.stdin.buffer.read(*struct.unpack("<I", header))
        result = (in_a_copy if copies else answer)(request)
        sys.stdout.buffer.write(struct.pack("<I", len(result)) + result)
        sys.stdout.buffer.flush()
        if not copies:
            return


if __name__ == "__main__":
    main()
