"""Texts that are no Unicode: kept from GGUF to GGUF, refused where a file cannot hold them, never a traceback."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import edgekit
from edgekit import sample
from edgekit.errors import UnsupportedModelError
from edgekit.manifest import Manifest, read_manifest
from edgekit_gguf.metadata import Value, text
from edgekit_gguf.reader import read
from edgekit_gguf.writer import encode_header

BAD = "\udcff\udcfe"
#: Which key of the metadata is not Unicode text, and how.
CHANGES = {
    "token": "tokenizer.ggml.tokens",
    "template": "tokenizer.chat_template",
    "name": "general.name",
    "architecture": "general.architecture",
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return edgekit.convert(sample.path(), tmp_path_factory.mktemp("whole") / "m.gguf").path


@pytest.fixture(params=CHANGES)
def changed(request: pytest.FixtureRequest, whole: Path, tmp_path: Path) -> tuple[str, Path]:
    """A model with a text that is no Unicode, and which it is."""
    from edgekit.recipe import Assignment, Plan
    from edgekit_gguf.types import ALIGNMENT

    file = read(whole)
    key = CHANGES[request.param]
    typed = dict(file.metadata.typed)
    if request.param == "token":
        tokens = list(typed[key].data)
        tokens[-1] = BAD
        typed[key] = Value(typed[key].type, tuple(tokens), typed[key].element)
    else:
        typed[key] = text(f"llama{BAD}" if key in typed else f"{{{{ messages[0].content }}}}{BAD}")
    artifact = edgekit.open(whole)
    plan = Plan("", tuple(Assignment(i.name, i.name, i.shape, _precision(artifact, i.name), "") for i in file.infos))
    path = tmp_path / "odd.gguf"
    data = whole.read_bytes()[min(info.start for info in file.infos) :]
    header = encode_header(typed, plan, [info.type for info in file.infos])
    assert len(header) % ALIGNMENT == 0
    path.write_bytes(header + data)
    return request.param, path


def _precision(artifact: edgekit.Artifact, name: str) -> edgekit.Precision:
    from edgekit.pipeline._conversion import own_precision

    return own_precision(artifact.tensors[name])


def test_gguf_to_gguf_keeps_them(changed: tuple[str, Path], tmp_path: Path):
    which, path = changed
    if which == "architecture":
        pytest.skip("a family of that name is not known")
    written = edgekit.quantize(path, "Q8_0", to=tmp_path / "out.gguf")
    key = CHANGES[which]
    assert written.config[key] == edgekit.open(path).config[key]


def test_other_formats_hold_them_or_refuse(changed: tuple[str, Path], tmp_path: Path):
    which, path = changed
    if which == "name":  # is not carried there
        assert edgekit.open(edgekit.convert(path, tmp_path / "hf").path).tokenizer is not None
        return
    with pytest.raises(UnsupportedModelError) as caught:
        edgekit.convert(path, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()
    known = "general.architecture is 'llama" if which == "architecture" else "is not Unicode text near"
    assert known in str(caught.value)


def test_the_command_line_shows_them(changed: tuple[str, Path]):
    """On a terminal whose encoding is strict."""
    _, path = changed
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    for more in ([], ["--metadata"], ["--json"]):
        command = [sys.executable, "-m", "edgekit", "inspect", str(path), *more]
        done = subprocess.run(command, capture_output=True, env=environment, check=False)
        assert (done.returncode, done.stderr) == (0, b"")


def test_a_token_that_is_no_utf8_stands_for_its_bytes(changed: tuple[str, Path]):
    which, path = changed
    if which != "token":
        pytest.skip("its tokens are whole")
    tokenizer = edgekit.open(path).tokenizer
    assert tokenizer.piece(len(tokenizer.tokens) - 1) == b"\xff\xfe"
    with pytest.raises(UnsupportedModelError, match="the tokenizer is not Unicode text near"):
        tokenizer.encode("x")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_file_name_that_is_no_unicode(whole: Path, tmp_path: Path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/mod\xe8le.gguf"))
    path.write_bytes(whole.read_bytes())
    for target in (tmp_path / "out.gguf", tmp_path / "hf", path.with_name(path.name.replace("le", "le2"))):
        written = edgekit.convert(path, target)
        assert list(written.manifest.sources) == [r"mod\xe8le.gguf"]
        assert list(read_manifest(target).sources) == [r"mod\xe8le.gguf"]
        assert edgekit.open(target).tokenizer.tokens == edgekit.open(whole).tokenizer.tokens


def test_manifests_are_json_that_every_reader_takes():
    odd = Manifest({"a\udce8": "\ud800"}, "r\udcff", {"t": {"reason": "\udc80"}}, {}, {"x": ["\ud800"]})
    assert "\\ud" not in odd.to_json().replace("\\\\ud", "")
    assert Manifest.from_json(odd.to_json().encode(), Path("m")).sources == {r"a\xe8": r"\ud800"}
    assert json.load(io.StringIO(odd.to_json()))["recipe"] == r"r\xff"
