"""The reader against gguf-py's writer, and against files that want to hurt."""

from __future__ import annotations

import contextlib
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.errors import InvalidFileError, MissingFileError, UnsupportedModelError
from edgekit.tensor import EncodedTensor, Tensor
from edgekit_gguf.format import GgufFormat
from edgekit_gguf.metadata import Value
from edgekit_gguf.reader import MAX_NUMBERS, MAX_STRINGS, read
from edgekit_gguf.types import BY_NAME, FILE_TYPES, TENSOR_TYPES, ValueType

GGUF = GgufFormat()
#: Kinds that gguf-py decodes.
DECODED = [t.name for t in gguf.GGMLQuantizationType if t.name not in ("Q8_1", "Q8_K", "Q1_0")]


def test_tables_are_gguf_pys():
    sizes = {t.name: gguf.GGML_QUANT_SIZES[t] for t in gguf.GGMLQuantizationType if t.name not in ("Q8_1", "Q8_K")}
    ours = {t.name: (t.block, t.size) for t in TENSOR_TYPES.values() if t.name != "Q2_0"}
    assert ours == sizes
    assert {t.name: t.id for t in TENSOR_TYPES.values() if t.name in sizes} == {
        name: gguf.GGMLQuantizationType[name] for name in sizes
    }
    assert {v.name: v.value for v in ValueType} == {v.name: v.value for v in gguf.GGUFValueType}
    theirs = {t.name.removeprefix("MOSTLY_").removeprefix("ALL_"): t.value for t in gguf.LlamaFileType}
    assert {name: n for name, n in FILE_TYPES.items() if name != "Q2_0"} == {
        name: n for name, n in theirs.items() if name != "GUESSED"
    }


def write_with_gguf_py(path: Path, tensors: dict[str, tuple[np.ndarray, str]]) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    for name, (data, kind) in tensors.items():
        if kind in ("I8", "I16", "I32", "I64", "F64", "F32", "F16"):
            writer.add_tensor(name, data)
        else:
            writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_file_that_shrinks_after_it_was_opened_is_an_error(tmp_path: Path):
    """A mapped one would end the process with SIGBUS."""
    path = write_with_gguf_py(tmp_path / "a.gguf", {"a.weight": (np.ones((64, 4096), np.float32), "F32")})
    tensor = GGUF.open(path).tensors["a.weight"]
    assert isinstance(tensor, Tensor)
    with path.open("r+b") as file:
        file.truncate(4096)
    with pytest.raises(InvalidFileError, match=r"tensor 'a\.weight' is cut off \(at byte 4,096\)"):
        tensor.read()


@pytest.mark.parametrize("kind", DECODED)
def test_every_type_that_gguf_py_decodes(kind: str, tmp_path: Path):
    rng = np.random.default_rng(3)
    stored = BY_NAME[kind]
    rows = rng.integers(0, 256, (3, 2 * stored.size), np.uint8)
    if stored.dtype and stored.dtype != "bfloat16":
        rows = rows.view(stored.dtype)
    path = write_with_gguf_py(tmp_path / "one.gguf", {"x": (rows, kind), "y": (rows, kind)})
    tensor = read(path).tensors()["y"]
    assert tensor.shape == (3, 2 * stored.block)
    assert tensor.nbytes == 6 * stored.size
    if stored.dtype:
        assert isinstance(tensor, Tensor)
        assert tensor.dtype == stored.dtype
        assert tensor.read().tobytes() == rows.tobytes()
        return
    assert isinstance(tensor, EncodedTensor)
    assert tensor.precision.name == f"ggml:{kind}"
    assert tensor.precision.bits_per_weight == stored.bits_per_weight
    assert tensor.read().parts["blocks"].tobytes() == rows.tobytes()
    with np.errstate(all="ignore"):
        expected = gguf.dequantize(rows, gguf.GGMLQuantizationType[kind])
    np.testing.assert_array_equal(tensor.float32(), expected)
    np.testing.assert_array_equal(tensor.float32(1, 2), expected[1:2])


def test_all_metadata_that_gguf_py_writes(tmp_path: Path):
    writer = gguf.GGUFWriter(tmp_path / "meta.gguf", "llama")
    writer.add_uint8("a.u8", 200)
    writer.add_int8("a.i8", -7)
    writer.add_uint16("a.u16", 60000)
    writer.add_int16("a.i16", -30000)
    writer.add_uint32("a.u32", 4_000_000_000)
    writer.add_int32("a.i32", -2_000_000_000)
    writer.add_uint64("a.u64", 1 << 63)
    writer.add_int64("a.i64", -(1 << 62))
    writer.add_float32("a.f32", 0.1)
    writer.add_float64("a.f64", 0.1)
    writer.add_bool("a.yes", True)
    writer.add_string("a.text", "κείμενο")
    writer.add_array("a.texts", ["", "b", "▁c"])
    writer.add_array("a.numbers", [1, -2, 3])
    writer.add_array("a.floats", [0.5, -0.25])
    writer.add_array("a.bools", [True, False])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    metadata = read(tmp_path / "meta.gguf").metadata
    assert dict(metadata) == {
        "general.architecture": "llama",
        "a.u8": 200,
        "a.i8": -7,
        "a.u16": 60000,
        "a.i16": -30000,
        "a.u32": 4_000_000_000,
        "a.i32": -2_000_000_000,
        "a.u64": 1 << 63,
        "a.i64": -(1 << 62),
        "a.f32": float(np.float32(0.1)),
        "a.f64": 0.1,
        "a.yes": True,
        "a.text": "κείμενο",
        "a.texts": ("", "b", "▁c"),
        "a.numbers": (1, -2, 3),
        "a.floats": (0.5, -0.25),
        "a.bools": (True, False),
    }
    assert metadata.typed["a.u16"] == Value(ValueType.UINT16, 60000)
    assert metadata.typed["a.texts"] == Value(ValueType.ARRAY, ("", "b", "▁c"), ValueType.STRING)


def test_nested_arrays_and_strings_that_are_not_utf8(builder, tmp_path: Path):
    inner = struct.pack("<IQ", ValueType.UINT8, 2) + b"\x01\x02"
    nested = struct.pack("<IQ", ValueType.ARRAY, 2) + inner + inner
    path = (
        builder()
        .pair("nested", ValueType.ARRAY, nested)
        .pair("odd", ValueType.STRING, builder.string(b"\xff\xfe"))
        .write(tmp_path / "odd.gguf")
    )
    metadata = read(path).metadata
    assert metadata["nested"] == ((1, 2), (1, 2))
    assert metadata["odd"] == "\udcff\udcfe"


def test_version_2_and_custom_alignment(builder, tmp_path: Path):
    values = np.arange(4, dtype=np.float32)
    file = builder(version=2, alignment=8, data=values.tobytes())
    file.pair("general.alignment", ValueType.UINT32, struct.pack("<I", 8)).tensor("x", [2, 2])
    opened = read(file.write(tmp_path / "two.gguf"))
    assert opened.version == 2
    assert opened.infos[0].start % 32 == 8
    np.testing.assert_array_equal(opened.tensors()["x"].read(), values.reshape(2, 2))


def test_a_scalar(builder, tmp_path: Path):
    path = builder(data=np.float32(3).tobytes() + bytes(28)).tensor("x", []).write(tmp_path / "scalar.gguf")
    tensor = read(path).tensors()["x"]
    assert tensor.shape == ()
    assert tensor.read() == 3


def hostile(builder):
    """Name, file, and what is said about it."""
    u32 = struct.Struct("<I").pack
    array = struct.Struct("<IQ").pack
    long_string = struct.pack("<Q", 1 << 60) + b"x"
    deep = b"".join(array(ValueType.ARRAY, 1) for _ in range(4)) + array(ValueType.UINT8, 0)
    b = builder
    return {
        "magic": (
            b(magic=b"GGML"),
            r"the header: it begins with b'GGML', not b'GGUF' \(at byte 4\); this is not a GGUF",
        ),
        "version-1": (b(version=1), r"GGUF version 1; versions 2 and 3 are read \(at byte 8\); convert it with an old"),
        "version-4": (b(version=4), r"GGUF version 4; versions 2 and 3 are read \(at byte 8\); upgrade edgekit-gguf"),
        "big-endian": (b(version=3 << 24), r"the file is big-endian .*; convert it with gguf-py's gguf-convert-endian"),
        "many-pairs": (b(counts=(0, 1 << 60)), r"1152921504606846976 metadata pairs of \d+ bytes, but only 8 are left"),
        "many-tensors": (b(counts=(1 << 62, 0)), r"4611686018427387904 tensors of \d+ bytes, but only 8 are left"),
        "long-key": (b().pair(b"", 0, long_string), r"metadata pair 0: key has 0 bytes; 1 to 65535 are allowed"),
        "key-not-utf8": (b().pair(b"\xff", 0, b"\1"), r"metadata pair 0: key b'\\xff' is not UTF-8"),
        "twice": (b().pair("a", 0, b"\1").pair("a", 0, b"\1"), r"key 'a': the key is there twice \(at byte \d+\)"),
        "value-type": (b().pair("a", 13, bytes(8)), r"key 'a': unknown value type 13 \(at byte 37\)"),
        "bool": (b().pair("a", ValueType.BOOL, b"\2"), r"key 'a': a bool of value 2; only 0 and 1 are allowed"),
        "long-string": (b().pair("a", ValueType.STRING, long_string), r"string of 1152921504606846976 bytes, but only"),
        "long-array": (
            b().pair("a", ValueType.ARRAY, array(ValueType.FLOAT64, 1 << 61)),
            r"2305843009213693952 values of type float64 of 18446744073709551616 bytes, but only \d+ are left",
        ),
        "many-strings": (b().pair("a", ValueType.ARRAY, array(ValueType.STRING, 1 << 40)), r"array of \d+ strings of"),
        "many-arrays": (b().pair("a", ValueType.ARRAY, array(ValueType.ARRAY, 1 << 40)), r"array of \d+ arrays of"),
        "deep": (b().pair("a", ValueType.ARRAY, deep), r"key 'a': arrays nested more than 4 deep"),
        "alignment-0": (
            b().pair("general.alignment", 4, u32(0)),
            r"0 of type uint32; a uint32 power of two is allowed",
        ),
        "alignment-48": (b().pair("general.alignment", 4, u32(48)), r"48 of type uint32; a uint32 power of two"),
        "alignment-text": (b().pair("general.alignment", 8, b.string("x")), r"'x' of type string; a uint32 power"),
        "name-twice": (b(data=bytes(64)).tensor("x", [4]).tensor("x", [4], offset=32), r"'x': the name is there twice"),
        "no-name": (b(data=bytes(64)).tensor("", [4]), r"tensor 0: name has 0 bytes; 1 to 65535 are allowed"),
        "dimensions": (b(data=bytes(64)).tensor("x", [1] * 5), r"tensor 'x': 5 dimensions; at most 4 are allowed"),
        "empty": (b(data=bytes(64)).tensor("x", [4, 0]), r"tensor 'x': shape \[0, 4\] has a dimension of 0"),
        "overflow": (b(data=bytes(64)).tensor("x", [1 << 40] * 4), r"its \d+ bytes of F32 end beyond the file, which"),
        "wraps": (b(data=bytes(64)).tensor("x", [1 << 63, 2]), r"its 73786976294838206464 bytes of F32 end beyond"),
        "type": (b(data=bytes(64)).tensor("x", [4], 99), r"tensor type 99, which this edgekit-gguf does not know"),
        "retired": (b(data=bytes(64)).tensor("x", [4], 31), r"tensor type 31, Q4_0_4_4, dropped: download the Q4_0"),
        "memory-only": (b(data=bytes(64)).tensor("x", [4], 9), r"tensor type 9, Q8_1, which exists in memory only"),
        "ragged": (b(data=bytes(64)).tensor("x", [48], 2), r"Q4_0 needs rows of a multiple of 32, its shape is \[48\]"),
        "unaligned": (
            b(data=bytes(64)).tensor("x", [4], offset=16),
            r"offset 16 is not a multiple of the alignment, 32",
        ),
        "beyond": (b(data=bytes(64)).tensor("x", [4], offset=64), r"its 16 bytes of F32 end beyond the file"),
        "far-beyond": (b(data=bytes(64)).tensor("x", [4], offset=(1 << 64) - 32), r"end beyond the file, which has 0"),
        "overlap": (
            b(data=bytes(96)).tensor("x", [16]).tensor("y", [4], offset=32),
            r"tensor 'y': it overlaps tensor 'x' \(at byte \d+\)",
        ),
    }


NAMES = """
    magic version-1 version-4 big-endian many-pairs many-tensors long-key key-not-utf8 twice value-type bool
    long-string long-array many-strings many-arrays deep alignment-0 alignment-48 alignment-text name-twice no-name
    dimensions empty overflow wraps type retired memory-only ragged unaligned beyond far-beyond overlap
""".split()  # noqa: SIM905 (a list of so many strings would be a page)


def test_every_hostile_file_is_tried(builder):
    assert list(hostile(builder)) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_hostile_files_are_refused_before_anything_is_allocated(name: str, builder, tmp_path: Path):
    file, message = hostile(builder)[name]
    path = file.write(tmp_path / "hostile.gguf")
    tracemalloc.start()
    try:
        with pytest.raises(InvalidFileError, match=message) as caught:
            read(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert str(caught.value).startswith(str(path))
    assert peak < 1 << 20, f"{peak} bytes for a file of {path.stat().st_size}"


CUT = """
import os, sys
from pathlib import Path
from edgekit.errors import InvalidFileError
from edgekit.files import reader
from edgekit_gguf.format import GgufFormat
path, at, left = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
read, calls = reader.Reader.read_bytes, []
def cutting(self, begin, nbytes):
    calls.append(begin)
    if len(calls) == at:
        os.truncate(path, left)
    return read(self, begin, nbytes)
reader.Reader.read_bytes = cutting
try:
    [tensor.read() for tensor in GgufFormat().open(path).tensors.values()]
except InvalidFileError as error:
    print(error)
"""


@pytest.mark.parametrize(("at", "left"), [(1, 0), (1, 30), (2, 70_000), (3, 200_000), (99, 0)])
def test_a_file_that_is_cut_while_it_is_parsed(at: int, left: int, tmp_path: Path):
    """In a process of its own: a mapped file would end it with SIGBUS."""
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_token_list([f"token {i}" for i in range(30_000)])
    writer.add_tensor("x", np.ones((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    command = [sys.executable, "-c", CUT, str(tmp_path / "m.gguf"), str(at), str(left)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    wanted = f"the file was cut to {left} bytes while it was read" if at < 99 else ""
    assert wanted in done.stdout


def test_limits_are_refused_from_the_counts(builder, tmp_path: Path):
    """The file has all that it announces, so that only the limit can refuse it; and little is allocated before that."""
    header = lambda element, count: struct.pack("<IQ", element, count)  # noqa: E731
    cases = {
        "65537 tensors and 0 metadata pairs; at most 65536 and 65536": builder(counts=(65537, 0), data=bytes(2 << 20)),
        "0 tensors and 65537 metadata pairs; at most 65536 and 65536": builder(counts=(0, 65537), data=bytes(2 << 20)),
        "4194305 more items; arrays of a file may hold 4194304 numbers": builder(data=bytes(5 << 20)).pair(
            "a", ValueType.ARRAY, header(ValueType.UINT8, MAX_NUMBERS + 1)
        ),
        "2097153 more items; arrays of a file may hold 2097152 strings": builder(data=bytes(17 << 20)).pair(
            "a", ValueType.ARRAY, header(ValueType.STRING, MAX_STRINGS + 1)
        ),
        "65537 more items; arrays of a file may hold 65536 arrays": builder(data=bytes(1 << 20)).pair(
            "a", ValueType.ARRAY, header(ValueType.ARRAY, 65537)
        ),
        "the header takes more than 134217728 bytes": builder(counts=(0, 2)).pair(
            "a", ValueType.STRING, struct.pack("<Q", 128 << 20)
        ),
    }
    for number, (message, built) in enumerate(cases.items()):
        path = built.write(tmp_path / f"{number}.gguf")
        with path.open("r+b") as file:
            file.truncate(max(path.stat().st_size, 129 << 20 if "takes more" in message else 0))
        tracemalloc.start()
        with pytest.raises(InvalidFileError, match=message):
            read(path)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 1 << 20, message


def test_numbers_of_all_arrays_count_together(builder, tmp_path: Path):
    half = struct.pack("<IQ", ValueType.UINT8, MAX_NUMBERS // 2) + bytes(MAX_NUMBERS // 2)
    built = builder()
    for key in "abc":
        built = built.pair(key, ValueType.ARRAY, half)
    with pytest.raises(
        InvalidFileError, match="key 'c': 2097152 more items; arrays of a file may hold 4194304 numbers"
    ):
        read(built.write(tmp_path / "x.gguf"))


def test_as_much_as_the_largest_models_have(tmp_path: Path):
    """262,144 tokens with scores and types, and 514,906 merges: Gemma 3's vocabulary, in both forms at once."""
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_token_list([f"t{i}" for i in range(262_144)])
    writer.add_token_merges([f"a{i} b" for i in range(514_906)])
    writer.add_token_scores([float(i) for i in range(262_144)])
    writer.add_token_types([1] * 262_144)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    metadata = read(tmp_path / "m.gguf").metadata
    assert metadata["tokenizer.ggml.tokens"][-1] == "t262143"
    assert metadata["tokenizer.ggml.merges"][-1] == "a514905 b"
    assert metadata["tokenizer.ggml.scores"][-1] == 262143.0


def test_an_empty_file_and_none(tmp_path: Path):
    (tmp_path / "empty.gguf").touch()
    with pytest.raises(InvalidFileError, match=r"empty.gguf: the file is empty; get the file again$"):
        read(tmp_path / "empty.gguf")
    with pytest.raises(MissingFileError, match=r"none.gguf: no such file$"):
        read(tmp_path / "none.gguf")


def small_file(path: Path) -> bytes:
    """A complete little model: metadata of every kind, a tokenizer, tensors of three types."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", "a"])
    writer.add_token_scores([0.0, 0.0, 0.0, -1.0])
    writer.add_token_types([2, 3, 3, 1])
    writer.add_add_bos_token(True)
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        writer.add_tensor(f"blk.0.{name}.weight", np.ones((32, 32), np.float16))
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(32, np.float32))
    blocks = gguf.quantize(np.ones((4, 32), np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("token_embd.weight", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def use_everything(path: Path) -> None:
    """Open, and read all there is."""
    artifact = GGUF.open(path)
    for tensor in artifact.tensors.values():
        if not isinstance(tensor, Tensor) or "int" not in tensor.dtype:
            with np.errstate(all="ignore"):  # a flipped float16 may be a NaN
                tensor.float32()
    for view in ("tokenizer", "model"):
        with contextlib.suppress(UnsupportedModelError):
            getattr(artifact, view)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    path = tmp_path_factory.mktemp("small") / "small.gguf"
    return path, small_file(path)


def test_the_small_file_is_whole(small):
    path, data = small
    path.write_bytes(data)
    use_everything(path)
    assert GGUF.open(path).model.config.tied


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_truncated_file_is_refused(small, data):
    path, whole = small
    end = data.draw(st.integers(0, len(whole) - 33), label="bytes left")  # the last tensor's padding may be missing
    path.write_bytes(whole[:end])
    with pytest.raises(InvalidFileError):
        use_everything(path)


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_bytes_never_do_anything_else(small, data):
    """Either the file is still valid, or it is refused with a typed error; nothing else is ever raised."""
    path, whole = small
    header = 1400  # beyond it there are only weights
    position = st.integers(0, header)
    flips = data.draw(st.dictionaries(position, st.integers(0, 255), min_size=1, max_size=4), label="byte -> value")
    damaged = bytearray(whole)
    for offset, value in flips.items():
        damaged[offset] = value
    path.write_bytes(damaged)
    said = ""
    try:
        use_everything(path)
    except (InvalidFileError, MissingFileError) as error:
        said = str(error)
    assert not said or str(path) in said, f"the message does not name the file: {said}"
