"""Several texts at once: prompts are computed one by one, then all texts get a token in each step.

A step reads the weights once for all texts, which is what a token costs. Each text has its own sampler, so that it is
the one that it would be alone, up to the rounding of sums: MLX adds in another order for several rows, by which two
tokens whose scores are equal to six digits may change places.

mlx-lm's caches of one layer are merged, those of shorter texts padded on the left; a text that ends leaves them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import attrs

from edgekit.runtime import Sampling, TextRuntime
from edgekit.typing import F32


class Engine(Protocol):
    """What a batch computes with; `edgekit_mlx.runtime.MlxRuntime` has it."""

    def prefill(self, ids: Sequence[int]) -> tuple[list[Any], F32]:
        """Return a new cache that holds the ids, and the logits [vocab] of the next token."""
        ...

    def advance(self, ids: Sequence[int], cache: list[Any]) -> F32:
        """Return the logits [rows, vocab] after one more token of each row; the cache grows."""
        ...

    def merge(self, caches: Sequence[list[Any]]) -> list[Any]:
        """Return one cache with a row for each of several."""
        ...

    def keep(self, rows: Sequence[int], cache: list[Any]) -> None:
        """Drop all other rows of a cache."""
        ...


@attrs.define(eq=False)
class _Line:
    """A text of a batch.

    Attributes:
        ids: of its prompt.
        choose: picks a token by its logits [vocab].
        chosen: tokens that were not taken yet.
        last: the newest token.
        cache: of the prompt, until the batch has one of its own.
    """

    ids: list[int]
    choose: Callable[[F32], int]
    chosen: deque[int] = attrs.field(factory=deque)
    last: int = -1
    cache: list[Any] | None = None

    def add(self, scores: F32) -> None:
        """Choose a token."""
        self.last = self.choose(scores)
        self.chosen.append(self.last)


class Batch:
    """Texts that are continued together.

    Args:
        engine: computes.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._waiting: list[_Line] = []
        self._rows: list[_Line] = []
        self._ended: list[_Line] = []
        self._cache: list[Any] = []

    def join(self, ids: list[int], count: int, choose: Callable[[F32], int]) -> Iterator[int]:
        """Continue one more text: its next `count` tokens; to be called for all texts before the first is asked."""
        line = _Line(ids, choose)
        self._waiting.append(line)
        return self._tokens(line, count)

    def _tokens(self, line: _Line, count: int) -> Iterator[int]:
        try:
            for _ in range(count):
                while not line.chosen:
                    self._step()
                yield line.chosen.popleft()
        finally:
            self._ended.append(line)

    def _step(self) -> None:
        """Choose one more token of every text that goes on."""
        if self._waiting:
            self._begin()
            return
        self._leave()
        scores = self._engine.advance([line.last for line in self._rows], self._cache)
        for line, row in zip(self._rows, scores, strict=True):
            line.add(row)

    def _begin(self) -> None:
        """Compute the prompts, and merge their caches."""
        for line in self._waiting:
            line.cache, scores = self._engine.prefill(line.ids)
            line.add(scores)
        self._rows, self._waiting = self._waiting, []
        caches = [line.cache or [] for line in self._rows]
        for line in self._rows:
            line.cache = None
        self._cache = caches[0] if len(caches) == 1 else self._engine.merge(caches)

    def _leave(self) -> None:
        """Drop the texts that ended from the caches."""
        kept = [i for i, line in enumerate(self._rows) if line not in self._ended]
        if len(kept) < len(self._rows):
            self._rows = [self._rows[i] for i in kept]
            self._engine.keep(kept, self._cache)
        self._ended.clear()


class Row(TextRuntime):
    """A runtime whose texts join a batch; everything else is as in the runtime that it belongs to.

    Args:
        runtime: to which the batch belongs.
        batch: that texts join.
    """

    def __init__(self, runtime: TextRuntime, batch: Batch) -> None:
        self.artifact, self._runtime, self._batch = runtime.artifact, runtime, batch

    @property
    def context(self) -> int:
        """As the runtime's."""
        return self._runtime.context

    def tokens(
        self, prompt: Sequence[int], *, max_tokens: int | None = None, sampling: Sampling | None = None
    ) -> Iterator[int]:
        """Join the batch; see `edgekit.runtime.TextRuntime.tokens`."""
        choose = (sampling or Sampling()).sampler(list(prompt))
        return self._batch.join(list(prompt), self.room(len(prompt), max_tokens), choose)


def together(streams: Sequence[Iterator[str]]) -> list[str]:
    """Return the whole texts of streams that are read in turns, so that none gets far ahead of the others."""
    texts: list[list[str]] = [[] for _ in streams]
    going = dict(enumerate(streams))
    while going:
        for number, stream in list(going.items()):
            piece = next(stream, None)
            if piece is None:
                del going[number]
            else:
                texts[number].append(piece)
    return ["".join(pieces) for pieces in texts]


__all__ = ["Batch", "Engine", "Row", "together"]
