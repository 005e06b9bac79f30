"""`edgekit chat`: a conversation, turn by turn."""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
from collections.abc import Iterator
from typing import Any

import attrs
import click

from edgekit.cli._generation import Asked, decoded, described, generation_options, note, note_end, show, tell
from edgekit.cli.output import json_option
from edgekit.errors import ContextOverflowError, UsageError
from edgekit.pipeline._conversion import open_artifact
from edgekit.runtime import ChatRuntime
from edgekit.runtime.chat import template_of

_HELP = "/reset forgets the conversation, /exit or Ctrl-D ends it, Ctrl-C stops an answer"


@click.command("chat")
@click.argument("model")
@generation_options
@click.option("--system", metavar="TEXT", help="System message at the beginning of the conversation.")
@json_option
def command(model: str, system: str | None, as_json: bool, **options: Any) -> None:
    """Chat with MODEL, which needs a chat template: each line of stdin is a message, each answer streams to stdout.

    In a terminal, Ctrl-C stops an answer and Ctrl-D ends the conversation; /reset starts a new one, /help lists the
    commands. With --json every answer is one line of JSON.
    """
    asked = Asked.of(**options)
    artifact = open_artifact(model)
    template_of(artifact)  # raises before loading if there is none
    with asked.load(artifact) as loaded:
        if not isinstance(loaded, ChatRuntime):
            raise UsageError(f"runtime {loaded.name!r} does not support chat; choose another --runtime")
        chat = _Chat(loaded, system, asked, as_json, {} if not as_json else described(loaded, artifact))
        if chat.terminal:
            note(f"{artifact.path.name} with {loaded.name}; {_HELP}")
        chat.run()


@attrs.define(eq=False)
class _Chat:
    """A conversation with its model and options."""

    model: ChatRuntime
    system: str | None
    asked: Asked
    as_json: bool
    described: dict[str, Any]
    messages: list[dict[str, str]] = attrs.field(factory=list)
    terminal: bool = attrs.field(factory=lambda: sys.stdin.isatty() and sys.stdout.isatty())

    def run(self) -> None:
        """Answer each line until the input ends."""
        self._reset()
        for line in _typed() if self.terminal else _piped():
            if line in ("/exit", "/quit", "/bye"):
                return
            if line == "/reset":
                self._reset()
            elif line == "/help":
                note(_HELP)
            elif line.strip():
                self._turn(line)

    def _reset(self) -> None:
        self.messages = [] if self.system is None else [{"role": "system", "content": self.system}]

    def _turn(self, text: str) -> None:
        self.messages.append({"role": "user", "content": text})
        try:
            answer = self._answer()
        except ContextOverflowError as error:
            if not self.terminal:
                raise
            answer = ""
            note(f"{error}; /reset forgets the conversation")
        if answer:
            self.messages.append({"role": "assistant", "content": answer})
        else:
            self.messages.pop()

    def _answer(self) -> str:
        """Return the answer, or the part before it was interrupted in a terminal."""
        pieces: list[str] = []
        try:
            generated = tell(self.model.chat_stream(self.messages, **self.asked.arguments()), pieces, self.as_json)
        except KeyboardInterrupt:
            if not self.terminal:
                raise
            show("\n")
            note("stopped; the answer so far is kept" if pieces else "stopped; the message is forgotten")
            return "".join(pieces)
        if self.as_json:
            answer = {"role": "assistant", "content": generated.text, **generated.to_dict(), **self.described}
            click.echo(json.dumps(answer, ensure_ascii=False))
        else:
            note_end(generated, self.asked)
        return generated.text


def _typed() -> Iterator[str]:
    """Yield lines of a terminal, with readline's editing if it is available."""
    with contextlib.suppress(ImportError):
        importlib.import_module("readline")
    while True:
        try:
            yield input("> ")
        except EOFError:
            click.echo()
            return


def _piped() -> Iterator[str]:
    """Yield lines of a pipe or a file."""
    for line in sys.stdin.buffer:
        yield decoded(line).rstrip("\r\n")


__all__ = ["command"]
