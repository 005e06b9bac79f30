"""Samples of a model's inputs, for calibration and measurements; they are checked before anything runs.

A sample holds the inputs of one call of the model: a mapping from names to arrays, a sequence of arrays in the order of
the inputs, or a single array if there is one input. Samples come from any iterable, from an .npz file (one array per
input, whose first dimension is the samples), or from a text, which is tokenized with the model's tokenizer.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from edgekit.artifact import Artifact
from edgekit.errors import InvalidFileError, MissingFileError, NonFiniteError, ShapeError, UsageError
from edgekit.evaluation.language import tokens_of
from edgekit.typing import Array

Feed = dict[str, Array]
#: The kinds of samples that `read` accepts.
Samples = Iterable[Any] | str | os.PathLike[str]

#: Default number of tokens in a window of a text.
CONTEXT = 128


@attrs.frozen
class Input:
    """One input of a model.

    Attributes:
        name: its name in samples.
        shape: its shape, with None for a dimension of any size.
        dtype: numpy's name of its dtype.
    """

    name: str
    shape: tuple[int | None, ...] | None
    dtype: str

    def __str__(self) -> str:
        if self.shape is None:
            return f"{self.name} {self.dtype}"
        return f"{self.name} {self.dtype} [{', '.join('?' if n is None else str(n) for n in self.shape)}]"


def read(
    given: Samples, inputs: Sequence[Input], *, most: int, source: Artifact | None = None, context: int = CONTEXT
) -> list[Feed]:
    """Return at most `most` samples, checked against the model's inputs.

    Args:
        given: the samples; see the module's docstring.
        inputs: the model's inputs.
        most: largest number of samples; no more are requested from an iterable.
        source: the model whose tokenizer is used for a text.
        context: number of tokens in a sample from a text.

    Raises:
        UsageError: there are no samples, they have other inputs than the model, or a text has no tokenizer.
        ShapeError: an array has a shape that the input does not take.
        NonFiniteError: an array holds a NaN or an infinity; names the sample, the input and the index.
        MissingFileError: the file does not exist.
        InvalidFileError: the file is malformed.
    """
    if most < 1:
        raise UsageError(f"subset_size={most}; take at least one sample")
    samples = _from_file(Path(given), inputs, source, context) if isinstance(given, str | os.PathLike) else given
    if not isinstance(samples, Iterable) or isinstance(samples, Mapping):
        raise UsageError(f"calibration samples of type {type(samples).__name__}; give an iterable of samples")
    checked = [check(sample, inputs, number) for number, sample in enumerate(itertools.islice(iter(samples), most))]
    if not checked:
        raise UsageError("the calibration set is empty; give at least one sample, better a hundred like the real input")
    return checked


def check(sample: Any, inputs: Sequence[Input], number: int, kind: str = "calibration") -> Feed:
    """Return a checked sample as a mapping from input names to arrays of the inputs' dtypes.

    Args:
        sample: the sample; see the module's docstring.
        inputs: the model's inputs.
        number: index of the sample, for messages.
        kind: kind of the set that it belongs to, for messages.

    Raises:
        UsageError: the sample has other inputs than the model.
        ShapeError: an array has a shape that the input does not take.
        NonFiniteError: an array holds a NaN or an infinity.
    """
    where = f"{kind} sample {number}"
    return {each.name: _checked(value, each, where) for each, value in _paired(sample, inputs, where)}


def _paired(sample: Any, inputs: Sequence[Input], where: str) -> Iterator[tuple[Input, Any]]:
    expected = ", ".join(map(str, inputs))
    if isinstance(sample, Mapping):
        names = {each.name for each in inputs}
        if names != set(sample):
            came = ", ".join(map(str, sample)) or "none"
            raise UsageError(f"{where} has the inputs {came}; the model takes {expected}")
        yield from ((each, sample[each.name]) for each in inputs)
        return
    values = sample if isinstance(sample, list | tuple) else [sample]
    if len(values) != len(inputs):
        raise UsageError(f"{where} has {len(values)} arrays; the model takes {expected}")
    yield from zip(inputs, values, strict=True)


def _checked(value: Any, expected: Input, sample: str) -> Array:
    array, where = np.asarray(value), f"{sample}, input {expected.name}"
    fits = expected.shape is None or (
        len(expected.shape) == array.ndim
        and all(n is None or n == m for n, m in zip(expected.shape, array.shape, strict=True))
    )
    if not fits or array.size == 0:
        raise ShapeError(f"{where} has shape {list(array.shape)}; the model takes {expected}")
    _refuse_nonfinite(array, where)
    if not np.can_cast(array.dtype, expected.dtype, "same_kind") and not _whole(array, expected.dtype):
        raise UsageError(f"{where} holds {array.dtype}; the model takes {expected}")
    return np.ascontiguousarray(array, expected.dtype)


def _whole(array: Array, dtype: str) -> bool:
    """Return whether the integers of an array can be converted to a dtype without change."""
    return array.dtype.kind in "iu" and np.dtype(dtype).kind in "iuf" and bool((array.astype(dtype) == array).all())


def _refuse_nonfinite(array: Array, where: str) -> None:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        index = [int(i) for i in np.argwhere(~np.isfinite(array))[0]]
        raise NonFiniteError(f"{where} holds {array[tuple(index)]} at {index}; mend the data, or leave the sample out")


def _from_file(path: Path, inputs: Sequence[Input], source: Artifact | None, context: int) -> Iterable[Any]:
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file; calibrate with an .npz file or with a text")
    if path.suffix == ".npz":
        return _rows(arrays_of(path), inputs, path)
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidFileError(f"{path}: not UTF-8 at offset {error.start}; convert it to UTF-8") from error
    return windows(text, inputs, source, context)


def arrays_of(path: Path) -> dict[str, Array]:
    """Return the arrays of an .npz file; pickled objects are refused.

    Raises:
        InvalidFileError: the file is not an .npz file, or is damaged.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise InvalidFileError(f"{path}: no .npz file of arrays ({error}); write it with numpy.savez") from error
    except Exception as error:  # exceptions of zipfile and zlib
        raise InvalidFileError(f"{path}: damaged ({error}); write it again with numpy.savez") from error


def _rows(arrays: Mapping[str, Array], inputs: Sequence[Input], path: Path) -> Iterator[Feed]:
    """Yield the samples, each with a batch size of one."""
    if set(arrays) != {each.name for each in inputs}:
        came, expected = ", ".join(arrays) or "none", ", ".join(map(str, inputs))
        raise UsageError(f"{path} has the arrays {came}; the model takes {expected}")
    counts = {array.shape[0] if array.ndim else 0 for array in arrays.values()}
    if len(counts) != 1:
        raise ShapeError(f"{path}: its arrays count {sorted(counts)} samples; the first dimension must be the same")
    for number in range(counts.pop()):
        yield {name: array[number : number + 1] for name, array in arrays.items()}


def windows(text: str, inputs: Sequence[Input], source: Artifact | None, context: int) -> Iterator[Feed]:
    """Yield samples of a language model: windows of a text's tokens without overlap; an incomplete last one is dropped.

    Raises:
        UsageError: there is no tokenizer, `context` is out of range, the text is shorter than a window, or the model
            has inputs other than those of a language model.
    """
    if source is None or source.tokenizer is None:
        raise UsageError(
            "the model has no tokenizer that edgekit reads; calibrate with arrays: an .npz, or an iterable"
        )
    ids = np.asarray(tokens_of(source, text))
    if context < 1 or len(ids) < context:
        raise UsageError(
            f"the text has {len(ids)} tokens, and a window takes {context}; give more text, or a smaller context"
        )
    unknown = [each.name for each in inputs if each.name not in OF_TOKENS]
    if unknown:
        raise UsageError(f"the model has the input {unknown[0]}, which no text fills; calibrate with arrays")
    for start in range(0, len(ids) - context + 1, context):
        yield token_feed(ids[start : start + context], inputs)


def token_feed(ids: Array, inputs: Sequence[Input]) -> Feed:
    """Return a sample of a language model: all inputs for token ids [n]."""
    return {each.name: OF_TOKENS[each.name](ids).astype(each.dtype) for each in inputs}


#: Name of an input of language models -> its values for token ids [n].
OF_TOKENS: dict[str, Callable[[Array], Array]] = {
    "input_ids": lambda ids: ids[None],
    "attention_mask": lambda ids: np.ones((1, len(ids))),
    "token_type_ids": lambda ids: np.zeros((1, len(ids))),
    "position_ids": lambda ids: np.arange(len(ids))[None],
    "beam_idx": lambda ids: np.zeros(1),
}


__all__ = [
    "CONTEXT",
    "OF_TOKENS",
    "Feed",
    "Input",
    "Samples",
    "arrays_of",
    "check",
    "read",
    "token_feed",
    "windows",
]
