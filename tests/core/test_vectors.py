"""The stored known answers: the core's reference gives every byte of them, and nobody has touched them."""

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

from edgekit.cli._verbs.vectors import command
from edgekit.errors import InvalidFileError, UsageError
from edgekit.precision import find_precision
from edgekit.precision._registry import FAMILIES
from edgekit.reference import reference
from edgekit.testing import CheckFailure, vectors

PRECISIONS = [precision for family in FAMILIES.values() for precision in family.catalogue()]
#: Those that something is encoded to; what other tools pack is decoded only.
CONVENTIONS = tuple(sorted(set(FAMILIES) - {"packed"}))
#: SHA-256 of the content of each file; tests/oracles/make_vectors.py prints them.
DIGESTS = {
    "inputs.json": "a404147be139e234716593724b7d0b8f5c4d8ca0f320017e60bf882ebd477e47",
    "affine.json": "495a94f35dea03c4aa20b85ef3f43fd7632ce22bb46f6b5ef6b044bb1568537e",
    "float.json": "995c67179cbf1552df4c6ddb4eb9017f2e9f78394192661cb0f83a8313d6f7cf",
    "ggml.json": "cdb9851266417743981c061499d13807cdac19443c6c947173145443f374fcf6",
    "mlx.json": "e27733313d7f0c74f8d738f52e13af6af845bc202f8c611d2d1804d4c376fa0d",
    "olive.json": "4b5e9bbceb317abec82ae263bfb36be81b37a75d55736dbc14a9901df33f4e68",
    "onnx.json": "a83c9f343b661190f8ecbbaa394b149650edd00a36b31f8a9bb5f0dd6f9e7ffb",
    "openvino.json": "06a215d5f6e8d0311f0c601acb69c16c310224e598bd612d4d8e30d827faddca",
}


def encoder(name):
    precision = find_precision(name)
    return lambda x, importance=None: reference(precision).encode(x, precision, importance)


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_the_reference_gives_the_known_answers(precision):
    assert vectors.check(encoder(precision), precision.name) >= 1


def test_every_precision_that_the_core_encodes_has_answers():
    assert {p.name for p in PRECISIONS} <= set(vectors.names())


def test_the_corpus_is_whole_and_untouched():
    files = {path.name: json.loads(path.read_text())["sha256"] for path in vectors.CORPUS.glob("*.json")}
    assert files == DIGESTS
    assert sum(path.stat().st_size for path in vectors.CORPUS.iterdir() if path.is_file()) < 1_500_000
    blocks = dict.fromkeys(CONVENTIONS, 0)
    for answer in vectors.load():  # reads, and so verifies, every file
        block = find_precision(answer.precision).block or answer.x.shape[1]
        blocks[answer.precision.partition(":")[0]] += answer.x.size // block
    assert min(blocks.values()) >= 72, blocks  # float has three types of 24 rows
    assert min(count for convention, count in blocks.items() if convention != "float") >= 1000, blocks


def test_the_inputs_are_drawn_the_same_everywhere():
    stored = vectors.load("float:F32")[0].x
    np.testing.assert_array_equal(vectors.inputs()["mixed"].view(np.uint32), stored.view(np.uint32))
    assert len(np.unique(stored, axis=0)) == 24


def copy_of_the_corpus(folder):
    shutil.copytree(vectors.CORPUS, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__", "*.md"))
    return folder


def test_a_changed_answer_is_noticed(tmp_path):
    file = copy_of_the_corpus(tmp_path / "corpus") / "mlx.json"
    text = file.read_text()
    at = text.index('"data": "') + 20
    file.write_text(text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :])
    with pytest.raises(InvalidFileError, match=r"mlx\.json: its content is not what its SHA-256 says; get it again"):
        vectors.load("mlx:int4-g32", tmp_path / "corpus")


def test_an_empty_corpus_is_an_error(tmp_path):
    with pytest.raises(InvalidFileError, match="no file of known answers"):
        vectors.load(folder=tmp_path)
    shutil.copy(vectors.CORPUS / "inputs.json", tmp_path)
    with pytest.raises(InvalidFileError, match="an empty corpus proves nothing"):
        vectors.load(folder=tmp_path)


def test_a_precision_without_answers_is_an_error():
    with pytest.raises(UsageError, match="no known answers for affine:int4-sym-g7"):
        vectors.check(encoder("affine:int4-sym-g7"), "affine:int4-sym-g7")


def test_a_wrong_answer_says_which_block_and_which_codes():
    def off_by_one(x, importance=None):
        parts = encoder("affine:int8-sym-g32")(x)
        return {**parts, "codes": np.where(x == x.max(), parts["codes"] - 1, parts["codes"]).astype(np.uint8)}

    with pytest.raises(CheckFailure) as caught:
        vectors.check(off_by_one, "affine:int8-sym-g32")
    message = str(caught.value)
    assert "a second implementation in plain Python" in message
    assert "smallest block [1, 32]" in message
    assert "expected" in message
    assert "actual" in message
    assert "each by one" in message


def test_the_command_writes_vectors_for_any_precision(tmp_path):
    out = tmp_path / "mine"
    done = CliRunner().invoke(command, ["affine:int3-asym-g16", "ggml:Q4_K", "--out", str(out), "--json"])
    assert done.exit_code == 0, done.output
    assert [entry["file"].rpartition("/")[2] for entry in json.loads(done.stdout)] == [
        "inputs.json",
        "affine.json",
        "ggml.json",
    ]
    assert vectors.names(out) == ("affine:int3-asym-g16", "ggml:Q4_K")
    assert vectors.check(encoder("affine:int3-asym-g16"), "affine:int3-asym-g16", out) == 2
    assert vectors.check(encoder("ggml:Q4_K"), "ggml:Q4_K", out) == 2
    again = CliRunner().invoke(command, ["ggml:Q4_K", "affine:int3-asym-g16", "--out", str(tmp_path / "again")])
    assert again.exit_code == 0
    assert (tmp_path / "again" / "ggml.json").read_bytes() == (out / "ggml.json").read_bytes()
