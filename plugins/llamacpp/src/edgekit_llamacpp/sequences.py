"""Several texts in one context of llama.cpp: each is a sequence, and the texts that wait for a token share a batch.

A text asks for the logits after its tokens, in the thread that generates it. Whoever finds that nothing is computed
computes for all that wait: one batch has either the next token of every text, or a part of one prompt. The two
alternate, so that a new text joins at the next token, and a long prompt does not stop the others. A prompt has batches
of its own because the rows of a batch may be rounded differently than alone; so a prompt is computed as without others.

The keys and values of a text that has ended stay where they are. A new text takes the longest prefix that any sequence
has, or a copy of it, and computes the rest.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import attrs
import numpy as np

from edgekit.errors import ResourceError, UsageError
from edgekit.runtime import CacheUse
from edgekit.typing import F32
from edgekit_llamacpp.library import llama
from edgekit_llamacpp.model import Loaded, batch_of

#: Tokens of a text before another one that waits may take its sequence. What was in it is then computed again.
TURN = 256
#: Tokens of a prefix that is copied from another sequence; fewer are computed sooner.
LEAST_COPIED = 16
#: Seconds for which a step waits for the texts of the step before: half of what that took, within these limits.
PATIENCE = (0.002, 0.05)


@attrs.define(eq=False)
class Text:
    """A text that is continued.

    Attributes:
        slot: the sequence that it has.
        tokens: that were computed since it has it.
        thread: that asked for the last one.
        asked: when that was computed.
    """

    slot: _Slot | None = None
    tokens: int = 0
    thread: int = 0
    asked: float = 0.0

    def rests(self) -> bool:
        """Whether nobody asks for its next token now: its thread is here, or has not come for a while."""
        return self.thread == threading.get_ident() or time.monotonic() - self.asked > PATIENCE[1]


@attrs.define(eq=False)
class _Slot:
    """A sequence of the context.

    Attributes:
        number: llama.cpp's of it.
        tokens: whose keys and values it holds.
        text: that has it; None if it ended.
        used: step at which it was last computed.
    """

    number: int
    tokens: list[int] = attrs.field(factory=list)
    text: Text | None = None
    used: int = 0


@attrs.define(eq=False)
class _Ask:
    """A text's request for the logits after its tokens, and what came of it."""

    text: Text
    ids: list[int]
    logits: F32 | None = None
    error: Exception | None = None

    @property
    def done(self) -> bool:
        return self.logits is not None or self.error is not None

    @property
    def slot(self) -> _Slot:
        assert self.text.slot is not None
        return self.text.slot

    @property
    def missing(self) -> list[int]:
        return self.ids[len(self.slot.tokens) :]


@attrs.frozen(eq=False)
class _Part:
    """What a batch has of a text."""

    ask: _Ask
    slot: _Slot
    tokens: list[int]

    @property
    def ends(self) -> bool:
        """Whether it has the text's last token, whose logits are wanted."""
        return len(self.slot.tokens) >= len(self.ask.ids)

    def rows(self) -> Iterator[tuple[int, int, int, bool]]:
        """Token, position, sequence and whether its logits are wanted."""
        start, last = len(self.slot.tokens), len(self.ask.ids) - 1
        for place, token in enumerate(self.tokens, start):
            yield token, place, self.slot.number, place == last


class Sequences:
    """The sequences of a model's context.

    Args:
        loaded: the model; `Options.sequences` says how many there are.
    """

    def __init__(self, loaded: Loaded) -> None:
        self._llama, self._loaded = llama(), loaded
        self._slots = [_Slot(number) for number in range(loaded.options.sequences)]
        self._turn = threading.Condition(threading.RLock())
        self._asks: list[_Ask] = []
        self._expected: set[Text] = set()
        self._busy, self._closed, self._decoded = False, False, False
        self._deadline, self._steps = 0.0, 0
        self._use = CacheUse()

    def cache_use(self) -> CacheUse:
        """Return how many tokens of prompts were computed, and how many were there already."""
        return self._use

    def logits(self, text: Text, ids: list[int]) -> F32:
        """Return the logits [vocab] after a text's tokens; computes those whose keys and values no sequence has.

        Args:
            text: the same for each token of a text.
            ids: its tokens so far, with its prompt.

        Raises:
            ResourceError: llama.cpp cannot compute them.
            UsageError: the runtime was closed.
        """
        ask = _Ask(text, ids)
        with self._turn:
            text.thread = threading.get_ident()
            self._expected.discard(text)
            self._asks.append(ask)
            try:
                while not ask.done:
                    self._wait_or_step()
            finally:
                if ask in self._asks:  # it was interrupted
                    self._asks.remove(ask)
        if ask.error is not None:
            raise ask.error
        assert ask.logits is not None
        return ask.logits

    def _wait_or_step(self) -> None:
        if self._closed:
            raise UsageError("the runtime is closed; open the model again")
        if self._busy:
            self._turn.wait()
        elif (seconds := self._left()) > 0:
            self._turn.wait(seconds)
        else:
            self._step()

    def _left(self) -> float:
        """Seconds to wait for texts that were in the last step: those that come together are computed together."""
        if all(text.rests() for text in self._expected):
            return 0.0
        left = self._deadline - time.monotonic()
        if left <= 0:
            self._expected.clear()
        return left

    def end(self, text: Text) -> None:
        """Give a text's sequence back; what it holds stays for others."""
        with self._turn:
            self._expected.discard(text)
            if text.slot is not None:
                self._release(text.slot)
            self._turn.notify_all()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other threads from computing."""
        with self._turn:
            while self._busy:
                self._turn.wait()
            self._busy = True
        try:
            yield
        finally:
            with self._turn:
                self._busy = False
                self._turn.notify_all()

    def all_logits(self, ids: list[int]) -> Iterator[F32]:
        """Yield the logits [tokens, vocab] of each batch of a new sequence; call it inside `alone`."""
        slot = min(self._slots, key=lambda slot: (slot.text is not None, slot.used))
        self._release(slot)
        self._keep(slot, 0)
        for start in range(0, len(ids), self._loaded.batch):
            part = ids[start : start + self._loaded.batch]
            rows = [(token, start + place, slot.number, True) for place, token in enumerate(part)]
            yield self._decode(rows)
            slot.tokens += part

    def close(self) -> None:
        """Let texts that wait fail, when what is computed is done."""
        with self.alone():
            self._closed = True

    def _step(self) -> None:
        """Compute a batch for all that wait, with the lock released meanwhile."""
        asks, count = self._chosen()
        if not asks:  # until a text that has a sequence asks again, or rests
            self._turn.wait(PATIENCE[1])
            return
        parts = [_Part(ask, ask.slot, ask.missing[:count]) for ask in asks]
        rows = [row for part in parts for row in part.rows()]
        self._busy, start = True, time.monotonic()
        self._turn.release()
        try:
            found: F32 | Exception = self._decode(rows)
        except Exception as error:
            found = error
        finally:
            self._turn.acquire()
            self._busy, now = False, time.monotonic()
            self._deadline = now + min(max((now - start) / 2, PATIENCE[0]), PATIENCE[1])
            self._turn.notify_all()
        self._steps += 1
        if isinstance(found, Exception):
            self._fail(asks, found)
        else:
            self._advance(parts, iter(found))

    def _chosen(self) -> tuple[list[_Ask], int]:
        """The asks to compute for, and how many tokens of each."""
        for ask in self._asks:
            if ask.text.slot is None:
                self._place(ask)
        placed = [ask for ask in self._asks if ask.text.slot is not None]
        texts = [ask for ask in placed if len(ask.missing) == 1]
        prompts = [ask for ask in placed if len(ask.missing) > 1]
        self._decoded = bool(texts) and not (prompts and self._decoded)
        return (texts, 1) if self._decoded else (prompts[:1], self._loaded.batch)

    def _advance(self, parts: Sequence[_Part], logits: Iterator[F32]) -> None:
        for part in parts:
            part.slot.tokens += part.tokens
            part.slot.used = self._steps
            row, ask = next(logits) if part.ends else None, part.ask
            if ask not in self._asks:  # it was interrupted
                continue
            self._asks.remove(ask)
            if row is None:  # the next prompt's turn
                self._asks.append(ask)
                continue
            ask.logits, ask.text.asked = row, time.monotonic()
            ask.text.tokens += 1
            self._expected.add(ask.text)

    def _fail(self, asks: Sequence[_Ask], error: Exception) -> None:
        """Give up a batch; what llama.cpp holds after an error is not known."""
        self._llama.llama_memory_clear(self._memory(), True)
        for slot in self._slots:
            self._release(slot)
            slot.tokens.clear()
        self._asks = [ask for ask in self._asks if ask not in asks]
        for ask in asks:
            ask.error = error

    def _place(self, ask: _Ask) -> None:
        """Find a sequence for a text, with as much of its tokens as any has; else it waits."""
        asking = {each.text for each in self._asks}
        free = [slot for slot in self._slots if slot.text is None or (slot.text not in asking and slot.text.rests())]
        if not free:
            over = [slot for slot in self._slots if slot.text in asking and slot.text.tokens >= TURN]
            free = [max(over, key=lambda slot: slot.text.tokens if slot.text else 0)] if over else []
        if not free:
            return
        most = len(ask.ids) - 1  # the last is computed, for its logits
        shared = [min(_common(slot.tokens, ask.ids), most) for slot in self._slots]
        length = max(shared)
        source = self._slots[shared.index(length)]
        slot = self._taken(source, free, length)
        self._release(slot)
        if slot is not source and length - shared[slot.number] >= LEAST_COPIED:
            self._copy(source, slot)
        self._keep(slot, min(_common(slot.tokens, ask.ids), most))
        slot.text, ask.text.slot, ask.text.tokens = ask.text, slot, 0
        self._use = self._use.plus(len(slot.tokens), len(ask.ids) - len(slot.tokens))

    def _taken(self, source: _Slot, free: Sequence[_Slot], length: int) -> _Slot:
        """The sequence with the prefix if little else of it is lost, else the one that is not used for longest."""
        if source in free and 2 * length >= len(source.tokens):
            return source
        return min(free, key=lambda slot: (bool(slot.tokens), slot.used))

    def _release(self, slot: _Slot) -> None:
        if slot.text is not None:
            slot.text.slot = None
        slot.text = None

    def _copy(self, source: _Slot, slot: _Slot) -> None:
        """Share what a sequence holds; all of it, as llama.cpp demands where sequences have memory of their own."""
        self._keep(slot, 0)
        self._llama.llama_memory_seq_cp(self._memory(), source.number, slot.number, -1, -1)
        slot.tokens[:] = source.tokens

    def _keep(self, slot: _Slot, length: int) -> None:
        """Drop the keys and values of all but the first tokens; of all, where a model's states cannot be cut."""
        if length and length == len(slot.tokens):
            return
        if not length or not self._llama.llama_memory_seq_rm(self._memory(), slot.number, length, -1):
            self._llama.llama_memory_seq_rm(self._memory(), slot.number, -1, -1)
            length = 0
        del slot.tokens[length:]

    def _memory(self) -> Any:
        return self._llama.llama_get_memory(self._loaded.context)

    def _decode(self, rows: Sequence[tuple[int, int, int, bool]]) -> F32:
        """Compute tokens; returns the logits [outputs, vocab] of those rows that want them."""
        loaded = self._loaded
        with batch_of(rows) as batch:
            compute(loaded, loaded.context, batch)
        outputs = [number for number, (*_, output) in enumerate(rows) if output]
        found = np.empty((len(outputs), loaded.vocabulary), np.float32)
        for place, number in enumerate(outputs):
            pointer = self._llama.llama_get_logits_ith(loaded.context, number)
            found[place] = np.ctypeslib.as_array(pointer, (loaded.vocabulary,))
        return found


def compute(loaded: Loaded, context: Any, batch: Any) -> None:
    """Compute a batch.

    Raises:
        ResourceError: llama.cpp cannot.
        InvalidFileError: the file was truncated.
    """
    loaded.refuse_cut()
    code = llama().llama_decode(context, batch)
    if code:
        raise ResourceError(f"llama.cpp cannot compute this batch (code {code}); choose a shorter context")


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the length of the longest common prefix."""
    most = min(len(one), len(other))
    if one[:most] == other[:most]:  # comparing whole lists is quick
        return most
    return next(place for place in range(most) if one[place] != other[place])


__all__ = ["LEAST_COPIED", "PATIENCE", "TURN", "Sequences", "Text", "compute"]
