"""safetensors files: what is read equals what the safetensors library reads, and nothing odd gets through."""

from __future__ import annotations

import json
import os
import re
import string
import struct
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from safetensors.numpy import load_file, save_file

from edgekit.errors import InvalidFileError, MissingFileError
from edgekit.formats import safetensors
from edgekit.formats.safetensors import NAMES, Part, build_header, open_tensors, read_header
from edgekit.tensor import carrier

TWO = {
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "U8", "shape": [4], "data_offsets": [24, 28]},
}


def put(path: Path, header: object, data: bytes = bytes(28), length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def changed(name: str, **fields: Any) -> dict[str, Any]:
    return {**TWO, name: {**TWO[name], **fields}}


def refused(path: Path) -> str:
    with pytest.raises(InvalidFileError) as caught:
        open_tensors(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ").removesuffix("; fetch or convert it again")


def test_a_file_of_the_safetensors_library(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "f64": rng.standard_normal((2, 3)),
        "f32": rng.standard_normal((4, 5)).astype(np.float32),
        "f16": rng.standard_normal(7).astype(np.float16),
        "i8": rng.integers(-128, 128, (3, 2, 2)).astype(np.int8),
        "u32": rng.integers(0, 1 << 32, 3).astype(np.uint32),
        "i64": rng.integers(-9, 9, (2, 2)),
        "bool": np.array([True, False]),
        "scalar": np.array(4, np.float32),
        "empty": np.empty((0, 5), np.float32),
    }
    save_file(arrays, tmp_path / "m.safetensors", metadata={"format": "np"})
    tensors, metadata = open_tensors(tmp_path / "m.safetensors")
    assert metadata == {"format": "np"}
    assert tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (tensors[name].shape, tensors[name].dtype) == (array.shape, array.dtype.name), name
        np.testing.assert_array_equal(tensors[name].read(), array, strict=True, err_msg=name)


def test_small_floats_keep_their_bits(tmp_path: Path) -> None:
    types = (
        ml_dtypes.bfloat16,
        ml_dtypes.float8_e4m3fn,
        ml_dtypes.float8_e5m2,
        ml_dtypes.float8_e8m0fnu,
    )
    arrays = {np.dtype(t).name: np.array([[0.5, 1.0, 4.0]], np.float32).astype(t) for t in types}
    path = tmp_path / "m.safetensors"
    safetensors.write(path, arrays)
    tensors, _ = open_tensors(path)
    for name, array in arrays.items():
        assert tensors[name].dtype == name
        np.testing.assert_array_equal(tensors[name].read(), array.view(carrier(name)), strict=True)
        np.testing.assert_array_equal(tensors[name].float32(), array.astype(np.float32), strict=True)


def test_row_slices_of_any_shape(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    safetensors.write(tmp_path / "m.safetensors", {"x": array, "v": np.arange(5.0)})
    tensors, _ = open_tensors(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(tensors["x"].read_rows(1, 4), array.reshape(6, 4)[1:4], strict=True)
    np.testing.assert_array_equal(tensors["v"].read_rows(0, 1), np.arange(5.0)[None], strict=True)
    assert tensors["x"].read_rows(2, 2).shape == (0, 4)


def test_written_files_are_read_by_the_safetensors_library(tmp_path: Path) -> None:
    arrays = {
        "b": np.arange(3, dtype=np.uint8),
        "a": np.arange(6, dtype=np.float32).reshape(3, 2),
        "ünïcode": np.empty((0,), np.float16),
    }
    path = tmp_path / "m.safetensors"
    safetensors.write(path, arrays, {"note": "x"})
    for name, array in load_file(path).items():
        np.testing.assert_array_equal(array, arrays[name], strict=True)
    assert list(open_tensors(path)[0])[:2] == ["b", "a"]


def test_order_is_that_of_the_data_and_offsets_need_no_alignment(tmp_path: Path) -> None:
    header = {
        "late": {"dtype": "F32", "shape": [1], "data_offsets": [3, 7]},
        "__metadata__": {},
        "early": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
    }
    path = put(tmp_path / "m.safetensors", header, b"abc" + np.float32(1.5).tobytes())
    tensors, _ = open_tensors(path)
    assert list(tensors) == ["early", "late"]
    values = tensors["late"].read()
    assert values.flags.aligned
    assert values.tolist() == [1.5]


def test_an_empty_file_of_no_tensors(tmp_path: Path) -> None:
    assert open_tensors(put(tmp_path / "m.safetensors", {}, b""))[0] == {}


BAD_FILES: Mapping[str, tuple[bytes, str]] = {
    "empty": (b"", "0 bytes are too few for a safetensors file (at byte 0)"),
    "seven bytes": (bytes(7), "7 bytes are too few for a safetensors file (at byte 0)"),
    "no header": (
        bytes(8),
        "the header is no JSON object from '{' to '}' followed by spaces only (at byte 8)",
    ),
    "length beyond the file": (
        struct.pack("<Q", 100) + b"{}",
        "the header claims 100 bytes, the file has 2 after its length (at byte 0)",
    ),
    "length near 2**64": (
        b"\xff" * 8 + b"{}",
        "the header claims 18,446,744,073,709,551,615 bytes, the file has 2 after its length (at byte 0)",
    ),
    "leading space": (
        struct.pack("<Q", 3) + b" {}",
        "the header is no JSON object from '{' to '}' followed by spaces only (at byte 8)",
    ),
    "trailing newline": (
        struct.pack("<Q", 3) + b"{}\n",
        "the header is no JSON object from '{' to '}' followed by spaces only (at byte 8)",
    ),
    "byte order mark": (
        struct.pack("<Q", 5) + b"\xef\xbb\xbf{}",
        "the header is no JSON object from '{' to '}' followed by spaces only (at byte 8)",
    ),
    "not UTF-8": (struct.pack("<Q", 8) + b'{"\xff":{}}', "the header is not UTF-8 (at byte 10)"),
    "not JSON": (
        struct.pack("<Q", 6) + b'{"a":}',
        "the header is not JSON: Expecting value (at byte 13)",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files(tmp_path: Path, case: str) -> None:
    content, message = BAD_FILES[case]
    (tmp_path / "m.safetensors").write_bytes(content)
    assert refused(tmp_path / "m.safetensors") == message


KINDS = ", ".join(NAMES)
# @n stands for the n-th byte of the data.
BAD_HEADERS: Mapping[str, tuple[object, str]] = {
    "duplicate name": (b'{"a":1,"b":2,"a":3}', "the header: key 'a' comes twice (at byte 8)"),
    "duplicate field": (
        b'{"a":{"dtype":"U8","dtype":"F32"}}',
        "the header: key 'dtype' comes twice (at byte 8)",
    ),
    "deep nesting": (
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "the header is nested too deeply (at byte 8)",
    ),
    "NaN": (b'{"a":NaN}', "the header: NaN is not JSON (at byte 8)"),
    "lone surrogate": (b'{"\\ud800":{}}', "the header: key '\\ud800' is not Unicode text (at byte 8)"),
    "metadata is a list": (
        {**TWO, "__metadata__": []},
        "__metadata__ is no mapping of strings to strings (at byte 8)",
    ),
    "metadata holds a number": (
        {**TWO, "__metadata__": {"a": 1}},
        "__metadata__ is no mapping of strings to strings (at byte 8)",
    ),
    "entry is a list": ({"a": []}, "tensor 'a': wants exactly dtype, shape and data_offsets (at byte 8)"),
    "field missing": (
        {"a": {"dtype": "U8", "shape": [1]}},
        "tensor 'a': wants exactly dtype, shape and data_offsets (at byte 8)",
    ),
    "field too many": (
        changed("a", colour=1),
        "tensor 'a': wants exactly dtype, shape and data_offsets (at byte 8)",
    ),
    "unknown dtype": (changed("a", dtype="F33"), f"tensor 'a': dtype 'F33' is none of {KINDS} (at byte 8)"),
    "dtype is a list": (changed("a", dtype=["F32"]), f"tensor 'a': dtype ['F32'] is none of {KINDS} (at byte 8)"),
    "negative size": (changed("a", shape=[2, -3]), "tensor 'a': shape [2, -3] is no list of sizes (at byte 8)"),
    "size is a float": (changed("a", shape=[2, 3.0]), "tensor 'a': shape [2, 3.0] is no list of sizes (at byte 8)"),
    "size is a bool": (changed("a", shape=[True, 6]), "tensor 'a': shape [True, 6] is no list of sizes (at byte 8)"),
    "shape is a number": (changed("a", shape=6), "tensor 'a': shape 6 is no list of sizes (at byte 8)"),
    "huge sizes": (
        changed("a", shape=[1 << 40, 1 << 40, 0]),
        "tensor 'a': shape [1099511627776, 1099511627776, 0] is no list of sizes (at byte 8)",
    ),
    "offsets reversed": (
        changed("a", data_offsets=[24, 0]),
        "tensor 'a': data_offsets [24, 0] are no begin and end (at byte 8)",
    ),
    "three offsets": (
        changed("a", data_offsets=[0, 24, 24]),
        "tensor 'a': data_offsets [0, 24, 24] are no begin and end (at byte 8)",
    ),
    "negative offset": (
        changed("a", data_offsets=[-1, 24]),
        "tensor 'a': data_offsets [-1, 24] are no begin and end (at byte 8)",
    ),
    "beyond the file": (
        changed("b", shape=[5], data_offsets=[24, 29]),
        "tensor 'b' ends at byte @29 of a file of @28 (at byte @24)",
    ),
    "too many bytes": (
        changed("a", shape=[2, 2]),
        "tensor 'a' has 24 bytes, F32 of shape [2, 2] takes 16 (at byte @0)",
    ),
    "overlap": (
        changed("b", shape=[5], data_offsets=[23, 28]),
        "tensor 'b' overlaps the tensor before it (at byte @23)",
    ),
    "hole at the start": (
        {"b": {"dtype": "U8", "shape": [27], "data_offsets": [1, 28]}},
        "tensor 'b' leaves a hole before it (at byte @1)",
    ),
    "hole between": (
        changed("b", shape=[3], data_offsets=[25, 28]),
        "tensor 'b' leaves a hole before it (at byte @25)",
    ),
    "bytes after the last": (
        changed("b", shape=[3], data_offsets=[24, 27]),
        "1 bytes after the last tensor belong to none (at byte @27)",
    ),
}


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_bad_headers(tmp_path: Path, case: str) -> None:
    header, message = BAD_HEADERS[case]
    path = put(tmp_path / "m.safetensors", header)
    start = path.stat().st_size - 28
    assert refused(path) == re.sub(r"@(\d+)", lambda match: str(start + int(match[1])), message)


def test_the_header_has_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", (32 << 20) + 1))
        file.truncate(64 << 20)
    assert refused(path) == "the header claims 33,554,433 bytes, at most 33,554,432 are read (at byte 0)"


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"m\.safetensors: cannot be read \(No such file"):
        read_header(tmp_path / "m.safetensors")


def test_a_file_cut_after_it_was_opened(tmp_path: Path) -> None:
    path = put(tmp_path / "m.safetensors", TWO)
    tensors, _ = open_tensors(path)
    os.truncate(path, path.stat().st_size - 10)
    with pytest.raises(InvalidFileError, match=re.escape(f"{path}: tensor 'a' is cut off (at byte ")):
        tensors["a"].read()


def test_threads_read_at_once(tmp_path: Path) -> None:
    array = np.random.default_rng(0).standard_normal((64, 1000))
    safetensors.write(tmp_path / "m.safetensors", {"x": array})
    tensor = open_tensors(tmp_path / "m.safetensors")[0]["x"]
    with ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(lambda row: tensor.read_rows(row, row + 1), list(range(64)) * 4))
    np.testing.assert_array_equal(np.concatenate(rows), np.tile(array, (4, 1)))


def test_reading_without_positioned_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "preadv", raising=False)
    array = np.arange(12.0).reshape(3, 4)
    safetensors.write(tmp_path / "m.safetensors", {"x": array})
    np.testing.assert_array_equal(open_tensors(tmp_path / "m.safetensors")[0]["x"].read(), array)


def test_a_header_of_a_given_length() -> None:
    parts = [Part("x", "float16", (2, 3)), Part("y", "bfloat16", ())]
    tight, padded = build_header(parts, {}), build_header(parts, {}, 1000)
    assert (len(tight) % 8, len(padded)) == (0, 1000)
    assert json.loads(tight[8:]) == json.loads(padded[8:])
    with pytest.raises(OverflowError, match=r"a header of \d+ bytes does not fit into 100"):
        build_header(parts, {}, 100)


names = st.text(string.printable, min_size=1, max_size=8).filter(lambda name: name != "__metadata__")
arrays = st.builds(
    lambda dtype, shape, seed: np.random.default_rng(seed).integers(0, 100, shape).astype(dtype),
    st.sampled_from(["float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "uint64"]),
    st.lists(st.integers(0, 4), max_size=4),
    st.integers(0, 99),
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(names, arrays, max_size=5))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, contents: dict[str, np.ndarray[Any, Any]]) -> None:
    path = tmp_path_factory.mktemp("st") / "m.safetensors"
    safetensors.write(path, contents)
    tensors, _ = open_tensors(path)
    assert tensors.keys() == contents.keys()
    for name, array in contents.items():
        np.testing.assert_array_equal(tensors[name].read(), array, strict=True)
        np.testing.assert_array_equal(load_file(path)[name], array, strict=True)


scalars = st.none() | st.booleans() | st.integers(-2, 1 << 65) | st.floats() | st.text(max_size=4)
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*NAMES, "F33"]) | json_values,
        "shape": st.lists(st.integers(-1, 1 << 63) | st.integers(0, 4), max_size=3) | json_values,
        "data_offsets": st.lists(st.integers(-1, 1 << 64) | st.integers(0, 30), min_size=2, max_size=2) | json_values,
    }
)
headers = st.dictionaries(st.text(max_size=3) | st.just("__metadata__"), entries | json_values, max_size=4)


@settings(max_examples=300, deadline=None)
@given(headers | st.just(TWO), st.binary(max_size=40), st.integers(-9, 9) | st.just(0))
def test_hostile_headers_are_refused_or_sound(
    tmp_path_factory: pytest.TempPathFactory, header: object, data: bytes, shift: int
) -> None:
    text = json.dumps(header).encode()
    path = tmp_path_factory.mktemp("st") / "m.safetensors"
    put(path, text, data, max(0, len(text) + shift))
    never_anything_but_typed(path)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_flipped_bytes_are_refused_or_sound(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = put(tmp_path_factory.mktemp("st") / "m.safetensors", TWO)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3), label="flips")):
        content[data.draw(st.integers(0, len(content) - 1), label="at")] = data.draw(st.integers(0, 255), label="to")
    cut = data.draw(st.integers(0, len(content)) | st.just(len(content)), label="cut")
    path.write_bytes(content[:cut])
    never_anything_but_typed(path)


def never_anything_but_typed(path: Path) -> None:
    try:
        tensors, _ = open_tensors(path)
    except InvalidFileError:
        return
    assert sum(tensor.nbytes for tensor in tensors.values()) < path.stat().st_size, "tensors lie in the file"
    for tensor in tensors.values():
        assert tensor.read().shape == tensor.shape
