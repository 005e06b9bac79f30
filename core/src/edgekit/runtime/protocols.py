"""Runtimes: they execute a model. The core's own is the numpy forward pass; plugins bring faster ones.

Every runtime implements `Runtime`. Each optional capability is a protocol, which a runtime supports if it has the
methods: ``isinstance(model, ChatRuntime)``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, Self, Unpack, cast, runtime_checkable

import attrs
import numpy.typing as npt

from edgekit.artifact import Artifact
from edgekit.errors import MissingPluginError
from edgekit.files.memory import enough_memory
from edgekit.pipeline._conversion import as_artifact
from edgekit.plugin._registry import Registration, manager
from edgekit.runtime._watch import TokenScore
from edgekit.runtime.arguments import Prompt, declared_options, refuse_unknown_options
from edgekit.runtime.chat import Messages
from edgekit.runtime.generation import FinishReason, Generation, GenerationOptions, Sampling, until
from edgekit.runtime.numpy import NumpyRuntime
from edgekit.runtime.reply import Reply, ReplyOptions
from edgekit.runtime.text import TextRuntime
from edgekit.typing import F32


class Runtime(Protocol):
    """A loaded model; a context manager that releases it at the end."""

    @property
    def name(self) -> str:
        """The name under which the runtime is registered."""
        ...

    def logits(self, tokens: npt.ArrayLike) -> F32:
        """Return the logits of every next token, float32 [n, vocab], for token ids [n]."""
        ...

    def generate(self, prompt: Prompt, **options: Unpack[GenerationOptions]) -> str:
        """Continue a text, or token ids; see `GenerationOptions` for the options."""
        ...

    def stream(self, prompt: Prompt, **options: Unpack[GenerationOptions]) -> Generation:
        """The same, piece by piece, with the tokens counted and why it ended.

        Invalid arguments raise here, before the first piece is requested.
        """
        ...

    def close(self) -> None:
        """Release the model."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...


@runtime_checkable
class ChatRuntime(Protocol):
    """A runtime that answers conversations, with the model's own chat template (`edgekit.runtime.chat`)."""

    def prompt(self, messages: Messages | str) -> str:
        """Return the prompt that the model's chat template renders from messages.

        Raises:
            UsageError: the model has no template, the messages are malformed, or the template does not accept them.
            InvalidFileError: the template fails, or exceeds the limits of time or memory.
        """
        ...

    def chat(self, messages: Messages | str, **options: Unpack[GenerationOptions]) -> str:
        """Answer a conversation; raises as `prompt` and as `Runtime.generate`."""
        ...

    def chat_stream(self, messages: Messages | str, **options: Unpack[GenerationOptions]) -> Generation:
        """Answer a conversation piece by piece, as `Runtime.stream`."""
        ...


@runtime_checkable
class ReplyingRuntime(Protocol):
    """A runtime that takes answers apart: text, reasoning, and calls of tools."""

    def reply(self, messages: Messages | str, **options: Unpack[ReplyOptions]) -> Reply:
        """Answer a conversation; see `edgekit.runtime.ReplyOptions`."""
        ...


@runtime_checkable
class EmbeddingRuntime(Protocol):
    """A runtime that computes embeddings of texts."""

    def embed(self, text: Prompt) -> F32:
        """Return the embedding of a text, or of token ids, float32 [width], normalized to length 1.

        Raises:
            UsageError: an empty text, or no tokenizer.
            ContextOverflowError: more tokens than the context holds.
        """
        ...


@runtime_checkable
class TokenizingRuntime(Protocol):
    """A runtime that exposes its tokenization."""

    def encode(self, text: str) -> list[int]:
        """Return the token ids that `Runtime.stream` uses for a text.

        `EmbeddingRuntime.embed` adds the token that ends a text, where the model has one.
        """
        ...


@runtime_checkable
class DetokenizingRuntime(Protocol):
    """A runtime that turns token ids into text."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of token ids, special tokens by their names."""
        ...


@runtime_checkable
class ScoringRuntime(Protocol):
    """A runtime that scores the tokens of a prompt."""

    def scores(self, tokens: Sequence[int], logprobs: int = 0) -> list[TokenScore]:
        """Return the score of each token given those before it, with so many alternatives; of the first NaN."""
        ...


class ChattingRuntime(Runtime, ChatRuntime, ReplyingRuntime, Protocol):
    """The return type of `load`, for type checkers: a runtime with `chat`, `chat_stream` and `reply`.

    edgekit's runtimes have them. A plugin's may lack them: check with ``isinstance(model, ChatRuntime)``.
    """


@attrs.frozen
class CacheUse:
    """Tokens of prompts since a model was loaded.

    Attributes:
        reused: whose keys and values were there from earlier texts.
        computed: all others.
    """

    reused: int = 0
    computed: int = 0

    def plus(self, reused: int, computed: int) -> CacheUse:
        """Return it with further tokens."""
        return CacheUse(self.reused + reused, self.computed + computed)


@runtime_checkable
class CachingRuntime(Protocol):
    """A runtime that keeps what it computed of earlier texts."""

    def cache_use(self) -> CacheUse:
        """Return how many tokens of prompts it computed, and how many it did not have to; any thread may call it."""
        ...


@runtime_checkable
class AdaptingRuntime(Protocol):
    """A runtime that was loaded with adapters, which it applies to texts that ask for them."""

    def adapters(self) -> list[str]:
        """Return the names of its adapters."""
        ...

    def adapted(self, scales: Mapping[str, float]) -> ChattingRuntime:
        """Return a runtime of the same model that computes with adapters; closing this one closes it.

        Args:
            scales: names, and the scale of each; none for the model without adapters.

        Raises:
            UsageError: another name, or a scale that is not finite.
        """
        ...


@runtime_checkable
class DescribedRuntime(Protocol):
    """A runtime that reports how it computes: the settings in effect since the model was loaded."""

    def description(self) -> dict[str, Any]:
        """Return names and values for JSON and logs: ``device``, and effective options such as ``gpu_layers``."""
        ...


def load(artifact: Artifact | str | os.PathLike[str], runtime: str | None = None, **options: Any) -> ChattingRuntime:
    """Load a model to run it.

    Args:
        artifact: an artifact, or the path of one.
        runtime: name of an installed runtime; None takes the fastest that runs the artifact's format.
        options: of that runtime.

    Raises:
        MissingPluginError: that runtime is not installed, or does not run the format.
        UsageError: an option that the runtime does not have; names those that it has.
    """
    opened = as_artifact(artifact)
    chosen = choose_runtime(opened, runtime)
    return start(chosen.load(), chosen.name, opened, **options)


def start(function: Callable[..., Any], name: str, artifact: Artifact, **options: Any) -> ChattingRuntime:
    """Call a runtime's function with an artifact and options; raise if it does not declare one of them.

    Args:
        function: the registered target of the runtime.
        name: of the runtime, for messages.
        artifact: the model.
        options: of that runtime.

    Raises:
        UsageError: an option that the runtime does not have; names those that it has.
    """
    known = declared_options(function)
    if known is not None:  # else it takes any, and checks them itself
        refuse_unknown_options(name, options, known)
    with enough_memory(f"{artifact.path}: loading it with the runtime {name}", artifact.nbytes):
        runtime: ChattingRuntime = function(artifact, **options)
    return runtime


def choose_runtime(artifact: Artifact, name: str | None) -> Registration:
    """Return the registration of the runtime to use.

    Raises:
        MissingPluginError: it is not installed, or does not run the artifact's format.
    """
    if name is not None:
        matching = manager().find("runtimes", name)
        if not _runs(matching, artifact):
            formats = ", ".join(matching.options.get("formats", ()))
            raise MissingPluginError(
                f"runtime {name!r} runs {formats}, {artifact.path} is {artifact.format}; "
                "convert it first, or choose another runtime"
            )
        return matching
    return max(
        (r for r in manager().all("runtimes") if _runs(r, artifact)), key=lambda r: cast(int, r.options.get("speed", 1))
    )


def _runs(registration: Registration, artifact: Artifact) -> bool:
    formats = registration.options.get("formats", ())
    return "*" in formats or artifact.format in formats


__all__ = [
    "F32",
    "AdaptingRuntime",
    "CacheUse",
    "CachingRuntime",
    "ChatRuntime",
    "ChattingRuntime",
    "DescribedRuntime",
    "DetokenizingRuntime",
    "EmbeddingRuntime",
    "FinishReason",
    "Generation",
    "GenerationOptions",
    "NumpyRuntime",
    "ReplyingRuntime",
    "Runtime",
    "Sampling",
    "ScoringRuntime",
    "TextRuntime",
    "TokenizingRuntime",
    "choose_runtime",
    "load",
    "start",
    "until",
]
