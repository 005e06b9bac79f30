"""The core's own runtime: the numpy forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Self

import attrs
import numpy as np
import numpy.typing as npt

from edgekit import chat
from edgekit.architectures.forward import KVCache, Transformer
from edgekit.artifact import Artifact
from edgekit.chat import Messages
from edgekit.errors import ContextOverflowError, NonFiniteError, UsageError
from edgekit.generation import Generation, Sampling, until
from edgekit.tokenizer import Tokenizer

F32 = npt.NDArray[np.float32]

#: What an incomplete UTF-8 sequence decodes to.
_REPLACEMENT = "\ufffd"


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
        return "".join(self._stream(self.encode(prompt), max_tokens, sampling, stop))

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
    ) -> Generation:
        """As `generate`, piece by piece; each piece is whole characters, and never the start of a stop text."""
        return self._stream(self.encode(prompt), max_tokens, Sampling(temperature, top_k, top_p, seed), stop)

    def _stream(self, ids: list[int], max_tokens: int | None, sampling: Sampling, stop: Sequence[str]) -> Generation:
        tokens = self.tokens(ids, max_tokens=max_tokens, sampling=sampling)
        return Generation.counting(len(ids), tokens, lambda new: until(_texts(self._tokenizer(), ids, new), stop))

    def chat(
        self,
        messages: Messages,
        *,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: Sequence[str] = (),
    ) -> str:
        """Answer messages, with the model's own chat template; see `chat_stream`."""
        pieces = self.chat_stream(
            messages, max_tokens=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, stop=stop
        )
        return "".join(pieces)

    def chat_stream(
        self,
        messages: Messages,
        *,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: Sequence[str] = (),
    ) -> Generation:
        """The answer to messages, piece by piece; arguments as `prompt` and `generate`, and raises as both."""
        text = self.prompt(messages)
        return self._stream(
            self.encode(text, special=True), max_tokens, Sampling(temperature, top_k, top_p, seed), stop
        )

    def prompt(self, messages: Messages) -> str:
        """What the model's chat template makes of messages; see `edgekit.chat.prompt_of`."""
        return chat.prompt_of(self.artifact, messages)

    def embed(self, text: str) -> F32:
        """The mean of the last layer's states over a text, float32 [width], of length 1.

        Raises:
            UsageError: an empty text, or no tokenizer.
            ContextOverflowError: more tokens than the model's context.
            NonFiniteError: the model computes values that are not finite.
        """
        ids = self.encode(text)
        self._room(len(ids), None)
        mean = self._model().hidden(ids).mean(axis=0, dtype=np.float64)
        if not np.isfinite(mean).all():
            raise NonFiniteError(f"{self.artifact.path}: it computes values that are not finite")
        unit: F32 = (mean / max(float(np.linalg.norm(mean)), 1e-30)).astype(np.float32)
        return unit

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Cut a text into token ids, with what the model puts before every text.

        Args:
            text: any Unicode text; special tokens in it are recognised.
            special: whether a text that begins with the first token's name, as chat templates write it, gets no second.

        Raises:
            UsageError: no tokenizer, or half of a surrogate pair.
        """
        tokenizer = self._tokenizer()
        first = chat.special_tokens(tokenizer).get("bos_token")
        named = special and first is not None and text.startswith(first)
        ids = tokenizer.encode(text, add_special=not named)
        if tokenizer.add_eos and ids[-1:] == [tokenizer.eos]:  # the text is to go on
            del ids[-1]
        return ids

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
