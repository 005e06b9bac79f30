"""Digests of the sources, computed while the artifact is made."""

from __future__ import annotations

import hashlib
import os
import re
import threading
from concurrent.futures import CancelledError
from contextlib import closing, suppress
from pathlib import Path

import pytest

from edgekit.errors import InvalidFileError, MissingFileError
from edgekit.files import digests as digests_module
from edgekit.files.digests import PIECE, TREE, WHOLE, Digests, digests, has_digest, sha256
from edgekit.manifest import Manifest


def test_digests_are_the_files(tmp_path: Path) -> None:
    contents = {"a": b"", "b": os.urandom(700_001), "c": b"x" * (1 << 18)}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    expected = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    assert {name: sha256(tmp_path / name) for name in contents} == expected
    with closing(Digests([tmp_path / name for name in contents], {"importance": "0f"})) as digests:
        assert dict(digests) == {**expected, "importance": "0f"}
        assert len(digests) == 4
        assert Manifest(digests).to_json() == Manifest({**expected, "importance": "0f"}).to_json()
        with pytest.raises(KeyError):
            digests["d"]


def test_a_file_that_cannot_be_read_is_an_error_where_its_digest_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"content")
    message = rf"^{re.escape(str(tmp_path / 'gone'))}: cannot be read \(No such file or directory\); check that it is"
    with closing(Digests([tmp_path / "gone", tmp_path / "there"])) as digests:
        assert digests["there"] == hashlib.sha256(b"content").hexdigest()
        with pytest.raises(MissingFileError, match=message):
            digests["gone"]
    with pytest.raises(MissingFileError, match=message):
        sha256(tmp_path / "gone")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_closing_ends_the_hashing_of_a_large_file(tmp_path: Path) -> None:
    """A pipe that somebody fills for ever is the largest of files."""
    pipe = tmp_path / "endless"
    os.mkfifo(pipe)
    begun = threading.Event()

    def fill() -> None:
        with suppress(BrokenPipeError), pipe.open("wb", buffering=0) as stream:  # when its reader has opened it
            begun.set()
            while True:
                stream.write(bytes(1 << 16))

    writer = threading.Thread(target=fill)
    writer.start()
    digests = Digests([pipe, tmp_path / "never reached"])
    assert begun.wait(60)
    assert not digests._names["endless"].done()
    digests.close()
    writer.join()
    with pytest.raises(CancelledError):
        digests["endless"]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("edgekit-sha256")]


def tree_of(content: bytes) -> str:
    """The scheme as it is documented, on one thread."""
    pieces = (content[begin : begin + PIECE] for begin in range(0, len(content), PIECE))
    return f"{TREE}:{hashlib.sha256(b''.join(hashlib.sha256(piece).digest() for piece in pieces)).hexdigest()}"


@pytest.mark.parametrize("nbytes", [PIECE, PIECE + 1, 3 * PIECE, 3 * PIECE - 1, 5 * PIECE + 700_001])
@pytest.mark.parametrize("threads", [1, 2, 7])
def test_a_tree_is_the_same_for_any_number_of_threads(tmp_path: Path, nbytes: int, threads: int) -> None:
    content = os.urandom(nbytes)
    (tmp_path / "a").write_bytes(content)
    (tmp_path / "b").write_bytes(content[::-1])
    with closing(Digests([tmp_path / "a", tmp_path / "b"], whole=PIECE - 1, threads=threads)) as digests:
        assert dict(digests) == {"a": tree_of(content), "b": tree_of(content[::-1])}


def test_files_above_64_mib_have_a_tree_and_others_their_plain_sha256(tmp_path: Path) -> None:
    (small := tmp_path / "small").write_bytes(bytes(WHOLE))
    (large := tmp_path / "large").write_bytes(bytes(WHOLE) + b"1")
    found = digests([small, large])
    assert found == {"small": hashlib.sha256(bytes(WHOLE)).hexdigest(), "large": tree_of(bytes(WHOLE) + b"1")}
    assert (
        found["large"] == "sha256-tree-4MiB:2f1a739a7660e41a6c6767836733c66792a71d360436872f0fc5cb36cbdf0d1d"
    )  # by split and sha256sum
    assert has_digest(small, found["small"])
    assert has_digest(large, found["large"])
    assert has_digest(large, hashlib.sha256(bytes(WHOLE) + b"1").hexdigest())  # a manifest of an edgekit without trees
    assert not has_digest(large, found["small"])
    assert not has_digest(small, found["large"])
    with pytest.raises(
        InvalidFileError, match=rf"^{re.escape(str(small))}: its digest was recorded as 'blake3'; this "
    ):
        has_digest(small, "blake3:00")


def test_a_tree_of_a_file_that_goes_away_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (large := tmp_path / "large").write_bytes(bytes(3 * PIECE))
    real = digests_module._sha256

    def vanishing(file: Path, stopped: threading.Event, *piece: int) -> bytes:
        digest = real(file, stopped, *piece)
        file.unlink(missing_ok=True)
        return digest

    monkeypatch.setattr(digests_module, "_sha256", vanishing)
    with (
        closing(Digests([large], whole=0, threads=1)) as digests,
        pytest.raises(
            MissingFileError, match=rf"^{re.escape(str(large))}: cannot be read \(No such file or directory\)"
        ),
    ):
        digests["large"]
