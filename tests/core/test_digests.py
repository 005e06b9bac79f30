"""SHA-256 of the sources, computed while the artifact is made."""

from __future__ import annotations

import hashlib
import os
import re
import threading
from concurrent.futures import CancelledError
from contextlib import closing, suppress
from pathlib import Path

import pytest

from edgekit.errors import MissingFileError
from edgekit.files.digests import Digests, sha256
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

    def fill() -> None:
        with suppress(BrokenPipeError), pipe.open("wb", buffering=0) as stream:
            while True:
                stream.write(bytes(1 << 16))

    writer = threading.Thread(target=fill)
    writer.start()
    digests = Digests([pipe, tmp_path / "never reached"])
    assert not digests._coming[pipe].done()
    digests.close()
    writer.join()
    with pytest.raises(CancelledError):
        digests["endless"]
    assert not [thread for thread in threading.enumerate() if thread.name == "edgekit-sha256"]
