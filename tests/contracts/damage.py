"""Seeded damage to files: what `fuzz.py` does to whole models, and `fuzz_readers.py` to every kind of file."""

from __future__ import annotations

import json
import random
import re
from typing import Any

#: Numbers at which lengths and offsets overflow.
EDGES = [
    *(0, 1, 2, 3, 7, 8, 31, 32, 64, 127, 128, 255, 256, 65535),
    *(2**n - k for n in (31, 32, 40, 63, 64) for k in (0, 1)),
]
#: Values that JSON may hold where something else is expected.
ODD: list[Any] = [
    *(None, True, False, 0, -1, 1, 3, 1.5, 1e308, 1e-320, 2**31, 2**53, 2**63, 10**30, 10**70, "", "x", "a" * 5000),
    *("../../etc/passwd", "\ud800", "\udce8", "\0", "x\0y", [], [1], {}, {"a": 1}, [[]], [[[[]]]], float("inf")),
    *("BPE", "Unigram", "ByteLevel", "llama", "float:F32", "ggml:Q4_0", float("nan"), [0] * 100, {"": ""}),
]
#: Keys under which a value turns up in the wrong place.
KEYS = ["x", "\ud800", "__metadata__", "model_type", "rope_scaling", "schema", "type", "vocab_size"]
#: Bytes that parsers stumble over.
SNIPPETS = [
    *(b"\\ud800", b"\\udc00\\ud800", b"\xff\xfe", b"\xed\xa0\x80", b"\0", b"\xef\xbb\xbf", "٣".encode(), "²".encode()),
    *(b"9" * 20, b"9" * 5000, b"-1", b"1e999", b"-1e999", b"NaN", b"Infinity", b"0x10", b"1_0", b"1e-999", b"-0"),
    *(b"[" * 2000, b"{" * 2000, b'{"a":' * 2000, b"<a>" * 100, b"<!DOCTYPE x>", b"<!--", b"]]>", b"&#x0;", b"&amp;"),
    *(b'encoding="utf-7"', b'encoding="x"', b'version="99"', b"../../x", b"a" * 5000),
    *(b'"', b",", b"}", b"]", b"\n", b":"),
]


def damaged(rng: random.Random, name: str, data: bytes, reaches: tuple[int, ...] = ()) -> bytes:
    """A file's content with something in it changed; `reaches` as for `damaged_bytes`."""
    share = rng.random()
    if name.endswith(".json") and share < 0.6:
        return dump(damaged_json(rng, load(data)))
    if name.endswith(".safetensors") and share < 0.6:
        stop = 8 + int.from_bytes(data[:8], "little")
        header = dump(damaged_json(rng, load(data[8:stop])))
        return len(header).to_bytes(8, "little") + header + data[stop:]
    if name.endswith((".xml", ".json", ".txt")) and share < 0.85:
        return damaged_text(rng, data)
    return damaged_bytes(rng, data, reaches)


def load(data: bytes) -> Any:
    """JSON, or an empty object where it is damaged already."""
    try:
        return json.loads(data)
    except ValueError:
        return {}


def dump(value: Any) -> bytes:
    """JSON as bytes, halves of surrogate pairs included."""
    return json.dumps(value).encode("utf-8", "surrogatepass")


def damaged_json(rng: random.Random, value: Any) -> Any:
    """The value with something in it changed, taken away or put elsewhere."""
    if not (isinstance(value, dict | list) and value) or rng.random() < 0.15:
        if type(value) in (int, float) and rng.random() < 0.5:
            return rng.choice([value + 1, value - 1, value * 2, -value, value * 1000, 0])
        return rng.choice(ODD)
    where = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
    changed = value.copy()
    if rng.random() < 0.15:
        del changed[where]
    elif isinstance(changed, dict) and rng.random() < 0.1:
        changed[rng.choice(KEYS)] = value[where]
    else:
        changed[where] = damaged_json(rng, value[where])
    return changed


def damaged_text(rng: random.Random, data: bytes) -> bytes:
    """A word or a number replaced, doubled, or taken out."""
    for _ in range(rng.choice([1, 1, 2])):
        words = [match.span() for match in re.finditer(rb"[A-Za-z_]+|[0-9]+|[^\sA-Za-z0-9_]", data)] or [(0, 0)]
        start, stop = rng.choice(words)
        other = rng.choice(words)
        new = rng.choice([b"", data[start:stop] * 2, data[slice(*other)], rng.choice(SNIPPETS), rng.choice(SNIPPETS)])
        data = data[:start] + new + data[stop:]
    return data


def damaged_bytes(rng: random.Random, data: bytes, reaches: tuple[int, ...] = ()) -> bytes:
    """Bits flipped, numbers replaced, pieces taken out, put in or copied, the end cut.

    Args:
        reaches: how far from the beginning; one is drawn for each change. Empty: anywhere.
    """
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 3, 8])):
        at = rng.randrange(min([len(out), *([rng.choice(reaches)] if reaches else [])]) or 1)
        size = rng.choice([1, 4, 8, 32])
        match rng.randrange(8):
            case 0 if out:
                out[min(at, len(out) - 1)] ^= 1 << rng.randrange(8)
            case 1:
                out[at : at + 8] = (rng.choice(EDGES) % 2**64).to_bytes(8, "little")
            case 2:
                out[at : at + 4] = (rng.choice(EDGES) % 2**32).to_bytes(4, "little")
            case 3:
                del out[at : at + size]
            case 4:
                out[at:at] = rng.randbytes(size)
            case 5:
                start = rng.randrange(len(out) or 1)
                out[at : at + size] = out[start : start + size]
            case 6:
                out[at:at] = rng.choice(SNIPPETS)
            case 7 if rng.random() < 0.3:
                del out[rng.randrange(len(out) or 1) :]
    return bytes(out)
