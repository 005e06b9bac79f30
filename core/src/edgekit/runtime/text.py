"""The base of runtimes that produce token ids: texts, chat, stop texts, and the context's limit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Unpack

import numpy as np
import numpy.typing as npt

from edgekit.artifact import Artifact
from edgekit.errors import ContextOverflowError, NonFiniteError, UsageError
from edgekit.runtime import chat
from edgekit.runtime.arguments import Stop, integer, prompt_text, stop_texts
from edgekit.runtime.chat import Messages
from edgekit.runtime.generation import Generation, GenerationOptions, Sampling, SamplingOptions, until
from edgekit.tokenizer._record import Tokenizer
from edgekit.typing import F32


class TextRuntime:
    """A base for runtimes that continue token ids; texts are tokenized with the artifact's tokenizer.

    A runtime that derives from it has `artifact` and `context` and implements `tokens`; it gets `generate`, `stream`,
    `chat`, `chat_stream`, `prompt` and `encode`, which then behave as in all other runtimes. One that tokenizes texts
    itself overrides `encode`, `prompt` and `pieces` together.

    Attributes:
        artifact: the model.
    """

    artifact: Artifact

    @property
    def context(self) -> int:
        """The number of tokens in the model's context."""
        raise NotImplementedError

    def tokens(
        self, prompt: Sequence[int], *, max_tokens: int | None = None, sampling: Sampling | None = None
    ) -> Iterator[int]:
        """Continue a sequence of token ids, one at a time; never ends by itself before `max_tokens`.

        Invalid arguments raise here, before the first token is requested.
        """
        raise NotImplementedError

    def generate(self, prompt: str, **options: Unpack[GenerationOptions]) -> str:
        """Continue a text until the model ends it.

        Args:
            prompt: the text so far.
            options: how long the text gets and how tokens are chosen; see `edgekit.runtime.GenerationOptions`.

        Returns:
            What follows the prompt.

        Raises:
            UsageError: an empty prompt, no tokenizer, or an option out of range.
            ContextOverflowError: the prompt and `max_tokens` do not fit the model's context.
        """
        asked = _asked(**options)
        return "".join(self._stream(self._prompt_ids(prompt_text(prompt)), *asked))

    def stream(self, prompt: str, **options: Unpack[GenerationOptions]) -> Generation:
        """Generate as `generate`, piece by piece, in whole characters and without any part of a stop text."""
        asked = _asked(**options)
        return self._stream(self._prompt_ids(prompt_text(prompt)), *asked)

    def _stream(self, ids: list[int], max_tokens: int | None, sampling: Sampling, stop: Stop) -> Generation:
        ends = stop_texts(stop)
        if not ids:
            empty = "the prompt has no tokens; give at least one character"
            raise UsageError(empty, public=empty)
        tokens = self.tokens(ids, max_tokens=max_tokens, sampling=sampling)
        return Generation.counting(len(ids), tokens, lambda new: until(self.pieces(ids, new), ends))

    def chat(self, messages: Messages | str, **options: Unpack[GenerationOptions]) -> str:
        """Answer messages, with the model's own chat template; see `chat_stream`."""
        return "".join(self.chat_stream(messages, **options))

    def chat_stream(self, messages: Messages | str, **options: Unpack[GenerationOptions]) -> Generation:
        """Answer messages piece by piece; arguments as `prompt` and `generate`, and raises as both."""
        asked = _asked(**options)
        return self._stream(self._prompt_ids(self.prompt(messages), special=True), *asked)

    def _prompt_ids(self, text: str, *, special: bool = False) -> list[int]:
        self.refuse_too_long(text)
        return self.encode(text, special=special)

    def prompt(self, messages: Messages | str) -> str:
        """Return the prompt that the model's chat template renders; see `edgekit.runtime.chat.prompt_of`."""
        return chat.prompt_of(self.artifact, messages)

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Tokenize a text, with the token that the model expects at the beginning of every text.

        Args:
            text: any Unicode text; special tokens in it are recognised.
            special: whether a text that begins with the first token's name, as chat templates write it, gets no second.

        Raises:
            UsageError: no tokenizer, or half of a surrogate pair.
        """
        tokenizer = self.tokenizer()
        first = chat.special_tokens(tokenizer).get("bos_token")
        named = special and first is not None and text.startswith(first)
        ids = tokenizer.encode(text, add_special=not named)
        if tokenizer.add_eos and ids[-1:] == [tokenizer.eos]:  # the text is to go on
            del ids[-1]
        return ids

    def refuse_too_long(self, text: str) -> None:
        """Raise, before tokenizing, if a text's length or beginning shows that it does not fit the context.

        Raises:
            ContextOverflowError: shorter texts may still have too many tokens; `room` raises for those.
        """
        context = self.context
        least = self.tokenizer().least_tokens(text, context)
        if least > context:
            raise self._overflow(f"at least {least} tokens of prompt", 0)

    def tokenizer(self) -> Tokenizer:
        """Return the artifact's tokenizer.

        Raises:
            UsageError: it has none.
        """
        tokenizer = self.artifact.tokenizer
        if tokenizer is None:
            raise self.lacks_tokenizer()
        return tokenizer

    def lacks_tokenizer(self) -> UsageError:
        """Return the error for a model without a tokenizer."""
        return UsageError(
            chat.no_tokenizer(self.artifact.path), public="the model has no tokenizer, so it cannot read texts"
        )

    def room(self, prompt: int, requested: int | None) -> int:
        """Return how many tokens to generate after a prompt of so many tokens; None fills the context.

        Raises:
            UsageError: a negative number, or none.
            ContextOverflowError: the prompt and the requested tokens do not fit the model's context.
        """
        if requested is not None:
            requested = integer("max_tokens", requested, 0)
        context = self.context
        if prompt + (requested or 0) > context:
            raise self._overflow(f"{prompt} tokens of prompt and {requested or 0} more", max(0, context - prompt))
        return context - prompt if requested is None else requested

    def _overflow(self, asked: str, most: int) -> ContextOverflowError:
        """Clients cannot reload the model with other options, so their message omits that cure."""
        return ContextOverflowError(
            f"{asked} {self.too_long(most)}", public=f"{asked} {TextRuntime.too_long(self, most)}"
        )

    def too_long(self, most: int) -> str:
        """Return the end of the message for a text that does not fit: the limit and the cure.

        Args:
            most: largest number of tokens that can be generated after this prompt.
        """
        cure = f"shorten the prompt, or ask for at most {most}" if most else "shorten the prompt"
        return f"do not fit the model's context of {self.context}; {cure}"

    def pieces(self, prompt: list[int], tokens: Iterator[int]) -> Iterator[str]:
        """Yield the text after the prompt in whole characters; ends at the end token."""
        tokenizer = self.tokenizer()
        # Decoded as what follows the prompt: on its own the first piece would lose its leading space.
        text = tokenizer.detokenizer(prompt)
        for token in tokens:
            if token in tokenizer.end_ids:
                break
            if piece := text.add(token):
                yield piece
        if rest := text.end():
            yield rest

    def unit(self, states: npt.ArrayLike) -> F32:
        """Return a vector [width] as an embedding: float32, normalized to length 1.

        Raises:
            NonFiniteError: it has a NaN or an infinity.
        """
        vector = np.asarray(states, np.float64)
        if not np.isfinite(vector).all():
            raise NonFiniteError(f"{self.artifact.path}: it computes values that are not finite")
        scaled: F32 = (vector / max(float(np.linalg.norm(vector)), 1e-30)).astype(np.float32)
        return scaled


def _asked(
    *, max_tokens: int | None = None, stop: Stop = (), **sampling: Unpack[SamplingOptions]
) -> tuple[int | None, Sampling, Stop]:
    """Generation options, those of sampling checked and the others as they came."""
    return max_tokens, Sampling(**sampling), stop


__all__ = ["TextRuntime"]
