"""Computes several texts in one context of llama.cpp: each text is a sequence, and waiting texts share a batch.

A text requests the logits after its tokens in the thread that generates it. If no batch is being computed, that thread
computes one for all waiting texts: either the next token of every text, or the short prompts, or a part of a long one.
Prompts come first, so that batches of texts are full; but after as many of their tokens as a batch holds the texts have
a turn, so that a long prompt does not stop the others. A long prompt has its own batches, since its rows are enough to
compute each of them quickly.

The keys and values of a finished text are kept. A new text reuses the longest prefix that any sequence holds, or a copy
of it, and computes the rest. Texts with other LoRA adapters are computed in other batches and share no prefix.
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
from edgekit_llamacpp.model import Loaded, Lora, batch_of

#: Number of tokens of a text after which a waiting text may take its sequence; its contents must then be recomputed.
TURN = 256
#: Smallest number of tokens of a prefix to copy from another sequence; computing fewer is faster.
LEAST_COPIED = 16
#: Prompts of fewer tokens are computed together: the fewer rows a batch has, the longer each of them takes. Attention
#: over so few rows has one kernel, whatever their number; from 64 on llama.cpp takes another.
SHORT = 64
#: Seconds for which a step waits for the texts of the step before: as long as that took, within these limits. A text
#: that is late for the batch costs a batch of its own, which takes almost as long as one of all texts. Steps are longer
#: on a busy machine, and texts are as late: with at most 0.1 s there, a third of the batches lacked some of them.
PATIENCE = (0.005, 1.0)
#: Seconds after which a text that requests nothing may lose its sequence to one that waits for one.
REST = 0.1


@attrs.define(eq=False)
class Text:
    """A text that is being generated.

    Attributes:
        lora: the adapters to compute it with, by name.
        slot: its sequence; None while it waits for one.
        tokens: number of tokens computed since it got the sequence.
        thread: the thread that requested the last token.
        asked: the time at which that token was computed.
    """

    lora: Lora = ()
    slot: _Slot | None = None
    tokens: int = 0
    thread: int = 0
    asked: float = 0.0

    def rests(self) -> bool:
        """Whether nothing requests its next token: its thread is the calling one, or has been away for a while."""
        return self.thread == threading.get_ident() or time.monotonic() - self.asked > REST


@attrs.define(eq=False)
class _Slot:
    """A sequence of the context.

    Attributes:
        number: llama.cpp's number of the sequence.
        tokens: the token ids whose keys and values it holds.
        lora: the adapters that these were computed with.
        text: the text that uses it; None if that has ended.
        used: the step in which it was last computed.
    """

    number: int
    tokens: list[int] = attrs.field(factory=list)
    lora: Lora = ()
    text: Text | None = None
    used: int = 0


@attrs.define(eq=False)
class _Ask:
    """A text's request for the logits after its tokens, with the result or the error."""

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
    """The part of a text that a batch computes."""

    ask: _Ask
    slot: _Slot
    tokens: list[int]

    @property
    def ends(self) -> bool:
        """Whether it includes the text's last token, whose logits are requested."""
        return len(self.slot.tokens) >= len(self.ask.ids)

    def rows(self) -> Iterator[tuple[int, int, int, bool]]:
        """Yield token, position, sequence number, and whether the logits are requested, for each token."""
        start, last = len(self.slot.tokens), len(self.ask.ids) - 1
        for place, token in enumerate(self.tokens, start):
            yield token, place, self.slot.number, place == last


class Sequences:
    """The sequences of a model's context.

    Args:
        loaded: the model; `Options.sequences` is the number of sequences.
    """

    def __init__(self, loaded: Loaded) -> None:
        self._llama, self._loaded = llama(), loaded
        self._slots = [_Slot(number) for number in range(loaded.options.sequences)]
        self._turn = threading.Condition(threading.RLock())
        self._asks: list[_Ask] = []
        self._expected: set[Text] = set()
        self._busy, self._closed = False, False
        self._deadline, self._steps, self._prompted = 0.0, 0, 0
        self._lora: Lora = ()
        self._use = CacheUse()

    def cache_use(self) -> CacheUse:
        """Return how many prompt tokens were computed, and how many were reused from earlier texts."""
        return self._use

    def logits(self, text: Text, ids: list[int]) -> F32:
        """Return the logits after a text's tokens, float32 [vocab]; reuses keys and values that a sequence holds.

        Args:
            text: the text; the same object for each of its tokens.
            ids: its tokens so far, including the prompt.

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
        """Return the seconds to wait for the texts of the last step, so that they are computed in one batch again."""
        if all(text.thread == threading.get_ident() for text in self._expected):
            return 0.0
        left = self._deadline - time.monotonic()
        if left <= 0:
            self._expected.clear()
        return left

    def end(self, text: Text) -> None:
        """Release a text's sequence; its keys and values are kept for other texts."""
        with self._turn:
            self._expected.discard(text)
            if text.slot is not None:
                self._release(text.slot)
            self._turn.notify_all()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Prevent other threads from computing in the block."""
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

    def all_logits(self, ids: list[int], lora: Lora = ()) -> Iterator[F32]:
        """Yield the logits [tokens, vocab] of each batch of a new sequence; call it inside `alone`."""
        slot = min(self._slots, key=lambda slot: (slot.text is not None, slot.used))
        self._release(slot)
        self._keep(slot, 0)
        slot.lora = lora
        for start in range(0, len(ids), self._loaded.batch):
            part = ids[start : start + self._loaded.batch]
            rows = [(token, start + place, slot.number, True) for place, token in enumerate(part)]
            yield self._decode(rows, lora)
            slot.tokens += part

    def close(self) -> None:
        """Make waiting texts fail, after the present batch is computed."""
        with self.alone():
            self._closed = True

    def _step(self) -> None:
        """Compute a batch for the waiting texts; the lock is released during the computation."""
        asks, count = self._chosen()
        if not asks:  # until a text that has a sequence asks again, or rests
            self._turn.wait(REST)
            return
        # llama.cpp computes sequences together only where each has the number after the one before it.
        asks.sort(key=lambda ask: ask.slot.number)
        parts = [_Part(ask, ask.slot, ask.missing[:count]) for ask in asks]
        rows = [row for part in parts for row in part.rows()]
        self._busy, start = True, time.monotonic()
        self._turn.release()
        try:
            found: F32 | Exception = self._decode(rows, asks[0].text.lora)
        except Exception as error:
            found = error
        finally:
            self._turn.acquire()
            self._busy, now = False, time.monotonic()
            self._deadline = now + min(max(now - start, PATIENCE[0]), PATIENCE[1])
            self._turn.notify_all()
        self._steps += 1
        if isinstance(found, Exception):
            self._fail(asks, found)
        else:
            self._advance(parts, iter(found))

    def _chosen(self) -> tuple[list[_Ask], int]:
        """Return the requests to compute, and the number of tokens to compute of each."""
        for ask in self._asks:
            if ask.text.slot is None:
                self._place(ask)
        placed = [ask for ask in self._asks if ask.text.slot is not None]
        texts = [ask for ask in placed if len(ask.missing) == 1]
        prompts = [ask for ask in placed if len(ask.missing) > 1]
        if not texts or (prompts and self._prompted < self._loaded.batch):
            chosen = self._together(prompts)
            self._prompted += sum(min(len(ask.missing), self._loaded.batch) for ask in chosen)
            return chosen, self._loaded.batch
        self._prompted = 0
        texts = [ask for ask in texts if ask.text.lora == texts[0].text.lora]  # the first has waited longest
        return texts, 1

    def _together(self, prompts: list[_Ask]) -> list[_Ask]:
        """Return the first prompt, or all short ones with its adapters, up to a batch, if it is short."""
        alike = [ask for ask in prompts if len(ask.missing) < SHORT and ask.text.lora == prompts[0].text.lora]
        return alike[: max(1, self._loaded.batch // SHORT)] if alike[:1] == prompts[:1] else prompts[:1]

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
        """Make the requests of a batch fail, and clear all sequences: their state is undefined after an error."""
        self._llama.llama_memory_clear(self._memory(), True)
        for slot in self._slots:
            self._release(slot)
            slot.tokens.clear()
        self._asks = [ask for ask in self._asks if ask not in asks]
        for ask in asks:
            ask.error = error

    def _place(self, ask: _Ask) -> None:
        """Assign a sequence to a text, with the longest prefix that any sequence holds; if none is free, it waits."""
        asking = {each.text for each in self._asks}
        free = [slot for slot in self._slots if slot.text is None or (slot.text not in asking and slot.text.rests())]
        if not free:
            over = [slot for slot in self._slots if slot.text in asking and slot.text.tokens >= TURN]
            free = [max(over, key=lambda slot: slot.text.tokens if slot.text else 0)] if over else []
        if not free:
            return
        most = len(ask.ids) - 1  # the last is computed, for its logits
        shared = [min(_shared(slot, ask), most) for slot in self._slots]
        length = max(shared)
        source = self._slots[shared.index(length)]
        slot = self._taken(source, free, length)
        self._release(slot)
        if slot is not source and length - shared[slot.number] >= LEAST_COPIED:
            self._copy(source, slot)
        self._keep(slot, min(_shared(slot, ask), most))
        slot.lora = ask.text.lora
        slot.text, ask.text.slot, ask.text.tokens = ask.text, slot, 0
        self._use = self._use.plus(len(slot.tokens), len(ask.ids) - len(slot.tokens))

    def _taken(self, source: _Slot, free: Sequence[_Slot], length: int) -> _Slot:
        """Return the sequence with the prefix if little else in it is lost, else the least recently used free one."""
        if source in free and 2 * length >= len(source.tokens):
            return source
        return min(free, key=lambda slot: (bool(slot.tokens), slot.used))

    def _release(self, slot: _Slot) -> None:
        if slot.text is not None:
            slot.text.slot = None
        slot.text = None

    def _copy(self, source: _Slot, slot: _Slot) -> None:
        """Copy a sequence's keys and values; all of them, since llama.cpp requires it for separate sequence memory."""
        self._keep(slot, 0)
        self._llama.llama_memory_seq_cp(self._memory(), source.number, slot.number, -1, -1)
        slot.tokens[:], slot.lora = source.tokens, source.lora

    def _keep(self, slot: _Slot, length: int) -> None:
        """Drop the keys and values of all but the first `length` tokens; of all if the model's states cannot be cut."""
        if length and length == len(slot.tokens):
            return
        if not length or not self._llama.llama_memory_seq_rm(self._memory(), slot.number, length, -1):
            self._llama.llama_memory_seq_rm(self._memory(), slot.number, -1, -1)
            length = 0
        del slot.tokens[length:]

    def _memory(self) -> Any:
        return self._llama.llama_get_memory(self._loaded.context)

    def _decode(self, rows: Sequence[tuple[int, int, int, bool]], lora: Lora) -> F32:
        """Compute tokens, and return the logits of the rows that request them, float32 [outputs, vocab]."""
        loaded = self._loaded
        if lora != self._lora:
            loaded.adapt(loaded.context, lora)
            self._lora = lora
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
        ResourceError: llama.cpp fails.
        InvalidFileError: the file was truncated.
    """
    loaded.refuse_cut()
    code = llama().llama_decode(context, batch)
    if code:
        raise ResourceError(f"llama.cpp cannot compute this batch (code {code}); choose a shorter context")


def _shared(slot: _Slot, ask: _Ask) -> int:
    """Return the number of first tokens of a text that a sequence holds, computed with the same adapters."""
    return _common(slot.tokens, ask.ids) if slot.lora == ask.text.lora else 0


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the length of the longest common prefix."""
    most = min(len(one), len(other))
    if one[:most] == other[:most]:  # comparing whole lists is quick
        return most
    return next(place for place in range(most) if one[place] != other[place])


__all__ = ["LEAST_COPIED", "PATIENCE", "REST", "SHORT", "TURN", "Sequences", "Text", "compute"]
