"""Nothing half-written: whole or not at all, locked, and resumed after an interruption."""

from __future__ import annotations

import ctypes
import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import PIPE

import attrs
import numpy as np
import pytest

from edgekit.errors import LockedError, ResourceError, UsageError
from edgekit.files import _journal, _lock, _swap, atomic, pairs
from edgekit.files._crc import combined
from edgekit.files.atomic import AtomicDirectory, AtomicFile, Region, write_atomic
from edgekit.manifest import Manifest, read_manifest, stale_manifest


def names(directory: Path) -> set[str]:
    return {entry.name for entry in directory.iterdir()}


def child(script: str, *args: object) -> subprocess.Popen[str]:
    code = "from pathlib import Path\nimport sys\nfrom edgekit.files.atomic import *\n" + textwrap.dedent(script)
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True)


def test_target_appears_whole_and_only_on_commit(tmp_path: Path) -> None:
    target = tmp_path / "model.bin"
    target.write_bytes(b"old")
    with AtomicFile(target) as file:
        file.write(b"new ")
        file.write(memoryview(b"content"))
        assert file.offset == 11
        assert target.read_bytes() == b"old"
        file.commit()
    assert target.read_bytes() == b"new content"
    assert names(tmp_path) == {"model.bin"}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_what_is_no_regular_file_is_not_replaced(tmp_path: Path) -> None:
    """With enough rights, a rename would leave a file where ``/dev/null`` was."""
    target = tmp_path / "pipe"
    os.mkfifo(target)
    message = f"{target} is a device or a pipe, not a regular file; name a file to write"
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        write_atomic(target, b"content")
    assert target.is_fifo()
    assert names(tmp_path) == {"pipe"}


def test_without_commit_the_target_stays(tmp_path: Path) -> None:
    target = tmp_path / "model.bin"
    target.write_bytes(b"old")
    with AtomicFile(target, fingerprint=b"f") as file:
        file.write(b"new")
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == {"model.bin"}


def test_completed_units_are_resumed_and_half_ones_dropped(tmp_path: Path) -> None:
    target = tmp_path / "model.bin"
    with AtomicFile(target, fingerprint=b"f") as file:
        for text in (b"one", b"two"):
            file.write(text)
            file.unit_done(text.decode())
        file.write(b"half")
    assert names(tmp_path) == {".model.bin.partial", ".model.bin.partial.json"}
    with AtomicFile(target, fingerprint=b"f") as file:
        assert (file.done, file.offset, file.notes) == (2, 6, ["one", "two"])
        file.write(b"three")
        file.unit_done()
        file.commit()
    assert target.read_bytes() == b"onetwothree"
    assert names(tmp_path) == {"model.bin"}


def test_nothing_is_kept_when_told_so(tmp_path: Path) -> None:
    file = AtomicFile(tmp_path / "m", fingerprint=b"f")
    file.write(b"one")
    file.unit_done()
    file.close(keep=False)
    directory = AtomicDirectory(tmp_path / "d")
    directory.file("m", fingerprint=b"f").unit_done()
    directory.close(keep=False)
    assert names(tmp_path) == set()


def test_resume_can_be_interrupted_again(tmp_path: Path) -> None:
    for count in range(4):
        with AtomicFile(tmp_path / "m", fingerprint=b"f") as file:
            assert file.done == count
            file.write(bytes([count]))
            file.unit_done()
    with AtomicFile(tmp_path / "m", fingerprint=b"f") as file:
        file.commit()
    assert (tmp_path / "m").read_bytes() == bytes(range(4))


@pytest.mark.parametrize(
    "damage",
    ["other fingerprint", "no fingerprint", "data changed", "data cut", "journal is garbage", "journal gone"],
)
def test_anything_else_starts_anew(tmp_path: Path, damage: str) -> None:
    target, partial, journal = (tmp_path / n for n in ("m", ".m.partial", ".m.partial.json"))
    with AtomicFile(target, fingerprint=b"f") as file:
        file.write(b"0123456789")
        file.unit_done()
    fingerprint: bytes | None = b"f"
    match damage:
        case "other fingerprint":
            fingerprint = b"g"
        case "no fingerprint":
            fingerprint = None
        case "data changed":
            partial.write_bytes(b"0123406789")
        case "data cut":
            partial.write_bytes(b"012345678")
        case "journal is garbage":
            journal.write_bytes(b"\xff\x00[[[")
        case "journal gone":
            journal.unlink()
    with AtomicFile(target, fingerprint=fingerprint) as file:
        assert (file.done, file.offset) == (0, 0)
        file.write(b"x")
        file.commit()
    assert target.read_bytes() == b"x"


def test_a_fingerprint_may_come_late(tmp_path: Path) -> None:
    """What it is computed from may be large: units are noted meanwhile, and count once the fingerprint is there."""
    known = threading.Event()

    def fingerprint() -> bytes:
        known.wait()
        return b"f"

    file = AtomicFile(tmp_path / "m", fingerprint=fingerprint)
    file.write(b"one")
    file.unit_done()
    journal = tmp_path / ".m.partial.json"
    assert b"fingerprint" not in journal.read_bytes()
    known.set()
    file.write(b"two")
    file.unit_done()
    file.close()
    assert journal.read_bytes().count(b"fingerprint") == 1
    for other in (b"f", lambda: b"f"):
        with AtomicFile(tmp_path / "m", fingerprint=other) as file:
            assert (file.done, file.offset) == (2, 6)
    with AtomicFile(tmp_path / "m", fingerprint=lambda: b"g") as file:
        assert (file.done, file.offset) == (0, 0)
    assert names(tmp_path) == set()


@pytest.mark.parametrize("outcome", ["fails", "does not come", "comes after all is over"])
def test_without_its_fingerprint_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outcome: str) -> None:
    monkeypatch.setattr(_journal, "PATIENCE", 0.05)
    known = threading.Event()

    def fingerprint() -> bytes:
        if outcome == "fails":
            raise ValueError("the source is gone")
        known.wait()
        return b"f"

    file = AtomicFile(tmp_path / "m", fingerprint=fingerprint)
    file.write(b"one")
    file.unit_done()
    if outcome == "comes after all is over":
        file.commit()
    file.close()
    known.set()
    for thread in threading.enumerate():
        if thread.name == "edgekit-fingerprint":
            thread.join()
    assert names(tmp_path) == ({"m"} if outcome == "comes after all is over" else set())


def test_torn_journal_line_is_left_out(tmp_path: Path) -> None:
    with AtomicFile(tmp_path / "m", fingerprint=b"f") as file:
        for _ in range(2):
            file.write(b"unit")
            file.unit_done()
    journal = tmp_path / ".m.partial.json"
    journal.write_bytes(journal.read_bytes()[:-3])
    with AtomicFile(tmp_path / "m", fingerprint=b"f") as file:
        assert (file.done, file.offset) == (1, 4)


def test_overwrite_replaces_what_was_reserved(tmp_path: Path) -> None:
    with AtomicFile(tmp_path / "m") as file:
        file.write(bytes(4))
        file.write(b"data")
        file.overwrite(0, b"head")
        file.write(b".")
        with pytest.raises(UsageError, match="only bytes below 9 can be overwritten"):
            file.overwrite(8, b"xx")
        file.commit()
    assert (tmp_path / "m").read_bytes() == b"headdata."


def test_kill_9_leaves_the_target_and_a_resume(tmp_path: Path) -> None:
    target = tmp_path / "m"
    target.write_bytes(b"old")
    process = child(
        """
        file = AtomicFile(Path(sys.argv[1]), fingerprint=b"f")
        for unit in range(3):
            file.write(bytes([unit]) * 1000)
            file.unit_done()
        file.write(b"half a unit")
        print("ready", flush=True)
        sys.stdin.read()
        """,
        target,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    with pytest.raises(LockedError, match=re.escape(f"another process is writing {target}")):
        AtomicFile(target, fingerprint=b"f")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert target.read_bytes() == b"old"
    with AtomicFile(target, fingerprint=b"f") as file:
        assert (file.done, file.offset) == (3, 3000)
        file.write(b"end")
        file.commit()
    assert target.read_bytes() == b"".join(bytes([u]) * 1000 for u in range(3)) + b"end"


def test_a_second_writer_in_the_same_process_is_refused(tmp_path: Path) -> None:
    with AtomicFile(tmp_path / "m") as file:
        file.write(b"first")
        with pytest.raises(LockedError, match="another process is writing"):
            AtomicFile(tmp_path / "m")
        file.commit()
    assert (tmp_path / "m").read_bytes() == b"first"


def test_lock_file_where_there_is_no_flock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_lock, "fcntl", None)
    with AtomicFile(tmp_path / "m") as file:
        with pytest.raises(LockedError, match=r"or delete .*\.m\.lockfile if none is"):
            AtomicFile(tmp_path / "m")
        file.write(b"x")
        file.commit()
    assert names(tmp_path) == {"m"}


def test_many_writers_never_mix(tmp_path: Path) -> None:
    target = tmp_path / "m"
    script = """
        for attempt in range(40):
            try:
                with AtomicFile(Path(sys.argv[1])) as file:
                    for _ in range(10):
                        file.write(sys.argv[2].encode() * 1000)
                    file.commit()
            except Exception as error:
                assert type(error).__name__ == "LockedError", error
        """
    processes = [child(script, target, letter) for letter in "ab"]
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    content = target.read_bytes()
    assert content in (b"a" * 10_000, b"b" * 10_000)
    assert names(tmp_path) == {"m"}


def test_full_disk_leaves_the_target_untouched(tmp_path: Path) -> None:
    target = tmp_path / "m"
    target.write_bytes(b"old")
    process = child(
        """
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        from edgekit.errors import ResourceError
        file = AtomicFile(Path(sys.argv[1]), fingerprint=b"f")
        file.write(bytes(3000)); file.unit_done()
        try:
            file.write(bytes(3000))
        except ResourceError as error:
            print(error)
        file.close()
        """,
        target,
    )
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert output == (
        f"cannot write {target} (3,000 bytes at offset 3,000): {os.strerror(errno.EFBIG)}; "
        "raise the file size limit (ulimit -f), or choose a file system that holds larger files\n"
    )
    assert target.read_bytes() == b"old"
    with AtomicFile(target, fingerprint=b"f") as file:
        assert (file.done, file.offset) == (1, 3000)


def test_no_space_left_on_a_real_device() -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(ResourceError) as caught:
        write_full(full)
    assert str(caught.value) == (
        f"cannot write model.gguf (12 bytes): {os.strerror(errno.ENOSPC)}; "
        "free some space, or choose a target on another disk"
    )
    assert isinstance(caught.value, OSError)
    assert caught.value.exit_code == 5


@atomic.writing(Path("model.gguf"), "12 bytes")
def write_full(full: io.FileIO) -> None:
    full.write(bytes(12))


def test_a_small_tmpfs_that_fills_up(tmp_path: Path) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a file system is not allowed here")
    try:
        target = tmp_path / "m"
        target.write_bytes(b"old")
        with AtomicFile(target) as file:
            with pytest.raises(ResourceError, match=r"^cannot write .*: 1,000,000 bytes needed, [\d,]+ free; "):
                file.reserve(1_000_000)
            with pytest.raises(ResourceError, match=os.strerror(errno.ENOSPC)):
                file.write(bytes(1 << 20))
        assert target.read_bytes() == b"old"
        assert names(tmp_path) == {"m"}
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_reserve_counts_what_is_already_there(tmp_path: Path) -> None:
    with AtomicFile(tmp_path / "m") as file:
        file.write(bytes(100))
        file.reserve(100)
        with pytest.raises(ResourceError, match="free some space"):
            file.reserve(1 << 62)


def test_missing_directory(tmp_path: Path) -> None:
    target = tmp_path / "none" / "m"
    with pytest.raises(ResourceError) as caught:
        AtomicFile(target)
    assert str(caught.value) == (
        f"cannot write {target}: {os.strerror(errno.ENOENT)}; create the directory first, or choose another target"
    )


def test_no_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    process = child(
        """
        import os
        if os.geteuid() == 0:  # root may write everywhere
            os.seteuid(65534)
        try:
            AtomicFile(Path(sys.argv[1]))
        except OSError as error:
            print(type(error).__name__, str(error).partition("; ")[2])
        """,
        tmp_path / "m",
    )
    output, errors = process.communicate()
    assert output == "ResourceError give yourself write permission, or choose another target\n", errors


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a directory; name a file to write"):
        AtomicFile(tmp_path)


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "m")
    write_atomic(tmp_path / "link", b"x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "m").read_bytes() == b"x"


@pytest.mark.parametrize("name", [".m.partial", ".m.partial.json", ".m.manifest", ".m.old", ".m.gone"])
def test_a_planted_link_is_not_followed(tmp_path: Path, name: str) -> None:
    (tmp_path / "victim").write_bytes(b"mine")
    (tmp_path / name).symlink_to(tmp_path / "victim")
    with AtomicFile(tmp_path / "m", fingerprint=b"f", manifest=True) as file:
        file.write(b"content")
        file.unit_done()
        file.commit(b"{}")
    assert (tmp_path / "victim").read_bytes() == b"mine"
    assert names(tmp_path) == {"m", "m.edgekit.json", "victim"}


def test_a_planted_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / ".m.lock").symlink_to(tmp_path / "victim")
    with pytest.raises(ResourceError, match=r"cannot write .*m: "):
        AtomicFile(tmp_path / "m")
    assert names(tmp_path) == {".m.lock"}


def test_directory_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with AtomicDirectory(target) as directory:
        directory.write("config.json", b"{}")
        with directory.file("model.safetensors") as file:
            file.write(b"data")
            file.commit()
        assert not target.exists()
        directory.commit()
    assert names(target) == {"config.json", "model.safetensors"}
    assert names(tmp_path) == {"model"}


def test_directory_replaces_an_artifact_or_an_empty_one(tmp_path: Path) -> None:
    target = tmp_path / "model"
    for text in (b"first", b"second"):
        target.mkdir(exist_ok=True)
        with AtomicDirectory(target) as directory:
            directory.write("config.json", text)
            directory.commit()
    assert (target / "config.json").read_bytes() == b"second"
    assert names(tmp_path) == {"model"}


@pytest.mark.parametrize("foreign", ["thesis.txt", "config.json.d/"])
def test_directory_never_deletes_what_is_not_an_artifact(tmp_path: Path, foreign: str) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "config.json").write_text("{}")
    if foreign.endswith("/"):
        (target / foreign).mkdir()
    else:
        (target / foreign).write_text("mine")
    before = names(target)
    with pytest.raises(UsageError, match=f"holds {foreign.rstrip('/')}, which is not part of an artifact"):
        AtomicDirectory(target)
    assert names(target) == before
    assert names(tmp_path) == {"model"}


def test_directory_checks_again_before_it_replaces(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with AtomicDirectory(target) as directory:
        directory.write("config.json", b"{}")
        target.mkdir()
        (target / "thesis.txt").write_text("mine")
        with pytest.raises(UsageError, match=r"holds thesis\.txt"):
            directory.commit()
    assert (target / "thesis.txt").read_text() == "mine"
    assert names(tmp_path) == {"model"}


def test_directory_checks_once_more_after_it_has_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Syncing a large model takes a while."""
    target, real = tmp_path / "model", atomic.sync_tree

    def slow(path: Path) -> None:
        real(path)
        target.mkdir()
        (target / "thesis.txt").write_text("mine")

    monkeypatch.setattr(atomic, "sync_tree", slow)
    with AtomicDirectory(target) as directory:
        directory.write("config.json", b"{}")
        with pytest.raises(UsageError, match=r"holds thesis\.txt"):
            directory.commit()
    assert (target / "thesis.txt").read_text() == "mine"
    assert names(tmp_path) == {"model"}


def test_directory_without_commit_leaves_nothing(tmp_path: Path) -> None:
    with AtomicDirectory(tmp_path / "model") as directory:
        directory.write("config.json", b"{}")
    assert names(tmp_path) == set()


def test_directory_resumes_its_files(tmp_path: Path) -> None:
    for done in (0, 1):
        with AtomicDirectory(tmp_path / "model") as directory:
            file = directory.file("model.safetensors", fingerprint=b"f")
            assert file.done == done
            file.write(b"unit")
            file.unit_done()
    with AtomicDirectory(tmp_path / "model") as directory:
        file = directory.file("model.safetensors", fingerprint=b"f")
        file.commit()
        directory.commit()
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == b"unitunit"
    assert names(tmp_path / "model") == {"model.safetensors"}


def test_directory_is_locked(tmp_path: Path) -> None:
    with AtomicDirectory(tmp_path / "model"), pytest.raises(LockedError, match="another process is writing"):
        AtomicDirectory(tmp_path / "model")
    with AtomicDirectory(tmp_path / "model"):
        pass


def test_directory_swap_is_undone_when_it_was_interrupted(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with AtomicDirectory(target) as directory:
        directory.write("config.json", b"good")
        directory.commit()
    target.rename(tmp_path / ".model.old")  # as a crash between the two renames leaves it
    with AtomicDirectory(target):
        pass
    assert (target / "config.json").read_bytes() == b"good"
    assert names(tmp_path) == {"model"}


def test_directory_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("mine")
    with pytest.raises(UsageError, match="is a file; name a directory to write"):
        AtomicDirectory(tmp_path / "model")


def test_units_are_cheap(tmp_path: Path) -> None:
    start = time.perf_counter()
    with AtomicFile(tmp_path / "m", fingerprint=b"f") as file:
        for unit in range(1000):
            file.write(b"x" * 1000)
            file.unit_done(f"tensor {unit}")
    with AtomicFile(tmp_path / "m", fingerprint=b"f") as file:
        assert file.done == 1000
    assert time.perf_counter() - start < 10, "a thousand small units take milliseconds each, not a sync each"


# -- journals: what does not check is thrown away ------------------------------------------------------------------

UNITS = [b"one", b"two", b"three"]


def interrupted(target: Path) -> tuple[bytes, bytes]:
    """The partial file and the journal of a run that was interrupted after three units."""
    with AtomicFile(target, fingerprint=b"f") as file:
        for number, unit in enumerate(UNITS):
            file.write(unit * 10)
            file.unit_done(f"note {number}")
    return target.with_name(f".{target.name}.partial").read_bytes(), journal_of(target).read_bytes()


def journal_of(target: Path) -> Path:
    return target.with_name(f".{target.name}.partial.json")


def finished(target: Path, partial: bytes, journal: bytes) -> tuple[int, list[str]]:
    """Resume with that journal and finish; gives what was resumed. The notes are used, as writers use them."""
    target.unlink(missing_ok=True)
    target.with_name(f".{target.name}.partial").write_bytes(partial)
    journal_of(target).write_bytes(journal)
    with AtomicFile(target, fingerprint=b"f") as file:
        resumed = file.done
        for number, unit in list(enumerate(UNITS))[resumed:]:
            file.write(unit * 10)
            file.unit_done(f"note {number}")
        notes = file.notes
        file.commit()
    return resumed, notes


def test_every_bit_of_a_journal_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever bit is flipped: the file is the undisturbed one, and so are the notes.

    Nothing is synced: thousands of files are written here, and what is read back does not depend on it.
    """
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    target = tmp_path / "m"
    partial, journal = interrupted(target)
    resumed = set()
    for bit in range(8 * len(journal)):
        damaged = bytearray(journal)
        damaged[bit // 8] ^= 1 << bit % 8
        count, notes = finished(target, partial, bytes(damaged))
        assert target.read_bytes() == b"".join(unit * 10 for unit in UNITS), bit
        assert notes == ["note 0", "note 1", "note 2"], bit
        resumed.add(count)
    assert resumed == {0, 1, 2}, "no damaged line is believed, and what is before it is"


@pytest.mark.parametrize("change", ["dropped", "doubled", "swapped with the next", "cut off"])
def test_every_line_of_a_journal_counts(tmp_path: Path, change: str) -> None:
    target = tmp_path / "m"
    partial, journal = interrupted(target)
    lines = journal.splitlines(keepends=True)
    assert len(lines) == 5, "a header, the fingerprint, three units"
    for at in range(len(lines)):
        changed = list(lines)
        match change:
            case "dropped":
                del changed[at]
            case "doubled":
                changed.insert(at, lines[at])
            case "swapped with the next":
                changed[at : at + 2] = reversed(changed[at : at + 2])
            case "cut off":
                del changed[at:]
        count, notes = finished(target, partial, b"".join(changed))
        assert target.read_bytes() == b"".join(unit * 10 for unit in UNITS)
        assert notes == ["note 0", "note 1", "note 2"]
        assert count <= max(0, at - 1 if change == "doubled" else at - 2 if changed != lines else 3)


def test_a_journal_of_another_file_is_not_believed(tmp_path: Path) -> None:
    partial, journal = interrupted(tmp_path / "m")
    count, _ = finished(tmp_path / "n", partial, journal)
    assert count == 0


@pytest.mark.parametrize(
    "line",
    [
        {"end": 33, "crc": 0, "note": "", "later": 1},
        {"end": 33, "crc": 0},
        {"end": "33", "crc": 0, "note": ""},
        {"end": -1, "crc": 0, "note": ""},
        [],
        7,
    ],
)
def test_a_line_of_another_version_ends_what_is_believed(tmp_path: Path, line: object) -> None:
    """Its checksum is right, what it says is not understood."""
    target = tmp_path / "m"
    partial, journal = interrupted(target)
    before = journal.splitlines()[2].split(b" ")[0]  # of the first unit
    text = json.dumps(line).encode()
    kept = b"".join(journal.splitlines(keepends=True)[:3])
    count, notes = finished(target, partial, kept + _journal._sum(before, text) + b" " + text + b"\n")
    assert (count, notes) == (1, ["note 0", "note 1", "note 2"])
    assert target.read_bytes() == b"".join(unit * 10 for unit in UNITS)


def test_a_journal_of_any_length_is_read_within_a_limit(tmp_path: Path) -> None:
    target = tmp_path / "m"
    partial, journal = interrupted(target)
    target.with_name(".m.partial").write_bytes(partial)
    journal_of(target).write_bytes(journal)
    os.truncate(journal_of(target), 1 << 40)  # sparse
    with AtomicFile(target, fingerprint=b"f") as file:
        assert file.done == 0


def test_what_is_left_of_the_data_is_resumed(tmp_path: Path) -> None:
    """A power cut may take the end of the data, and not the journal."""
    target = tmp_path / "m"
    partial, journal = interrupted(target)
    assert finished(target, partial[:-1], journal)[0] == 2
    assert finished(target, b"x" + partial[1:], journal)[0] == 0
    assert finished(target, partial[:45] + b"x" + partial[46:], journal)[0] == 1


# -- one commit point, one lock ------------------------------------------------------------------------------------


def write_pair(target: Path, data: bytes, recipe: str) -> None:
    with AtomicFile(target, manifest=True) as file:
        file.write(data)
        file.commit(Manifest(recipe=recipe).to_json().encode())


def recipe_of(target: Path) -> str | None:
    manifest = read_manifest(target)
    return manifest.recipe if manifest else None


def test_a_manifest_belongs_to_one_file(tmp_path: Path) -> None:
    target = tmp_path / "m.gguf"
    write_pair(target, b"old", "old")
    first = pairs.beside(target).read_bytes()
    write_pair(target, b"new", "new")
    assert recipe_of(target) == "new"
    assert stale_manifest(target) is None
    assert b"previous" not in pairs.beside(target).read_bytes()
    pairs.beside(target).write_bytes(first)
    assert recipe_of(target) is None
    assert stale_manifest(target) == (
        "m.gguf.edgekit.json is ignored: it describes another file than m.gguf as it is now"
    )
    pairs.beside(target).write_text(Manifest(recipe="by hand").to_json())
    assert stale_manifest(target) == (
        "m.gguf.edgekit.json is ignored: it does not say that it belongs to m.gguf as it is now"
    )
    assert names(tmp_path) == {"m.gguf", "m.gguf.edgekit.json"}


@pytest.mark.parametrize("size", [0, 1, (8 << 20), (8 << 20) + 1, 20 << 20])
def test_a_fingerprint_tells_models_apart(tmp_path: Path, size: int) -> None:
    file = tmp_path / "f"
    file.write_bytes(bytes(size))
    first = pairs.seal_of(file)
    assert first == pairs.seal_of(file)
    file.write_bytes(b"\1" * size)
    assert size == 0 or first != pairs.seal_of(file)
    file.write_bytes(bytes(size + 1))
    assert first != pairs.seal_of(file)


def test_between_the_two_renames_both_files_have_their_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "m.gguf"
    write_pair(target, b"old", "old")
    seen = []
    real = os.replace

    def replace(one: Path, other: Path) -> None:
        seen.append((target.read_bytes(), recipe_of(target)))
        real(one, other)
        seen.append((target.read_bytes(), recipe_of(target)))

    monkeypatch.setattr(os, "replace", replace)
    write_pair(target, b"new", "new")
    assert seen == [(b"old", "old")] * 3 + [(b"new", "new")] * 3


@pytest.mark.parametrize("existed", [False, True])
def test_a_rename_that_fails_leaves_the_pair_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existed: bool
) -> None:
    target = tmp_path / "m.gguf"
    if existed:
        write_pair(target, b"old", "old")
    before = {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()}
    real = os.replace

    def replace(one: Path, other: Path) -> None:
        if Path(other) == target:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(one, other)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(ResourceError, match=os.strerror(errno.EIO)):
        write_pair(target, b"new", "new")
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == before


@pytest.mark.parametrize("length", [200, 234, 242, 243, 244, 255, 256])
@pytest.mark.parametrize("letter", ["n", "ü"])
def test_long_names_are_written_whole_or_refused_at_once(tmp_path: Path, length: int, letter: str) -> None:
    name = letter * (length // len(letter.encode()))
    target = tmp_path / name
    if len(name.encode()) > 242:
        with pytest.raises(ResourceError, match=r"its name has \d+ bytes, 255 are allowed; choose a shorter name"):
            write_pair(target, b"x", "r")
        assert names(tmp_path) == set()
        return
    write_pair(target, b"x", "r")
    assert recipe_of(target) == "r"
    assert names(tmp_path) == {name, name + ".edgekit.json"}
    with AtomicFile(target, fingerprint=b"f") as file:
        file.write(b"one")
        file.unit_done()
    with AtomicFile(target, fingerprint=b"f") as file:
        assert file.done == 1


def test_a_directory_of_a_long_name(tmp_path: Path) -> None:
    for _ in range(2):
        with AtomicDirectory(tmp_path / ("d" * 255)) as directory:
            directory.write("config.json", b"{}")
            directory.commit()
    assert names(tmp_path) == {"d" * 255}
    with pytest.raises(ResourceError, match="its name has 256 bytes"):
        AtomicDirectory(tmp_path / ("d" * 256))


def test_the_lock_comes_before_anything_is_changed(tmp_path: Path) -> None:
    """Whoever is refused has not undone, cleared or recovered anything of the writer that it waits for."""
    target = tmp_path / "model"
    with AtomicDirectory(target) as directory:
        directory.write("config.json", b"old")
        directory.commit()
    with AtomicDirectory(target) as directory:
        directory.write("config.json", b"new")
        target.rename(tmp_path / ".model.old")  # as between two renames
        before = names(tmp_path)
        for _ in range(2):
            with pytest.raises(LockedError):
                AtomicDirectory(target)
            with pytest.raises(LockedError):
                AtomicFile(target)
        assert names(tmp_path) == before
        assert (directory.path / "config.json").read_bytes() == b"new"
        directory.commit()
    assert (target / "config.json").read_bytes() == b"new"


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
@pytest.mark.parametrize("name", [".m.partial", ".m.partial.json", ".m.manifest", ".m.gone", ".m.old"])
@pytest.mark.parametrize("writer", ["file", "directory"])
def test_leftovers_of_any_kind_block_nothing(tmp_path: Path, kind: str, name: str, writer: str) -> None:
    """`.m.old` beside a target that is there is what a kill has left of a directory being deleted."""
    target = tmp_path / "m"
    if writer == "file":
        target.write_bytes(b"old")
    else:
        target.mkdir()
    left = tmp_path / name
    match kind:
        case "file":
            left.write_bytes(b"left")
        case "directory":
            (left / "deep").mkdir(parents=True)
            (left / "deep" / "file").write_bytes(b"left")
        case "link":
            left.symlink_to("nowhere")
    if writer == "file":
        write_atomic(target, b"new")
        assert target.read_bytes() == b"new"
    else:
        with AtomicDirectory(target) as directory:
            directory.write("config.json", b"new")
            directory.commit()
        assert names(target) == {"config.json"}
    assert names(tmp_path) == {"m"}


def test_another_runs_files_are_never_mixed_in(tmp_path: Path) -> None:
    """A run of model A, killed before its swap; then a run of B, which writes fewer files."""
    target = tmp_path / "model"
    left = tmp_path / ".model.partial"
    left.mkdir()
    (left / "tokenizer.json").write_bytes(b"A's")
    (left / ".other.bin.partial").write_bytes(b"A's")
    (left / ".other.bin.partial.json").write_bytes(b"A's")
    with AtomicDirectory(target) as directory:
        with directory.file("model.safetensors", fingerprint=b"B") as file:
            file.write(b"B's")
            file.commit()
        directory.commit()
    assert names(target) == {"model.safetensors"}
    assert names(tmp_path) == {"model"}


def test_a_directory_is_exchanged_in_one_step(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
        (folder / folder.name).touch()
    if not _swap.exchange(one, other):
        pytest.skip("this system cannot exchange directories")
    assert (names(one), names(other)) == ({"other"}, {"one"})
    with pytest.raises(FileNotFoundError):
        _swap.exchange(one, tmp_path / "none")


@pytest.mark.parametrize("failing", [1, 2])
def test_without_an_exchange_a_failed_swap_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    monkeypatch.setattr(_swap, "_renameat2", lambda: None)
    target = tmp_path / "model"
    for text in (b"first", b"second"):
        with AtomicDirectory(target) as directory:
            directory.write("config.json", text)
            directory.commit()
    assert (target / "config.json").read_bytes() == b"second"
    real, calls = os.rename, []

    def rename(one: Path, other: Path) -> None:
        calls.append(other)
        if len(calls) == failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(one, other)

    monkeypatch.setattr(os, "rename", rename)
    with AtomicDirectory(target) as directory:
        directory.write("config.json", b"third")
        with pytest.raises(ResourceError, match=os.strerror(errno.EIO)):
            directory.commit()
    assert (target / "config.json").read_bytes() == b"second"
    assert names(tmp_path) == {"model"}


WRITE_TWICE = """
    import os
    if os.geteuid() == 0:  # root may delete everything
        os.seteuid(65534)
    for text in (b"new", b"newest"):
        with AtomicDirectory(Path(sys.argv[1])) as directory:
            directory.write("config.json", text)
            directory.commit()
    """


def test_a_write_protected_directory_is_replaced_and_deleted(tmp_path: Path) -> None:
    """Its owner said that nothing is to be changed in it, and then to replace it."""
    tmp_path.chmod(0o777)
    for folder in (target := tmp_path / "model", target / "additional_chat_templates"):
        folder.mkdir()
    (target / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}")
    if os.geteuid() == 0:
        for path in (target, *target.rglob("*")):
            os.chown(path, 65534, 65534)
    for folder in (target / "additional_chat_templates", target):
        folder.chmod(0o555)
    for folder in tmp_path.parents:
        if os.geteuid() == 0 and folder.name.startswith(("pytest", "popen")):  # xdist adds the latter
            folder.chmod(0o755)
    output, errors = child(WRITE_TWICE, target).communicate()
    assert (output, errors) == ("", "")
    assert names(tmp_path) == {"model"}
    assert (target / "config.json").read_bytes() == b"newest"


def test_what_cannot_be_deleted_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, gone = tmp_path / "model", tmp_path / ".model.gone"
    gone.mkdir()

    def refused(path: Path) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(_swap, "_remove_tree", refused)
    with pytest.raises(ResourceError) as caught:
        AtomicDirectory(target)
    assert str(caught.value) == (
        f"cannot write {target}: an earlier run has left {gone}, which cannot be deleted "
        f"({os.strerror(errno.EPERM)}); delete it, or choose another target"
    )


def test_a_directory_that_edgekit_wrote_names_what_may_be_replaced(tmp_path: Path) -> None:
    """Of another format, whose file names this one does not know."""
    target = tmp_path / "model"
    with AtomicDirectory(target, owned=("*.special",)) as directory:
        directory.write("weights.special", b"x")
        directory.write("edgekit.manifest.json", Manifest().to_json().encode())
        directory.commit()
    assert json.loads((target / "edgekit.manifest.json").read_bytes())["files"] == [
        "edgekit.manifest.json",
        "weights.special",
    ]
    assert read_manifest(target) == Manifest()
    (target / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"holds thesis\.txt"):
        AtomicDirectory(target)
    (target / "thesis.txt").unlink()
    with AtomicDirectory(target) as directory:
        directory.write("config.json", b"{}")
        directory.commit()
    assert names(target) == {"config.json"}


def test_a_manifest_without_a_fingerprint_is_never_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fails while the new file's fingerprint is read: that is an error, not a manifest nobody believes."""
    target = tmp_path / "m.gguf"
    write_pair(target, b"old", "old")

    def seal(file: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(pairs, "seal", seal)
    with pytest.raises(ResourceError, match=os.strerror(errno.EIO)):
        write_pair(target, b"new", "new")
    monkeypatch.undo()
    assert target.read_bytes() == b"old"
    assert recipe_of(target) == "old"
    assert names(tmp_path) == {"m.gguf", "m.gguf.edgekit.json"}


def test_a_directory_that_cannot_be_listed_is_no_empty_one(tmp_path, monkeypatch):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "inner")
    assert _swap.entries_below(tmp_path) == [tmp_path / "inner" / "file", tmp_path / "link"]
    scandir = os.scandir

    def refused(path):
        if Path(path).name == "inner":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(PermissionError):
        _swap.entries_below(tmp_path)


def regions(file: AtomicFile) -> list[Region]:
    """Three units: a gap at the beginning, between two pieces, and at the end."""
    return [file.allot(end) for end in (20, 30, 44)]


def pieces() -> list[tuple[int, int, bytes]]:
    """Number of the unit, offset, bytes."""
    return [(2, 34, b"f" * 8), (1, 20, b"d" * 6), (0, 6, b"b" * 5), (1, 26, b"e" * 4), (0, 12, b"c" * 8)]


PLACED = b"ab\0\0\0\0" + b"b" * 5 + b"\0" + b"c" * 8 + b"d" * 6 + b"e" * 4 + bytes(4) + b"f" * 8 + bytes(2)


def put(file: AtomicFile, region: Region, offset: int, data: bytes) -> None:
    crc = file.put(region, offset, data[:3])
    file.put_done(region, [(offset, len(data), file.put(region, offset + 3, data[3:], crc))])


def test_units_are_written_in_any_order_by_several_threads(tmp_path: Path) -> None:
    with AtomicFile(tmp_path / "m", fingerprint=b"f") as file:
        file.preallocate(1000)
        file.write(b"ab")
        made = regions(file)
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda piece: put(file, made[piece[0]], *piece[1:]), pieces()))
        for number, region in enumerate(made):
            file.complete(region, f"unit {number}")
        assert (file.done, file.notes, file.offset) == (3, ["unit 0", "unit 1", "unit 2"], 44)
    with AtomicFile(tmp_path / "m", fingerprint=b"f") as file:  # the checksums are those of the whole
        assert (file.done, file.unit(1)) == (3, b"d" * 6 + b"e" * 4)
        file.write(b"end")
        file.commit()
    assert (tmp_path / "m").read_bytes() == PLACED + b"end"
    assert names(tmp_path) == {"m"}


@pytest.mark.parametrize("complete", [0, 1])
@pytest.mark.parametrize("damaged", [None, 8, 22, 35])
def test_complete_pieces_are_kept_unless_their_bytes_changed(
    tmp_path: Path, complete: int, damaged: int | None
) -> None:
    with AtomicFile(tmp_path / "m", fingerprint=b"f") as file:
        file.write(b"ab")
        made = regions(file)
        for number, offset, data in pieces()[: 3 + 2 * complete]:
            put(file, made[number], offset, data)
        if complete:
            file.complete(made[0], "first")
    partial = tmp_path / ".m.partial"
    if damaged is not None:
        data = bytearray(partial.read_bytes())
        data[damaged] ^= 1
        partial.write_bytes(data)
    first_lost = complete and damaged == 8
    with AtomicFile(tmp_path / "m", fingerprint=b"f") as file:
        assert file.done == (0 if first_lost else complete)
        if not file.done:
            file.write(b"ab")
        made = [None, *map(file.allot, (30, 44))] if file.done else regions(file)
        missing = 0
        for number, offset, data in pieces():
            region = made[number]
            if region is not None and not region.take([(offset, len(data))]):
                put(file, region, offset, data)
                missing += 1
        for region in filter(None, made):
            file.complete(region)
        file.commit()
    assert (tmp_path / "m").read_bytes() == PLACED
    assert missing == (5 if first_lost else (0 if complete else 2) + (damaged is not None))


def test_regions_are_completed_in_order_and_alone(tmp_path: Path) -> None:
    with AtomicFile(tmp_path / "m", fingerprint=b"f") as file:
        first, second = file.allot(4), file.allot(8)
        with pytest.raises(UsageError, match="in the order in which they got their places"):
            file.complete(second)
        for change in (lambda: file.write(b"x"), lambda: file.write_at(9, b"x"), file.unit_done, file.commit):
            with pytest.raises(UsageError, match="2 units have their places and are not complete"):
                change()
        for offset in (3, 5):
            with pytest.raises(UsageError, match="outside their unit's place"):
                file.put(first if offset == 3 else second, offset - 2 * (offset == 5), b"12")
        with pytest.raises(UsageError, match="a unit from 8 cannot end at 7"):
            file.allot(7)
        put(file, first, 0, b"1234")
        file.put_done(first, [(2, 2, 0)])
        with pytest.raises(UsageError, match="two pieces overlap at 2"):
            file.complete(first)


def test_a_disk_without_preallocation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it cannot do is left; what it has no room for is an error before anything is written."""

    def failing(code: int) -> Callable[..., int]:
        def fallocate(*_: object) -> int:
            ctypes.set_errno(code)
            return -1

        return fallocate

    for code in (errno.EOPNOTSUPP, errno.EINVAL, None):
        monkeypatch.setattr(_swap, "_fallocate", lambda code=code: failing(code) if code else None)
        with AtomicFile(tmp_path / "m") as file:
            file.preallocate(1 << 20)
            put(file, region := file.allot(6), 0, b"placed")
            file.complete(region)
            file.commit()
        assert (tmp_path / "m").read_bytes() == b"placed"
    monkeypatch.setattr(_swap, "_fallocate", lambda: failing(errno.ENOSPC))
    with AtomicFile(tmp_path / "n") as file, pytest.raises(ResourceError, match=r"1,048,576 bytes.*No space left"):
        file.preallocate(1 << 20)
    assert names(tmp_path) == {"m"}


def test_the_checksum_of_a_whole_from_those_of_its_pieces() -> None:
    random = np.random.default_rng(0)
    for sizes in ((0, 0), (5, 0), (0, 7), (1000, 12345), (3, 1 << 20)):
        first, second = (random.bytes(size) for size in sizes)
        assert combined(zlib.crc32(first), zlib.crc32(second), len(second)) == zlib.crc32(first + second)


def test_the_system_writes_pieces_while_others_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[tuple[int, int]] = []
    monkeypatch.setattr(
        _swap, "_sync_file_range", lambda: lambda descriptor, at, nbytes, flags: begun.append((at, nbytes))
    )
    with AtomicFile(tmp_path / "model", fingerprint=b"same") as file:
        region = file.allot(9)
        put(file, region, 3, b"second")
        put(file, region, 0, b"one")
        file.complete(region)
        file.commit()
    assert begun == [(3, 6), (0, 3)]
    assert (tmp_path / "model").read_bytes() == b"onesecond"


def test_blocks_are_allotted_on_a_disk_and_not_in_memory(tmp_path: Path) -> None:
    memory = Path("/dev/shm")
    if not (sys.platform == "linux" and os.access(memory, os.W_OK)):
        pytest.skip("no file system in memory")
    with tempfile.TemporaryDirectory(dir=memory) as folder, AtomicFile(Path(folder) / "model") as file:
        file.preallocate(1 << 20)
        assert os.fstat(file._file.fileno()).st_blocks == 0


def test_a_shared_file_is_found_by_its_token_and_committed_without(tmp_path: Path) -> None:
    with AtomicFile(tmp_path / "model") as file:
        assert file.share() is None  # its size is unknown
        file.preallocate(10)
        shared = file.share()
        assert shared is file.share()
        region = file.allot(6)
        with shared.opened() as descriptor:
            shared.put(descriptor, 2, memoryview(b"here"))
        with attrs.evolve(shared, token=bytes(32)).opened() as descriptor:
            assert descriptor is None
        file.put_done(region, [(2, 4, zlib.crc32(b"here"))])
        file.complete(region)
        file.commit()
    assert (tmp_path / "model").read_bytes() == b"\0\0here"


def test_a_lost_process_writes_to_no_other_file(tmp_path: Path) -> None:
    """The file that it has open is gone, and it does not open the next one."""
    with AtomicFile(tmp_path / "model", fingerprint=b"first") as file:
        file.preallocate(10)
        shared = file.share()
        file.close(keep=False)
    with AtomicFile(tmp_path / "model", fingerprint=b"second") as file, shared.opened() as descriptor:
        file.preallocate(10)
        assert descriptor is None
        file.share()
        with shared.opened() as later:
            assert later is None
