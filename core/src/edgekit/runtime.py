"""Runtimes: what executes a model. The core's own is the numpy forward pass; plugins bring faster ones."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, Self, cast

import attrs
import numpy as np
import numpy.typing as npt

from edgekit.architectures.forward import KVCache, Transformer
from edgekit.artifact import Artifact
from edgekit.errors import ContextOverflowError, MissingPluginError, UsageError
from edgekit.pipeline import open_artifact
from edgekit.plugin import Registration, manager
from edgekit.tokenizer import Tokenizer

F32 = npt.NDArray[np.float32]

#: What an incomplete UTF-8 sequence decodes to.
_REPLACEMENT = "\ufffd"


class Runtime(Protocol):
    """A model that is loaded and can be run; a context manager that lets go of it at the end."""

    @property
    def name(self) -> str:
        """Under which the runtime is registered."""
        ...

    def logits(self, tokens: npt.ArrayLike) -> F32:
        """Scores of every next token, float32 [n, vocab], of token ids [n]."""
        ...

    def generate(
        self,
        prompt: str,
        *,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: Sequence[str] = (),
    ) -> str:
        """Continue a text; see `NumpyRuntime.generate` for the arguments."""
        ...

    def stream(
        self,
        prompt: str,
        *,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: Sequence[str] = (),
    ) -> Iterator[str]:
        """The same, piece by piece."""
        ...

    def close(self) -> None:
        """Let go of the model."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...


def load(artifact: Artifact | str | os.PathLike[str], runtime: str | None = None, **options: Any) -> Runtime:
    """Load a model to run it.

    Args:
        artifact: an artifact, or the path of one.
        runtime: name of an installed runtime; None takes the fastest that runs the artifact's format.
        options: what that runtime understands besides.

    Raises:
        MissingPluginError: that runtime is not installed, or does not run the format.
    """
    opened = artifact if isinstance(artifact, Artifact) else open_artifact(artifact)
    start: Callable[..., Runtime] = choose_runtime(opened, runtime).load()
    return start(opened, **options)


def choose_runtime(artifact: Artifact, name: str | None) -> Registration:
    """The runtime to use.

    Raises:
        MissingPluginError: it is not installed, or does not run the artifact's format.
    """
    if name is not None:
        found = manager().find("runtimes", name)
        if not _runs(found, artifact):
            formats = ", ".join(found.options.get("formats", ()))
            raise MissingPluginError(
                f"runtime {name!r} runs {formats}, {artifact.path} is {artifact.format}; "
                "convert it first, or choose another runtime"
            )
        return found
    return max(
        (r for r in manager().all("runtimes") if _runs(r, artifact)), key=lambda r: cast(int, r.options.get("speed", 1))
    )


def _runs(registration: Registration, artifact: Artifact) -> bool:
    formats = registration.options.get("formats", ())
    return "*" in formats or artifact.format in formats


@attrs.frozen
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 takes the most likely token; above, probabilities are softmax(logits / temperature).
        top_k: only the k most likely tokens; 0 for all.
        top_p: only the most likely tokens that together reach this probability.
        seed: of the random numbers; the same seed gives the same text.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __attrs_post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise UsageError(f"temperature {self.temperature}; choose 0 or more")
        if self.top_k < 0:
            raise UsageError(f"top_k {self.top_k}; choose 0 (all tokens) or more")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p {self.top_p}; choose above 0 and at most 1")

    def sampler(self) -> Callable[[F32], int]:
        """A function from logits [vocab] to the next token, with random numbers of its own."""
        random = np.random.default_rng(self.seed)
        return lambda logits: self._choose(logits, random)

    def _choose(self, logits: F32, random: np.random.Generator) -> int:
        if self.temperature == 0:
            return int(logits.argmax())
        order = np.argsort(-logits, kind="stable")[: self.top_k or None]
        return int(random.choice(order, p=self.probabilities(logits[order])))

    def probabilities(self, logits: F32) -> npt.NDArray[np.float64]:
        """Of the candidates, whose logits are sorted in descending order: float64, summing to 1."""
        with np.errstate(over="ignore"):  # a tiny temperature makes exp(-inf), which is the right 0
            weights = np.exp((logits.astype(np.float64) - logits[0]) / self.temperature)
        weights /= weights.sum()
        # A token stays while those before it have not reached top_p; the first always does.
        weights[weights.cumsum() - weights >= self.top_p] = 0
        kept: npt.NDArray[np.float64] = weights / weights.sum()
        return kept


@attrs.define(eq=False)
class NumpyRuntime:
    """The numpy forward pass with a cache of keys and values: slow, exact, and always there.

    Attributes:
        artifact: the model.
        transformer: what computes; its weights are let go at the end of a ``with`` block.

    Example:
        >>> with NumpyRuntime.open(artifact) as model:  # doctest: +SKIP
        ...     print(model.generate("Once upon a time", max_tokens=40))
    """

    artifact: Artifact
    transformer: Transformer | None

    name = "numpy"

    @classmethod
    def open(cls, artifact: Artifact, *, cache: bool | None = None) -> NumpyRuntime:
        """Load an artifact.

        Args:
            artifact: of any format, of a family that edgekit knows.
            cache: whether decoded weights stay in memory; None: where they take little (`Transformer`).

        Raises:
            UnsupportedModelError: the family is not known.
        """
        return cls(artifact, Transformer(artifact.model, cache))

    def logits(self, tokens: npt.ArrayLike) -> F32:
        """Scores of every next token, float32 [n, vocab], of token ids [n].

        Raises:
            UsageError: no tokens, or ids outside the vocabulary.
            ContextOverflowError: more tokens than the model's context.
        """
        self._room(np.shape(tokens)[-1] if np.ndim(tokens) else 0, None)
        return self._model().logits(tokens)

    def tokens(
        self, prompt: Sequence[int], *, max_tokens: int | None = None, sampling: Sampling | None = None
    ) -> Iterator[int]:
        """Continue a sequence of token ids, one at a time; never ends by itself before `max_tokens`.

        Args:
            prompt: at least one id.
            max_tokens: how many; None for as many as the model's context has room for.
            sampling: how they are chosen; None takes the most likely one.

        Raises:
            UsageError: no tokens, or ids outside the vocabulary.
            ContextOverflowError: the prompt and `max_tokens` do not fit the model's context.
        """
        count = self._room(len(prompt), max_tokens)
        choose = (sampling or Sampling()).sampler()
        return self._continue(prompt, count, choose)

    def _continue(self, prompt: Sequence[int], count: int, choose: Callable[[F32], int]) -> Iterator[int]:
        past, new = KVCache(), np.asarray(prompt, np.int64)
        for _ in range(count):
            token = choose(self._model().step(new, past))
            yield token
            new = np.array([token])

    def generate(
        self,
        prompt: str,
        *,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: Sequence[str] = (),
    ) -> str:
        """Continue a text until the model ends it.

        Args:
            prompt: the text so far.
            max_tokens: at most so many tokens; None for as many as the model's context has room for.
            temperature: 0 takes the most likely token each time; above it, see `Sampling`.
            top_k: only the k most likely tokens; 0 for all.
            top_p: only the most likely tokens that together reach this probability.
            seed: of the random numbers.
            stop: texts at which to end; they are not part of the result.

        Returns:
            What follows the prompt.

        Raises:
            UsageError: an empty prompt, no tokenizer, or an option out of range.
            ContextOverflowError: the prompt and `max_tokens` do not fit the model's context.
        """
        sampling = Sampling(temperature, top_k, top_p, seed)
        return "".join(self._stream(prompt, max_tokens, sampling, stop))

    def stream(
        self,
        prompt: str,
        *,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: Sequence[str] = (),
    ) -> Iterator[str]:
        """As `generate`, piece by piece; each piece is whole characters, and never the start of a stop text."""
        return self._stream(prompt, max_tokens, Sampling(temperature, top_k, top_p, seed), stop)

    def _stream(self, prompt: str, max_tokens: int | None, sampling: Sampling, stop: Sequence[str]) -> Iterator[str]:
        tokenizer = self._tokenizer()
        ids = tokenizer.encode(prompt)
        if tokenizer.add_eos and ids[-1:] == [tokenizer.eos]:  # the text is to go on
            del ids[-1]
        texts = _texts(tokenizer, ids, self.tokens(ids, max_tokens=max_tokens, sampling=sampling))
        return until(texts, stop)

    def close(self) -> None:
        """Let go of the weights."""
        self.transformer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _model(self) -> Transformer:
        if self.transformer is None:
            raise UsageError("the runtime is closed; open the model again")
        return self.transformer

    def _tokenizer(self) -> Tokenizer:
        tokenizer = self.artifact.tokenizer
        if tokenizer is None:
            raise UsageError(f"{self.artifact.path}: it has no tokenizer; continue token ids with `tokens` instead")
        return tokenizer

    def _room(self, prompt: int, wanted: int | None) -> int:
        """How many tokens to generate."""
        if wanted is not None and wanted < 0:
            raise UsageError(f"max_tokens {wanted}; choose 0 or more")
        context = self._model().config.context
        if prompt + (wanted or 0) > context:
            raise ContextOverflowError(
                f"{prompt} tokens of prompt and {wanted or 0} more do not fit the model's context of {context}; "
                f"shorten the prompt, or ask for at most {max(0, context - prompt)}"
            )
        return context - prompt if wanted is None else wanted


def _texts(tokenizer: Tokenizer, prompt: list[int], tokens: Iterator[int]) -> Iterator[str]:
    """The whole text after the prompt, each time that it has grown by whole characters; ends at the end token."""
    # Decoded together with the prompt: on its own the first piece would lose its leading space.
    before = len(tokenizer.decode(prompt))
    ids = list(prompt)
    for token in tokens:
        if token == tokenizer.eos:
            return
        ids.append(token)
        text = tokenizer.decode(ids)[before:]
        if not text.endswith(_REPLACEMENT):
            yield text


def until(texts: Iterator[str], stop: Sequence[str]) -> Iterator[str]:
    """New pieces of a growing text, up to the first stop text; what may be the start of one is held back."""
    given, text = 0, ""
    for text in texts:
        ends = [place for place in (text.find(s) for s in stop if s) if place >= 0]
        if ends:
            yield from filter(None, [text[given : min(ends)]])
            return
        safe = len(text) - _held(text, stop)
        if safe > given:
            yield text[given:safe]
            given = safe
    yield from filter(None, [text[given:]])


def _held(text: str, stop: Sequence[str]) -> int:
    """Length of the longest end of the text that a stop text begins with."""
    return max((n for s in stop for n in range(1, len(s)) if text.endswith(s[:n])), default=0)
