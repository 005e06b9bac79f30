"""A runtime around the core's numpy forward pass; a real one would call its engine where this one calls `step`.

It gives token ids; texts, chats and stop texts are `TextRuntime`'s, so that they mean the same as everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Self

import attrs
import numpy as np
import numpy.typing as npt

from edgekit.architectures.forward import KVCache, Transformer
from edgekit.artifact import Artifact
from edgekit.errors import UsageError
from edgekit.runtime import Sampling
from edgekit.runtime.text import TextRuntime
from edgekit.typing import F32


@attrs.define(eq=False)
class ExampleRuntime(TextRuntime):
    """A model that is loaded; see `edgekit.runtime.Runtime`."""

    artifact: Artifact
    transformer: Transformer | None

    name = "example"

    @classmethod
    def open(cls, artifact: Artifact) -> ExampleRuntime:
        """Load an artifact.

        Raises:
            UnsupportedModelError: an unsupported model family.
        """
        return cls(artifact, Transformer(artifact.model))

    @property
    def context(self) -> int:
        """Tokens that the model's context holds."""
        return self._model().config.context

    def logits(self, tokens: npt.ArrayLike) -> F32:
        """Scores of every next token, float32 [n, vocab], of token ids [n].

        Raises:
            UsageError: no tokens, or ids outside the vocabulary.
            ContextOverflowError: more tokens than the model's context.
        """
        self.room(np.shape(tokens)[-1] if np.ndim(tokens) else 0, 0)
        return self._model().logits(tokens)

    def tokens(
        self, prompt: Sequence[int], *, max_tokens: int | None = None, sampling: Sampling | None = None
    ) -> Iterator[int]:
        """Continue a sequence of token ids, one at a time.

        Raises:
            UsageError: no prompt, ids outside the vocabulary, or a negative number of tokens.
            ContextOverflowError: the prompt and `max_tokens` do not fit the model's context.
        """
        count = self.room(len(prompt), max_tokens)  # what is wrong is said here, before the first token is asked for
        return self._continue(list(prompt), count, (sampling or Sampling()).sampler(prompt))

    def _continue(self, prompt: list[int], count: int, choose: Callable[[F32], int]) -> Iterator[int]:
        past, new = KVCache(), prompt
        for _ in range(count):
            token = choose(self._model().step(new, past))
            yield token
            new = [token]

    def _model(self) -> Transformer:
        if self.transformer is None:
            raise UsageError("the runtime is closed; open the model again")
        return self.transformer

    def close(self) -> None:
        """Release the weights."""
        self.transformer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


__all__ = ["ExampleRuntime"]
