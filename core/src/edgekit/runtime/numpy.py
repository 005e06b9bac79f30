"""The core's own runtime: the numpy forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import attrs
import numpy as np
import numpy.typing as npt

from edgekit.architectures.blocks import NO_PREDICTION
from edgekit.architectures.forward import KVCache, Transformer
from edgekit.artifact import Artifact
from edgekit.errors import UnsupportedModelError, UsageError
from edgekit.runtime.arguments import Prompt
from edgekit.runtime.generation import Sampling
from edgekit.runtime.text import TextRuntime
from edgekit.typing import F32


@attrs.define(eq=False)
class NumpyRuntime(TextRuntime):
    """The numpy forward pass with a cache of keys and values: slow, exact, and always available.

    Attributes:
        artifact: the model.
        transformer: the forward pass; its weights are released at the end of a ``with`` block.

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
            artifact: of any format, of a supported family.
            cache: whether decoded weights stay in memory; None caches them if they are small (`Transformer`).

        Raises:
            UnsupportedModelError: the family is unsupported.
        """
        return cls(artifact, Transformer(artifact.model, cache))

    @property
    def context(self) -> int:
        """The number of tokens in the model's context."""
        return self._model().config.context

    def logits(self, tokens: npt.ArrayLike) -> F32:
        """Return the logits of every next token, float32 [n, vocab], for token ids [n].

        Raises:
            UsageError: no tokens, or ids outside the vocabulary.
            ContextOverflowError: more tokens than the model's context.
        """
        self.room(np.shape(tokens)[-1] if np.ndim(tokens) else 0, None)
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
            UnsupportedModelError: the model is an encoder.
        """
        if not self._model().config.causal:
            raise UnsupportedModelError(NO_PREDICTION)
        count = self.room(len(prompt), max_tokens)
        choose = (sampling or Sampling()).sampler(prompt)
        return self._continue(prompt, count, choose)

    def _continue(self, prompt: Sequence[int], count: int, choose: Callable[[F32], int]) -> Iterator[int]:
        past, new = KVCache(), np.asarray(prompt, np.int64)
        for _ in range(count):
            token = choose(self._model().step(new, past))
            yield token
            new = np.array([token])

    def embed(self, text: Prompt) -> F32:
        """Return the embedding of a text or of token ids, float32 [dim], normalized to length 1.

        Pooled as the model's files say (`edgekit.architectures.pooled`); without a word the mean of the last states.

        Raises:
            UsageError: an empty text, or no tokenizer.
            ContextOverflowError: more tokens than the model's context.
            NonFiniteError: the model computes values that are not finite.
        """
        ids = self.whole_ids(text)
        self.room(len(ids), None)
        return self.unit(self._model().embedding(ids))

    def close(self) -> None:
        """Release the weights."""
        self.transformer = None

    def _model(self) -> Transformer:
        if self.transformer is None:
            raise UsageError("the runtime is closed; open the model again")
        return self.transformer


__all__ = ["NumpyRuntime"]
