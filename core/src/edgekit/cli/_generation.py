"""Shared by `edgekit run` and `edgekit chat`: the options, and text that is printed as it is generated."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, Self, cast

import attrs
import click

from edgekit.artifact import Artifact
from edgekit.cli.options import runtime_options
from edgekit.errors import InvalidFileError, UsageError
from edgekit.runtime import (
    DescribedRuntime,
    Generation,
    GenerationOptions,
    Runtime,
    Sampling,
    load,
    parse_option,
)
from edgekit.runtime.arguments import Stop, integer

_OPTIONS = (
    click.option(
        "--max-tokens",
        type=int,
        metavar="N",
        help="Largest number of tokens to generate; default: until the context is full.",
    ),
    click.option(
        "--temperature", type=float, default=0.0, show_default=True, help="0 always takes the most likely token."
    ),
    click.option("--top-k", type=int, default=0, metavar="K", help="Sample from the K most likely tokens; 0 for all."),
    click.option(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="Sample from the most likely tokens up to this total probability.",
    ),
    click.option("--seed", type=int, default=0, show_default=True, help="Seed of the random numbers; -1 draws one."),
    click.option("--stop", multiple=True, metavar="TEXT", help="Stop at this text (repeatable)."),
)
_UNSAFE = {code: "\ufffd" for code in [*range(32), 127, *range(0x80, 0xA0)] if chr(code) not in "\n\t"}


@attrs.frozen
class Asked:
    """Generation options of the command line.

    Attributes:
        sampling: its seed is drawn if the option was -1.
        max_tokens: None generates until the context is full.
        stop: texts at which generation ends.
        runtime: name of the runtime; None takes the fastest.
        options: of the runtime, each ``KEY=VALUE``.
    """

    sampling: Sampling
    max_tokens: int | None
    stop: Stop
    runtime: str | None
    options: tuple[str, ...]

    @classmethod
    def of(
        cls, *, runtime: str | None, options: tuple[str, ...], max_tokens: int | None, stop: Stop, **sampling: Any
    ) -> Self:
        """Return the checked options, before a model is read.

        Raises:
            UsageError: an option out of range.
        """
        if max_tokens is not None:
            integer("--max-tokens", max_tokens, 0)
        return cls(Sampling(**sampling), max_tokens, stop, runtime, options)

    def load(self, artifact: Artifact) -> Runtime:
        """Load the model with the runtime."""
        return load(artifact, self.runtime, **dict(map(parse_option, self.options)))

    def arguments(self) -> GenerationOptions:
        """Return the keyword arguments for `Runtime.stream` and `ChatRuntime.chat_stream`."""
        return cast(GenerationOptions, {**self.sampling.options(), "max_tokens": self.max_tokens, "stop": self.stop})


@attrs.frozen
class Told:
    """A generated text with its token counts and time.

    Attributes:
        text: the whole text.
        generation: with the token counts.
        seconds: from the first token of the prompt to the last of the text.
    """

    text: str
    generation: Generation
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return counts, speed and finish reason for JSON."""
        tokens = self.generation.completion_tokens
        return {
            "prompt_tokens": self.generation.prompt_tokens,
            "completion_tokens": tokens,
            "finish_reason": self.generation.finish_reason,
            "seconds": round(self.seconds, 3),
            "tokens_per_second": round(tokens / max(self.seconds, 1e-9), 2),
        }


def generation_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that `Asked.of` takes."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return runtime_options(command)


def tell(generation: Generation, pieces: list[str], silent: bool) -> Told:
    """Generate a text to its end and, unless `silent`, print each piece at once.

    Args:
        generation: the text.
        pieces: receives the pieces, so that a caller has them if it is interrupted.
        silent: whether nothing is printed.
    """
    began = time.perf_counter()
    for piece in generation:
        pieces.append(piece)
        if not silent:
            show(piece)
    seconds = time.perf_counter() - began
    text = "".join(pieces)
    if not silent and not text.endswith("\n"):
        show("\n")
    return Told(text, generation, seconds)


def show(text: str) -> None:
    """Write to stdout at once; a model's control characters never reach a terminal."""
    click.echo(text.translate(_UNSAFE) if sys.stdout.isatty() else text, nl=False)
    sys.stdout.flush()


def note(text: str) -> None:
    """Print a line on stderr."""
    click.echo(f"edgekit: {text}", err=True)


def note_end(generated: Told, asked: Asked) -> None:
    """Report that a text ended because the context is full, unless the user set a limit."""
    if generated.generation.finish_reason == "length" and asked.max_tokens is None:
        note("the context is full, so the text ends here; --option context=N makes it larger if the runtime can")


def described(model: Runtime, artifact: Artifact) -> dict[str, Any]:
    """Return the model, the runtime and how it computes, for JSON."""
    computes = model.description() if isinstance(model, DescribedRuntime) else {}
    return {"model": str(artifact.path), "format": artifact.format, "runtime": model.name, "computes": computes}


def read_stdin() -> str:
    """Return all of stdin as text, without the final line break.

    Raises:
        UsageError: stdin is a terminal.
        InvalidFileError: it is not UTF-8.
    """
    if sys.stdin.isatty():
        raise UsageError("no prompt; give PROMPT, pipe one into stdin, or start `edgekit chat MODEL`")
    return decoded(sys.stdin.buffer.read()).removesuffix("\n").removesuffix("\r")


def decoded(data: bytes) -> str:
    """Decode bytes from stdin as UTF-8.

    Raises:
        InvalidFileError: it is not UTF-8; the message states the offset.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidFileError(f"stdin: not UTF-8 at offset {error.start}; convert it to UTF-8") from error
