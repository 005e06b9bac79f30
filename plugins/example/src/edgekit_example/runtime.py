"""A runtime around the core's numpy forward pass; a real one would call its engine where this one calls `step`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import attrs
import numpy as np
import numpy.typing as npt

from edgekit.architectures.forward import KVCache, Transformer
from edgekit.artifact import Artifact
from edgekit.errors import ContextOverflowError, UsageError
from edgekit.runtime import Generation, Sampling, until
from edgekit.tokenizer import Tokenizer

F32 = npt.NDArray[np.float32]


@attrs.define(eq=False)
class ExampleRuntime:
    """A model that is loaded; see `edgekit.runtime.Runtime`."""

    artifact: Artifact
    transformer: Transformer | None

    name = "example"

    @classmethod
    def open(cls, artifact: Artifact) -> ExampleRuntime:
        """Load an artifact.

        Raises:
            UnsupportedModelError: a family that edgekit does not know.
        """
        return cls(artifact, Transformer(artifact.model))

    def logits(self, tokens: npt.ArrayLike) -> F32:
        """Scores of every next token, float32 [n, vocab], of token ids [n].

        Raises:
            UsageError: no tokens, or ids outside the vocabulary.
            ContextOverflowError: more tokens than the model's context.
        """
        self._room(np.shape(tokens)[-1] if np.ndim(tokens) else 0, 0)
        return self._model().logits(tokens)

    def generate(self, prompt: str, **options: Any) -> str:
        """Continue a text; takes the options of `stream`."""
        return "".join(self.stream(prompt, **options))

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
        """Continue a text piece by piece; the options are those of `edgekit.runtime.NumpyRuntime.generate`.

        Raises:
            UsageError: an empty prompt, no tokenizer, or an option out of range.
            ContextOverflowError: the prompt and `max_tokens` do not fit the model's context.
        """
        choose = Sampling(temperature, top_k, top_p, seed).sampler()
        tokenizer = self._tokenizer()
        ids = tokenizer.encode(prompt)
        if tokenizer.add_eos and ids[-1:] == [tokenizer.eos]:  # the text is to go on
            del ids[-1]
        tokens = self._tokens(ids, self._room(len(ids), max_tokens), choose)
        return Generation.counting(len(ids), tokens, lambda new: until(_texts(tokenizer, ids, new), stop))

    def _tokens(self, prompt: list[int], count: int, choose: Callable[[F32], int]) -> Iterator[int]:
        past, new = KVCache(), prompt
        for _ in range(count):
            token = choose(self._model().step(new, past))
            yield token
            new = [token]

    def _room(self, prompt: int, wanted: int | None) -> int:
        """How many tokens to generate."""
        context = self._model().config.context
        if prompt + (wanted or 0) > context:
            raise ContextOverflowError(
                f"{prompt} tokens and {wanted or 0} more do not fit the context of {context}; shorten the prompt"
            )
        if wanted is not None and wanted < 0:
            raise UsageError(f"max_tokens {wanted}; choose 0 or more")
        return context - prompt if wanted is None else wanted

    def _tokenizer(self) -> Tokenizer:
        if self.artifact.tokenizer is None:
            raise UsageError(f"{self.artifact.path}: it has no tokenizer, so it cannot continue a text")
        return self.artifact.tokenizer

    def _model(self) -> Transformer:
        if self.transformer is None:
            raise UsageError("the runtime is closed; open the model again")
        return self.transformer

    def close(self) -> None:
        """Let go of the weights."""
        self.transformer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _texts(tokenizer: Tokenizer, prompt: list[int], tokens: Iterator[int]) -> Iterator[str]:
    """The whole text after the prompt, each time that it has grown by whole characters."""
    before, ids = len(tokenizer.decode(prompt)), list(prompt)
    for token in tokens:
        if token == tokenizer.eos:
            return
        ids.append(token)
        text = tokenizer.decode(ids)[before:]
        if not text.endswith("\ufffd"):  # half of a character: the next token has the rest
            yield text
