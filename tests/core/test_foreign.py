"""Foreign files and names: what is refused before it is opened, parsed or believed."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import edgekit
from edgekit.cli._verbs.inspect import describe
from edgekit.errors import EdgekitError, InvalidFileError, MissingFileError
from edgekit.files import foreign
from edgekit.files.foreign import integer, native, read_object, readable, strict_json
from edgekit.files.reader import Mapped, Reader, read_start
from edgekit.formats import safetensors

HERE = Path("m.json")
needs_pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")


def refused(text: bytes) -> str:
    with pytest.raises(InvalidFileError) as caught:
        strict_json(text, HERE, "the file")
    return str(caught.value).removeprefix("m.json: ").removesuffix("; fetch or convert it again")


JSON = {
    b'{"a": "\\ud800"}': "the file: the text '\\ud800' is not Unicode text (at byte 0)",
    b'{"a": [{"b": "x\\udfff"}]}': "the file: the text 'x\\udfff' is not Unicode text (at byte 0)",
    b'{"\\ud800": 1}': "the file: key '\\ud800' is not Unicode text (at byte 0)",
    b"[1e400]": "the file: the number '1e400' is beyond what a float holds (at byte 0)",
    b"[-1e400]": "the file: the number '-1e400' is beyond what a float holds (at byte 0)",
    b"[Infinity]": "the file: Infinity is not JSON (at byte 0)",
    b"[" + b"1" * 65 + b"]": "the file: an integer of 65 digits; at most 64 are read (at byte 0)",
    b"[" + b"1" * 5000 + b"]": "the file: an integer of 5,000 digits; at most 64 are read (at byte 0)",
    b"[" * 100_000 + b"]" * 100_000: "the file is nested too deeply (at byte 0)",
    b"[" + b"0," * (1 << 23) + b"0]": "the file has more than 8,388,608 values, which no model's has (at byte 0)",
}


@pytest.mark.parametrize(("text", "message"), JSON.items(), ids=range(len(JSON)))
def test_what_json_is_refused(text: bytes, message: str) -> None:
    assert refused(text) == message


def test_pairs_of_surrogates_are_characters() -> None:
    assert strict_json(b'["\\ud83d\\ude00"]', HERE, "the file") == ["😀"]


def test_integers_are_ascii_and_short() -> None:
    assert [integer(text) for text in ("0", "-4", "9" * 19)] == [0, -4, int("9" * 19)]
    odd = ["", "-", "+1", " 1", "1 ", "1_0", "٣", "²", "1.0", "9" * 20, "9" * 5000, "0x1", "1\n"]
    assert [integer(text) for text in odd] == [None] * len(odd)


def test_names_that_are_no_unicode_are_readable() -> None:
    assert readable("modèle") == "modèle"
    assert readable(os.fsdecode(b"mod\xe8le.gguf")) == r"mod\xe8le.gguf"
    assert readable("a\ud800b") == r"a\ud800b"
    assert readable("\udce8\ud800") == r"\udce8\ud800"


# --- Pipes, sockets, devices ------------------------------------------------------------------------------------


def special(folder: Path, name: str, kind: str) -> Path:
    path = folder / name
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(path))
    else:
        path.symlink_to("/dev/zero" if name != "config.json" else "/dev/tty")
    return path


@needs_pipes
@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
@pytest.mark.parametrize("name", ["x.xml", "x.gguf", "x.safetensors", "x.onnx", "x", "x.ekx", "x.bin"])
def test_special_files_are_refused_before_they_are_opened(name: str, kind: str, tmp_path: Path) -> None:
    path = special(tmp_path, name, kind)
    signal.alarm(20)  # a pipe that is opened blocks for ever
    try:
        with pytest.raises(InvalidFileError) as caught:
            edgekit.open(path)
    finally:
        signal.alarm(0)
    assert str(caught.value) == f"{path}: a {kind}, not a regular file; give a file of a model"


@needs_pipes
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "edgekit.manifest.json", "model.safetensors"])
def test_special_files_in_a_directory(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    (tmp_path / name).unlink(missing_ok=True)
    special(tmp_path, name, "pipe")
    signal.alarm(20)
    try:
        with pytest.raises(EdgekitError) as caught:
            describe(edgekit.open(tmp_path))
    finally:
        signal.alarm(0)
    assert "a pipe, not a regular file" in str(caught.value) or "no installed format" in str(caught.value)


@needs_pipes
def test_every_opener_refuses_a_pipe(tmp_path: Path) -> None:
    path = special(tmp_path, "p", "pipe")
    signal.alarm(20)
    try:
        for opened in (lambda: Reader(path), lambda: safetensors.read_header(path), lambda: Mapped((path,), "")):
            with pytest.raises(InvalidFileError, match="p: a pipe, not a regular file"):
                opened()
        assert read_start(path, 4) == b""
    finally:
        signal.alarm(0)


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidFileError, match=re.escape(f"{tmp_path}: a directory, not a regular file; give a file")):
        Reader(tmp_path)


@pytest.mark.parametrize("name", ["a\0b", "a\ud800"])
def test_names_that_no_file_can_have(name: str) -> None:
    with pytest.raises(MissingFileError, match="not a valid file name; check the name"):
        edgekit.open(name)


# --- Files that are cut -----------------------------------------------------------------------------------------


def test_a_mapped_file_that_was_cut_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "w"
    path.write_bytes(bytes(100))
    mapped = Mapped((path,), "get it again")
    mapped.refuse_cut()
    path.rename(tmp_path / "old")
    path.write_bytes(b"another")  # of the same name: what is mapped stays
    mapped.refuse_cut()
    os.truncate(tmp_path / "old", 40)
    with pytest.raises(
        InvalidFileError, match=r"w: it was cut from 100 to 40 bytes while it was in use; get it again$"
    ):
        mapped.refuse_cut()


CUT = """
import sys
from pathlib import Path
from edgekit.files import reader
from edgekit.formats import safetensors
path, read = Path(sys.argv[1]), reader.Reader.read_bytes
def cutting(self, begin, nbytes):
    data = read(self, begin, nbytes)
    path.open("r+b").truncate(int(sys.argv[2]))
    return data
reader.Reader.read_bytes = cutting
try:
    tensors, _ = safetensors.open_tensors(path)
    [tensor.read() for tensor in tensors.values()]
except safetensors.InvalidFileError as error:
    print(error)
"""


@pytest.mark.parametrize("left", [0, 8, 100, 4096])
def test_a_safetensors_file_that_is_cut_while_it_is_read(left: int, tmp_path: Path) -> None:
    import numpy as np

    path = tmp_path / "m.safetensors"
    safetensors.write(path, {f"w{i}": np.ones((100, 100), np.float32) for i in range(100)})
    done = subprocess.run(
        [sys.executable, "-c", CUT, str(path), str(left)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr  # -7 is SIGBUS
    assert re.search(r"cut|the header is no JSON", done.stdout)


# --- Limits -----------------------------------------------------------------------------------------------------


def test_a_header_of_very_many_tensors_is_refused_before_it_is_parsed(tmp_path: Path, monkeypatch) -> None:
    entry = {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}
    many = {str(i): entry for i in range(safetensors.MAX_TENSORS + 1)}
    text = json.dumps(many, separators=(",", ":")).encode()
    (tmp_path / "m.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(len(many)))
    monkeypatch.setattr(safetensors, "strict_json", lambda *_: pytest.fail("it was parsed"))
    with pytest.raises(InvalidFileError, match=r"the header has more than 100,000 tensors \(at byte 8\)"):
        safetensors.read_header(tmp_path / "m.safetensors")


def test_values_of_a_header_are_counted_before_they_are_built(tmp_path: Path) -> None:
    text = b'{"__metadata__":{"a":[' + b"[]," * 1_700_000 + b"[]]}}"
    (tmp_path / "m.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(InvalidFileError, match=r"the header has more than 1,600,000 values"):
        safetensors.read_header(tmp_path / "m.safetensors")


def test_a_small_file_has_a_limit(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}" + " " * 100)
    assert read_object(tmp_path, "config.json", 102) == {}
    with pytest.raises(InvalidFileError, match=r"larger than 101 bytes; this is no config\.json of a model"):
        read_object(tmp_path, "config.json", 101)


# --- Panics -----------------------------------------------------------------------------------------------------


class PanicException(BaseException):
    """As pyo3 raises it: no `Exception`."""


def test_a_panic_is_a_typed_error() -> None:
    with pytest.raises(InvalidFileError, match=r"^t: the library failed on it .index out of bounds.;"), native("t"):
        raise PanicException("index out of bounds")
    with pytest.raises(KeyboardInterrupt), native("t"):
        raise KeyboardInterrupt


def test_limits_are_stated_in_the_docs() -> None:
    page = Path(__file__).parents[2] / "docs/reference/limits.md"
    if not page.is_file():
        pytest.skip("no docs beside the tests")
    text = page.read_text("utf-8")
    from edgekit.formats import _hf_files
    from edgekit.tokenizer import _hf_files as tokenizer_files

    for limit in (
        foreign.MAX_DIGITS,
        foreign.MAX_VALUES,
        safetensors.MAX_TENSORS,
        safetensors.HEADER_LIMIT >> 20,
        _hf_files.MAX_TENSORS,
        _hf_files.CONFIG_LIMIT >> 20,
        _hf_files.INDEX_LIMIT >> 20,
        tokenizer_files.TOKENIZER_LIMIT >> 20,
    ):
        assert f"{limit:,}" in text


def test_a_name_that_no_file_can_have_is_refused_shortly(tmp_path: Path) -> None:
    with pytest.raises(InvalidFileError, match=r"a file name of 5,000 characters; file systems take 255$"):
        read_object(tmp_path, "a" * 5000, 10)
    with pytest.raises(
        InvalidFileError, match=r"is not a plain file name; files lie in the directory itself$"
    ) as caught:
        read_object(tmp_path, "/" * 5000, 10)
    assert len(str(caught.value)) < 200 + len(str(tmp_path))
