"""Known-answer vectors: inputs, and the bytes that each framework itself made of them.

The corpus lies beside this file: ``inputs.json`` is shared, and every convention has a file of answers. All arrays
are base64 of little-endian bytes; every file carries the SHA-256 of its content. PROVENANCE.md says who gave the
answers. A backend in any language can be held to them without edgekit.

    >>> from edgekit.testing import vectors
    >>> import edgekit as ek
    >>> vectors.check(lambda x, importance=None: ek.encode(x, "ggml:Q4_0", importance=importance).parts, "ggml:Q4_0")
    1
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from edgekit.errors import InvalidFileError, UsageError
from edgekit.precision import Precision, find_precision
from edgekit.reference import Parts, reference
from edgekit.testing._explain import block_report, diagnose, minimise, same_parts
from edgekit.testing._kit import fail
from edgekit.testing._samples import LABELS, draw
from edgekit.typing import F32, Array

Encode = Callable[..., Mapping[str, Array]]
SCHEMA = 1
#: Where the stored corpus lies.
CORPUS = Path(__file__).parent
INPUTS = "inputs.json"

#: The rows of the shared input. What would overflow a float16 scale is left out: edgekit refuses it.
_ROWS = (
    "normal", "normal", "normal", "weights", "heavy tailed", "heavy tailed", "ties of halves", "ties of halves",
    "ties of quarters", "one-sided ties", "beside a half", "largest magnitude of either sign", "zeros of both signs",
    "sparse", "runs of zeros", "one value among zeros", "constant rows", "nearly constant", "subnormal",
    "scales below float16", "all positive", "all negative", "far below zero", "huge",
)  # fmt: skip


@attrs.frozen(eq=False)
class Answer:
    """One known answer.

    Attributes:
        precision: name of the number format.
        input: name of the input, for messages.
        x: rows [rows, cols], float32.
        importance: [cols] or None.
        parts: what the framework made of them.
        by: who that was, with its version.
    """

    precision: str
    input: str
    x: F32
    importance: F32 | None
    parts: Parts
    by: str


def inputs() -> dict[str, F32]:
    """The inputs of the corpus, drawn anew: the same on every machine.

    ``mixed`` [24, 256] has a row for everything that has made quantizers differ; ``plain`` [6, 256] is for
    formats with one scale for the whole tensor; ``ragged`` [5, 77] for those whose rows need not be whole blocks.
    """
    rows = [_row(label, number, 256) for number, label in enumerate(_ROWS)]
    plain = np.concatenate([draw("normal", 100, (4, 256)), draw("ties of halves", 101, (2, 256))])
    ragged = np.concatenate([draw(label, 102, (1, 77)) for label in ("normal", "sparse", "all negative")])
    squares = draw("normal", 103, (1, 256)) ** 2
    return {
        "mixed": np.concatenate(rows),
        "plain": plain,
        "ragged": np.concatenate([ragged, draw("ties of halves", 104, (2, 77))]),
        "importance": np.where(np.arange(256) % 11 == 0, np.float32(0), squares[0])[None],
    }


def _row(label: str, seed: int, cols: int) -> F32:
    if label == "huge":
        return draw("normal", seed, (1, cols)) * np.float32(3000)
    assert label in LABELS
    return draw(label, seed, (1, cols))


def questions(precision: Precision) -> list[tuple[str, str | None]]:
    """Which inputs a precision is asked, each with the importance or without."""
    if reference(precision).traits.needs_importance:
        return [("mixed", "importance")]
    asked: list[tuple[str, str | None]] = [("mixed" if precision.rowwise else "plain", None)]
    if not precision.rowwise and precision.granularity != "tensor":
        asked.insert(0, ("mixed", None))
    if not precision.whole_blocks:
        asked.append(("ragged", None))
    if getattr(_block_type(precision), "IMPORTANCE", "unused") != "unused":
        asked.append(("mixed", "importance"))
    return asked


def _block_type(precision: Precision) -> Any:
    return getattr(reference(precision), "TYPES", {}).get(precision.kind)


def answers(precision: str | Precision, encode: Encode, by: str) -> list[Answer]:
    """Ask an encoder all questions of a precision; it is called as ``encode(x, importance)``."""
    record, drawn = find_precision(precision), inputs()
    return [
        Answer(record.name, name, drawn[name], weights, dict(encode(drawn[name], weights)), by)
        for name, which in questions(record)
        for weights in [drawn[which][0] if which else None]
    ]


# Writing and reading.


def write(folder: Path, given: Iterable[Answer], provenance: Mapping[str, Any]) -> list[Path]:
    """Write ``inputs.json`` and one file of answers for each convention.

    Args:
        folder: made if it is not there.
        given: answers on `inputs`.
        provenance: who gave them, with which versions; no clock and no path, so that the bytes stay the same.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / INPUTS]
    _dump(written[0], {"inputs": {name: _array(x) for name, x in inputs().items()}})
    by_convention: dict[str, list[Answer]] = {}
    for answer in given:
        by_convention.setdefault(answer.precision.partition(":")[0], []).append(answer)
    for convention, some in sorted(by_convention.items()):
        path = folder / f"{convention}.json"
        _dump(path, {"convention": convention, "provenance": dict(provenance), "answers": list(map(_record, some))})
        written.append(path)
    return written


def _record(answer: Answer) -> dict[str, Any]:
    return {
        "precision": answer.precision,
        "input": answer.input,
        "importance": answer.importance is not None,
        "by": answer.by,
        "parts": {key: _array(part) for key, part in answer.parts.items()},
    }


def _array(array: Array) -> dict[str, Any]:
    little = np.ascontiguousarray(array)
    little = little.astype(little.dtype.newbyteorder("<"), copy=False) if little.dtype.kind in "iuf" else little
    data = base64.b64encode(little.tobytes()).decode("ascii")
    return {"dtype": array.dtype.name, "shape": list(array.shape), "data": data}


def _dump(path: Path, content: dict[str, Any]) -> None:
    body = {"schema": SCHEMA, **content}
    body["sha256"] = digest(body)
    path.write_text(json.dumps(body, indent=0, sort_keys=True) + "\n", "ascii")


def digest(content: Mapping[str, Any]) -> str:
    """SHA-256 of a file's content, its own ``sha256`` left out: canonical JSON, keys sorted, no spaces."""
    rest = {key: value for key, value in content.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode("ascii")).hexdigest()


@cache
def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text("ascii"))
        stated, schema = content["sha256"], content["schema"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidFileError(f"{path}: no file of known answers ({error}); get it again") from error
    if schema != SCHEMA:
        raise InvalidFileError(f"{path}: schema {schema}, this edgekit reads {SCHEMA}")
    if stated != digest(content):
        raise InvalidFileError(f"{path}: its content is not what its SHA-256 says; get it again")
    return content


def _values(record: Mapping[str, Any]) -> Array:
    dtype = np.dtype(record["dtype"]).newbyteorder("<")
    values = np.frombuffer(base64.b64decode(record["data"], validate=True), dtype).reshape(record["shape"])
    return values.astype(dtype.newbyteorder("="), copy=True)


def load(precision: str | None = None, folder: Path = CORPUS) -> list[Answer]:
    """The stored answers: all, or those of one precision (by its full name).

    Raises:
        InvalidFileError: a file is missing, empty, damaged, or not what its SHA-256 says.
    """
    shared = {name: _values(record) for name, record in _read(folder / INPUTS)["inputs"].items()}
    vectors = []
    for path in sorted(folder.glob("*.json")):
        if path.name != INPUTS:
            records = _read(path)["answers"]
            vectors += [_answer(r, shared) for r in records if precision in (None, r["precision"])]
    if not vectors and precision is None:
        raise InvalidFileError(f"{folder}: no known answers here; an empty corpus proves nothing")
    return vectors


def _answer(record: Mapping[str, Any], shared: Mapping[str, F32]) -> Answer:
    parts = {key: _values(part) for key, part in record["parts"].items()}
    importance = shared["importance"][0] if record["importance"] else None
    return Answer(record["precision"], record["input"], shared[record["input"]], importance, parts, record["by"])


@cache
def names(folder: Path = CORPUS) -> tuple[str, ...]:
    """The precisions that have stored answers."""
    files = [path for path in sorted(folder.glob("*.json")) if path.name != INPUTS]
    return tuple(dict.fromkeys(record["precision"] for path in files for record in _read(path)["answers"]))


def check(encode: Encode, precision: str | Precision, folder: Path = CORPUS) -> int:
    """Hold an encoder to the stored answers of a precision, byte for byte.

    Args:
        encode: called as ``encode(x, importance)``; importance is None or [cols].
        precision: its name.
        folder: the corpus; the stored one by default.

    Returns:
        How many answers there were.

    Raises:
        UsageError: there are no answers for that precision.
        CheckFailure: an answer differs; shows the smallest block, expected and actual codes.
    """
    record = find_precision(precision)
    known = load(record.name, folder)
    if not known:
        raise UsageError(f"no known answers for {record.name}; `edgekit vectors {record.name} --out DIR` writes some")
    for answer in known:
        given = dict(encode(answer.x.copy(), None if answer.importance is None else answer.importance.copy()))
        if not same_parts(answer.parts, given):
            _report(encode, record, answer, given)
    return len(known)


def _report(encode: Encode, precision: Precision, answer: Answer, given: Parts) -> None:
    def expected(x: F32) -> Parts:
        return reference(precision).encode(x, precision, _weights(answer, x))

    def differs(x: F32) -> bool:
        return not same_parts(expected(x), dict(encode(x, _weights(answer, x))))

    how = diagnose(answer.parts, given)
    small = minimise(answer.x, precision, differs)
    report = ""
    if differs(small):
        report = "\n" + block_report(small, expected(small), dict(encode(small, _weights(answer, small))))
    weighed = " with importance" if answer.importance is not None else ""
    fail(f"the known answer of {answer.by} on input {answer.input!r}{weighed} differs: {how}{report}")


def _weights(answer: Answer, x: F32) -> F32 | None:
    return None if answer.importance is None else answer.importance[: x.shape[1]]


__all__ = [
    "CORPUS",
    "INPUTS",
    "SCHEMA",
    "Answer",
    "Encode",
    "answers",
    "check",
    "digest",
    "inputs",
    "load",
    "names",
    "questions",
    "write",
]
