"""Training examples from local JSONL files: texts, chats, and prompts with completions; one JSON object a line.

    {"text": "Once upon a time …"}
    {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}
    {"prompt": "…", "completion": "…"}

A folder holds ``train.jsonl`` and, for the validation loss, ``valid.jsonl``; a single file is training data only. Chats
and completions are rendered with the model's chat template; if it has none, the completion is appended to the prompt.
If prompts are masked, only tokens after the last prompt count in the loss. Files are untrusted: a malformed line is an
error that names its number, raised before anything is trained.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from edgekit.artifact import Artifact
from edgekit.errors import EdgekitError, InvalidFileError, MissingFileError, UsageError
from edgekit.files.foreign import shown, strict_json
from edgekit.runtime import chat
from edgekit.tokenizer import Tokenizer
from edgekit.typing import F32, I64

TRAIN, VALID = "train.jsonl", "valid.jsonl"
#: Largest number of bytes in a line, and of lines in a file.
LINE_LIMIT, LINES_LIMIT = 16 << 20, 1 << 24
_KINDS = '{"text": …}, {"messages": […]} or {"prompt": …, "completion": …}'
#: Batches are padded to a multiple of this length, so that few shapes have to be compiled.
PAD = 32


@attrs.frozen
class Example:
    """A tokenized example.

    Attributes:
        ids: the token ids, at most the requested number.
        offset: index of the first id that counts in the loss; at least 1, as the first id is not predicted.
    """

    ids: tuple[int, ...]
    offset: int


@attrs.frozen
class Examples:
    """The examples of a file, in its order.

    Attributes:
        items: the examples; at least one.
        cut: number of examples that were longer than requested and were truncated.
        digest: SHA-256 (hex) of all ids and offsets.
    """

    items: tuple[Example, ...]
    cut: int
    digest: str

    @property
    def tokens(self) -> int:
        """The number of token ids in all examples."""
        return sum(len(example.ids) for example in self.items)


@attrs.frozen(eq=False)
class Batch:
    """A batch of examples, padded to one length.

    Attributes:
        ids: token ids [examples, length].
        weights: [examples, length - 1]; 1 where the next id counts in the loss, else 0.
    """

    ids: I64
    weights: F32


def files_of(data: Path) -> tuple[Path, Path | None]:
    """Return the training file of a folder, or the file itself, and the validation file or None.

    Raises:
        MissingFileError: there is no training file.
    """
    if data.is_file():
        return data, None
    train, valid = data / TRAIN, data / VALID
    if not train.is_file():
        raise MissingFileError(f"{train}: no such file; a folder of training data has {TRAIN}, and may have {VALID}")
    return train, valid if valid.is_file() else None


def read_examples(path: Path, artifact: Artifact, length: int, *, mask_prompts: bool = False) -> Examples:
    """Read and tokenize a file of examples.

    Args:
        path: the JSONL file.
        artifact: the model whose tokenizer and chat template are used.
        length: the largest number of tokens in an example; longer ones are truncated.
        mask_prompts: whether only completions and last answers count in the loss.

    Raises:
        InvalidFileError: the file is empty, or a line is malformed; the message gives its number.
        MissingFileError: the file cannot be read.
        UsageError: the model has no tokenizer, or prompts are to be masked and a line is a plain text.
    """
    tokenizer = artifact.tokenizer
    if tokenizer is None:
        raise UsageError(chat.no_tokenizer(artifact.path))
    reader = _Reader(artifact, tokenizer, mask_prompts)
    found, cut = [], 0
    for number, row in _rows(path):
        where = f"{path}: line {number}"
        try:
            ids, offset = reader.tokenized(row, where)
        except (InvalidFileError, UsageError):
            raise
        except EdgekitError as error:
            raise InvalidFileError(f"{where}: {error}") from error
        if len(ids) < 2:
            raise InvalidFileError(f"{where}: it has {len(ids)} tokens; there is nothing to learn from less than 2")
        cut += len(ids) > length
        if offset < min(len(ids), length):  # else truncation leaves only the masked prompt
            found.append(Example(tuple(ids[:length]), max(offset, 1)))
    if not found:
        what = f"every example's prompt takes {length} tokens or more" if cut else "it holds no examples"
        raise InvalidFileError(f"{path}: {what}; write one JSON object a line: {_KINDS}")
    return Examples(tuple(found), cut, _digest(found))


def _digest(examples: Sequence[Example]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        digest.update(np.array([example.offset, len(example.ids), *example.ids], "<i8").tobytes())
    return digest.hexdigest()


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield the number and the JSON object of every line that is not blank."""
    try:
        with path.open("rb") as opened:
            for number in range(1, LINES_LIMIT):
                line = opened.readline(LINE_LIMIT + 1)
                if not line:
                    return
                if len(line) > LINE_LIMIT:
                    raise InvalidFileError(f"{path}: line {number}: longer than {LINE_LIMIT:,} bytes")
                if line.strip():
                    yield number, _row(line, path, number)
    except OSError as error:
        raise MissingFileError(f"{path}: cannot be read ({error.strerror}); give a JSONL file") from error


def _row(line: bytes, path: Path, number: int) -> Mapping[str, Any]:
    try:
        row = strict_json(line.strip(), path, f"line {number}")
    except InvalidFileError as error:
        raise InvalidFileError(
            f"{path}: line {number}: it is not JSON; write one JSON object a line: {_KINDS}"
        ) from error
    if not isinstance(row, dict):
        raise InvalidFileError(f"{path}: line {number}: it is {shown(row)}, no JSON object; write {_KINDS}")
    return row


@attrs.frozen
class _Reader:
    """Converts JSON rows to token ids with a model's tokenizer and chat template."""

    artifact: Artifact
    tokenizer: Tokenizer
    mask_prompts: bool

    def tokenized(self, row: Mapping[str, Any], where: str) -> tuple[list[int], int]:
        """Return the token ids of a row, and the index of the first one that counts in the loss."""
        if "messages" in row:
            return self._chat(row["messages"], where)
        if "prompt" in row and "completion" in row:
            prompt, completion = _text(row, "prompt", where), _text(row, "completion", where)
            if not chat.has_template(self.artifact):
                return self._continued(prompt, completion)
            turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
            return self._chat(turns, where)
        if "text" not in row:
            raise InvalidFileError(f"{where}: it has the keys {shown(sorted(row))}; write {_KINDS}")
        if self.mask_prompts:
            raise UsageError(
                f"{where}: a plain text has no prompt to mask; write chats or completions, or mask nothing"
            )
        return self._ended(self.tokenizer.encode(_text(row, "text", where))), 0

    def _continued(self, prompt: str, completion: str) -> tuple[list[int], int]:
        before = self._unended(self.tokenizer.encode(prompt))
        after = self._unended(self.tokenizer.encode(completion, add_special=False))
        return self._ended([*before, *after]), len(before) if self.mask_prompts else 0

    def _chat(self, messages: Any, where: str) -> tuple[list[int], int]:
        if not isinstance(messages, list) or not messages:
            raise InvalidFileError(f"{where}: messages is {shown(messages)}; write a list of messages")
        try:
            whole = self._cut(self._rendered(messages, prompt=False))
            if not self.mask_prompts:
                return whole, 0
            answers = messages[-1].get("role") == "assistant"
            prompt = self._cut(self._rendered(messages[:-1], prompt=answers)) if len(messages) > 1 else []
        except UsageError as error:
            raise InvalidFileError(f"{where}: {error}") from error
        if whole[: len(prompt)] != prompt:  # a token spans the end of the prompt: count from where the two differ
            pairs = zip(whole, prompt, strict=False)
            return whole, next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(whole), len(prompt)))
        return whole, len(prompt)

    def _rendered(self, messages: Sequence[Mapping[str, Any]], *, prompt: bool) -> str:
        special = chat.special_tokens(self.tokenizer)
        return chat.render(chat.template_of(self.artifact), messages, **special, add_generation_prompt=prompt)

    def _cut(self, text: str) -> list[int]:
        """Return the token ids of a rendered conversation, tokenized as by `edgekit.runtime.TextRuntime.encode`."""
        first = chat.special_tokens(self.tokenizer).get("bos_token")
        return self._unended(self.tokenizer.encode(text, add_special=not (first and text.startswith(first))))

    def _unended(self, ids: list[int]) -> list[int]:
        """Return the ids without the end token that some tokenizers append to every text."""
        ends = self.tokenizer.add_eos and ids[-1:] == [self.tokenizer.eos]
        return ids[:-1] if ends else ids

    def _ended(self, ids: list[int]) -> list[int]:
        eos = self.tokenizer.eos
        return ids if eos is None or ids[-1:] == [eos] else [*ids, eos]


def _text(row: Mapping[str, Any], key: str, where: str) -> str:
    value = row[key]
    if not isinstance(value, str) or not value:
        raise InvalidFileError(f"{where}: {key} is {shown(value)}; write a text that is not empty")
    return value


def batches(examples: Examples, size: int) -> list[list[Example]]:
    """Return the examples sorted by length, in batches of `size`; the last may be smaller."""
    order = sorted(range(len(examples.items)), key=lambda i: (len(examples.items[i].ids), i))
    return [[examples.items[i] for i in order[start : start + size]] for start in range(0, len(order), size)]


def padded(examples: Sequence[Example]) -> Batch:
    """Return a batch of examples, padded with zeros that do not count in the loss."""
    longest = max(len(example.ids) for example in examples)
    length = 1 + PAD * -(-(longest - 1) // PAD)
    ids = np.zeros((len(examples), length), np.int64)
    weights = np.zeros((len(examples), length - 1), np.float32)
    for row, example in enumerate(examples):
        ids[row, : len(example.ids)] = example.ids
        weights[row, example.offset - 1 : len(example.ids) - 1] = 1
    return Batch(ids, weights)


def order_of(count: int, seed: int) -> Callable[[int], int]:
    """Return a function from a step, counted from 0, to the index of the batch that it trains.

    Each of the `count` batches is trained once per epoch; every epoch has its own order. The order depends only on the
    seed and the step, so that a resumed run trains the same batches.
    """
    rounds: dict[int, list[int]] = {}

    def at(step: int) -> int:
        number = step // count
        if number not in rounds:
            rounds.clear()
            rounds[number] = np.random.default_rng([seed, number]).permutation(count).tolist()
        return rounds[number][step % count]

    return at


__all__ = [
    "TRAIN",
    "VALID",
    "Batch",
    "Example",
    "Examples",
    "batches",
    "files_of",
    "order_of",
    "padded",
    "read_examples",
]
