"""The child process of `edgekit_llamacpp.isolated`: answers frames on stdin until the end of input."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import IO, Any

import attrs
import numpy as np

from edgekit.errors import EdgekitError
from edgekit.pipeline import open_artifact
from edgekit.runtime import Generation, Part, Reply
from edgekit_llamacpp.isolated import receive, send
from edgekit_llamacpp.model import Options
from edgekit_llamacpp.runtime import LlamaCppRuntime


class Worker:
    """One model and its streams."""

    def __init__(self) -> None:
        self.streams: dict[int, Generation | Reply] = {}

    def load(self, path: str, options: dict[str, Any]) -> int:
        """Open and load the model; returns the size of the context."""
        self.model = LlamaCppRuntime(open_artifact(path), Options.of(**options))
        return self.model.context

    def description(self) -> dict[str, Any]:
        """Return the runtime's description."""
        return self.model.description()

    def logits(self, tokens: list[int]) -> Any:
        """Return the runtime's result."""
        return self.model.logits(tokens)

    def embed(self, text: str | list[int]) -> Any:
        """Return the runtime's result."""
        return self.model.embed(text)

    def encode(self, text: str) -> list[int]:
        """Return the runtime's result."""
        return self.model.encode(text)

    def decode(self, tokens: list[int]) -> str:
        """As the runtime's."""
        return self.model.decode(tokens)

    def scores(self, tokens: list[int], logprobs: int) -> list[dict[str, Any]]:
        """As the runtime's, as plain values."""
        return [score.to_dict() for score in self.model.scores(tokens, logprobs)]

    def prompt(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
        """Return the runtime's result."""
        return self.model.prompt(messages, **options)

    def begin(self, number: int, kind: str, arguments: dict[str, Any]) -> int:
        """Begin a stream; gives the tokens of its prompt."""
        begin: Any = {"chat_stream": self.model.chat_stream, "reply": self.model.reply}.get(kind, self.model.stream)
        self.streams[number] = begin(**arguments)
        return self._generation(number).prompt_tokens

    def _generation(self, number: int) -> Generation:
        stream = self.streams[number]
        return stream.generation if isinstance(stream, Reply) else stream

    def next(self, number: int) -> tuple[Any, int, str | None, list[dict[str, Any]]]:
        """Its next piece, None at its end; how many tokens it has; why it ended; and the scores that are new."""
        stream = self._generation(number)
        seen, piece = len(stream.scores), next(self.streams[number], None)
        scores = [score.to_dict() for score in stream.scores[seen:]]
        plain = attrs.astuple(piece) if isinstance(piece, Part) else piece
        return plain, stream.completion_tokens, stream.finish_reason, scores

    def end(self, number: int) -> None:
        """Forget it."""
        self.streams.pop(number, None)


def answer(worker: Worker, message: dict[str, Any], stream: IO[bytes]) -> None:
    """Execute a frame; an error is returned as the name of its class and its message."""
    try:
        value = getattr(worker, message["method"])(**message["arguments"])
    except Exception as error:
        name = type(error).__name__ if isinstance(error, EdgekitError | MemoryError) else "PluginError"
        text = str(error) if isinstance(error, EdgekitError) else f"{type(error).__name__}: {error}"
        send(stream, {"error": name, "message": text, "public": getattr(error, "public", None)})
        return
    if isinstance(value, np.ndarray):
        send(stream, {}, value)
    else:
        send(stream, {"value": value})


def main() -> None:
    """Answer until stdin ends. Native code that prints, prints to stderr: stdout is for frames."""
    frames = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    worker = Worker()
    while True:
        try:
            message, _ = receive(sys.stdin.buffer)
        except EOFError:
            return
        answer(worker, message, frames)


if __name__ == "__main__":
    main()

__all__ = ["Worker", "answer", "main"]
