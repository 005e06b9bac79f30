"""What `edgekit run` and `edgekit chat` share: the options, and text that shows as it is generated."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, Self, cast

import attrs
import click

from edgekit.artifact import Artifact
from edgekit.errors import InvalidFileError, UsageError
from edgekit.runtime import (
    DescribedRuntime,
    Generation,
    GenerationOptions,
    Runtime,
    Sampling,
    SamplingOptions,
    load,
    parse_option,
)
from edgekit.runtime.arguments import Stop, integer

_OPTIONS = (
    click.option("--runtime", metavar="NAME", help="Runtime; the default is the fastest that runs the format."),
    click.option("--option", "options", multiple=True, metavar="KEY=VALUE", help="Of the runtime: context=2048."),
    click.option("--max-tokens", type=int, metavar="N", help="At most so many; default: as many as the context holds."),
    click.option("--temperature", type=float, default=0.0, show_default=True, help="0 takes the most likely token."),
    click.option("--top-k", type=int, default=0, metavar="K", help="Only the K most likely tokens; 0 for all."),
    click.option("--top-p", type=float, default=1.0, metavar="P", help="Only the most likely, up to this probability."),
    click.option("--seed", type=int, default=0, show_default=True, help="Of the random numbers; -1 draws one."),
    click.option("--stop", multiple=True, metavar="TEXT", help="End at this text; may be given several times."),
)
_UNSAFE = {code: "\ufffd" for code in [*range(32), 127, *range(0x80, 0xA0)] if chr(code) not in "\n\t"}


@attrs.frozen
class Asked:
    """How a text is asked for on the command line.

    Attributes:
        sampling: with the seed that was drawn for -1.
        max_tokens: None for as many as the context has room for.
        stop: texts.
        runtime: its name; None takes the fastest.
        options: of the runtime, as they were typed.
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
        """Checked before a model is read.

        Raises:
            UsageError: an option out of range.
        """
        if max_tokens is not None:
            integer("--max-tokens", max_tokens, 0)
        return cls(Sampling(**sampling), max_tokens, stop, runtime, options)

    def load(self, artifact: Artifact) -> Runtime:
        """The model, loaded by the runtime."""
        return load(artifact, self.runtime, **dict(map(parse_option, self.options)))

    def arguments(self) -> GenerationOptions:
        """For `Runtime.stream` and `ChatRuntime.chat_stream`."""
        sampling = cast(SamplingOptions, attrs.asdict(self.sampling))
        return {**sampling, "max_tokens": self.max_tokens, "stop": self.stop}


@attrs.frozen
class Told:
    """A text that was generated, and what it took.

    Attributes:
        text: all of it.
        generation: with the counts.
        seconds: from the first token of the prompt to the last of the text.
    """

    text: str
    generation: Generation
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
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
    return command


def tell(generation: Generation, pieces: list[str], silent: bool) -> Told:
    """Take a text to its end and, unless `silent`, show each piece at once.

    Args:
        generation: the text.
        pieces: where the pieces go, so that a caller who interrupts has those that came.
        silent: whether nothing is shown.
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
    """A line on stderr."""
    click.echo(f"edgekit: {text}", err=True)


def note_end(told: Told, asked: Asked) -> None:
    """Say that a text ended because the context is full, where the caller set no other limit."""
    if told.generation.finish_reason == "length" and asked.max_tokens is None:
        note("the context is full, so the text ends here; --option context=N makes it larger where the runtime can")


def described(model: Runtime, artifact: Artifact) -> dict[str, Any]:
    """The model, the runtime, and how it computes, for JSON."""
    computes = model.description() if isinstance(model, DescribedRuntime) else {}
    return {"model": str(artifact.path), "format": artifact.format, "runtime": model.name, "computes": computes}


def read_stdin() -> str:
    """All of stdin as text, without the line break at its end.

    Raises:
        UsageError: stdin is a terminal.
        InvalidFileError: it is not UTF-8.
    """
    if sys.stdin.isatty():
        raise UsageError("no prompt; give PROMPT, pipe one into stdin, or start `edgekit chat MODEL`")
    return decoded(sys.stdin.buffer.read()).removesuffix("\n").removesuffix("\r")


def decoded(data: bytes) -> str:
    """UTF-8 from stdin.

    Raises:
        InvalidFileError: it is not; names the offset.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidFileError(f"stdin: not UTF-8 at offset {error.start}; convert it to UTF-8") from error
