"""The steps of a commit: names of hidden files beside a target, syncing, swapping, and cleaning up.

| name             | what it is                                                            | the next run           |
|------------------|-----------------------------------------------------------------------|------------------------|
| `.NAME.partial`  | the file or directory being written; after a swap, the old directory  | resumes or clears it   |
| `.NAME.partial.json` | a file's journal                                                  | resumes or clears it   |
| `.NAME.manifest` | a manifest being written                                              | clears it              |
| `.NAME.old`      | the whole old directory, between two renames                          | puts it back           |
| `.NAME.gone`     | an old directory being deleted                                        | clears it              |
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import shutil
import stat
import sys
from functools import cache
from pathlib import Path
from typing import Any

from edgekit.errors import ResourceError
from edgekit.files import pairs

#: Longest file name of common file systems, in bytes.
NAME_LIMIT = 255
_EXCHANGE, _HERE = 2, -100  # RENAME_EXCHANGE and AT_FDCWD of <linux/fs.h> and <fcntl.h>
_KEEP_SIZE = 1  # FALLOC_FL_KEEP_SIZE of <linux/falloc.h>
_BEGIN_WRITING = 2  # SYNC_FILE_RANGE_WRITE of <fcntl.h>
_IN_MEMORY = (0x01021994, 0x858458F6)  # TMPFS_MAGIC and RAMFS_MAGIC of <linux/magic.h>
_NO_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EXDEV, errno.EPERM)


def hidden(target: Path, what: str) -> Path:
    """Return ``.NAME.what`` beside a target; a name that is too long is replaced by a digest."""
    name = f".{target.name}.{what}"
    if len(os.fsencode(name)) > NAME_LIMIT:
        name = f".{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:32]}.{what}"
    return target.with_name(name)


def clear(path: Path) -> None:
    """Remove a file, a link (not its target) or a directory."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        _remove_tree(path)
    else:
        path.unlink(missing_ok=True)


def _remove_tree(path: Path) -> None:
    try:
        shutil.rmtree(path)
    except PermissionError:
        _unprotect(path)
        shutil.rmtree(path)


def _unprotect(directory: Path) -> None:
    """Make write-protected directories writable, so that their content can be deleted."""
    os.chmod(directory, 0o700)
    for entry in list(directory.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            _unprotect(entry)


def recover(target: Path) -> None:
    """Restore or delete the files of a killed run; called under the lock.

    Raises:
        ResourceError: a file can be neither restored nor deleted; names it.
    """
    old = hidden(target, "old")
    if old.is_dir() and not old.is_symlink() and not os.path.lexists(target):
        os.rename(old, target)  # killed between two renames
    for what in ("old", "gone", "manifest"):
        left = hidden(target, what)
        try:
            clear(left)
        except OSError as error:
            raise ResourceError(
                f"cannot write {target}: an earlier run has left {left}, which cannot be deleted ({error.strerror}); "
                "delete it, or choose another target"
            ) from error


def sync_directory(path: Path) -> None:
    """Sync a directory's entries to the disk."""
    if os.name == "nt":  # directories cannot be opened there
        return
    _sync(path)


def sync_tree(path: Path) -> None:
    """Sync a directory and everything in it to the disk."""
    for folder, _, files in os.walk(path, onerror=_raised):
        for file in files:
            _sync(Path(folder, file))
        sync_directory(Path(folder))


def entries_below(directory: Path) -> list[Path]:
    """Return everything below a directory but directories themselves, sorted; links are not followed.

    Raises:
        OSError: a directory cannot be listed. `Path.rglob` takes one without permission for an empty one.
    """
    found = []
    for folder, folders, files in os.walk(directory, onerror=_raised):
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        found += [Path(folder, name) for name in (*files, *links)]
    return sorted(found)


def _raised(error: OSError) -> None:
    raise error


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_small(path: Path, data: bytes) -> None:
    """Write and sync a small file; a file of that name is overwritten, a link is not followed."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
    with open(os.open(path, flags, 0o666), "wb", buffering=0) as file:
        write_all(file, memoryview(data))
        os.fsync(file.fileno())


def write_all(file: Any, view: memoryview) -> None:
    """Write all bytes; a raw write may accept fewer."""
    while view:
        view = view[file.write(view[: 1 << 30]) :]


def replace_pair(partial: Path, target: Path, manifest: bytes) -> None:
    """Replace a target by a file, with its manifest; the file's rename is the commit point.

    Before it, the manifest beside the target has the records of the old and the new file; after it, only the latter. If
    the rename fails, the manifest is restored.
    """
    path = pairs.beside(target)
    before = path.read_bytes() if path.is_file() else None
    record = pairs.sealed(manifest, partial)
    previous = pairs.previous(before, target)
    _replace_small(target, path, pairs.dumped({**record, **previous}))
    try:
        sync_directory(target.parent)
        os.replace(partial, target)  # the commit point
    except BaseException:
        if os.path.lexists(partial):  # an interrupt may come just after the rename
            _put_back(target, path, before)
        raise
    sync_directory(target.parent)
    if previous:
        _replace_small(target, path, pairs.dumped(record))
        sync_directory(target.parent)


def _put_back(target: Path, path: Path, before: bytes | None) -> None:
    if before is None:
        path.unlink(missing_ok=True)
    else:
        _replace_small(target, path, before)


def _replace_small(target: Path, path: Path, data: bytes) -> None:
    temporary = hidden(target, "manifest")
    try:
        write_small(temporary, data)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def replace_directory(new: Path, target: Path) -> None:
    """Replace a target by a directory; the old one is deleted last.

    If the system can exchange two directories in one step, the target exists at every instant. Elsewhere it is missing
    between two renames; if the second one fails, the first is undone.
    """
    if not os.path.lexists(target):
        os.rename(new, target)
        sync_directory(target.parent)
        return
    if exchange(new, target):
        old = new
    else:
        old = hidden(target, "old")
        try:
            os.rename(target, old)
            os.rename(new, target)
        except BaseException:
            if not os.path.lexists(target):  # an interrupt may come after either
                os.rename(old, target)
            raise
    sync_directory(target.parent)
    with contextlib.suppress(OSError):  # the artifact is complete; the next run deletes the rest
        gone = hidden(target, "gone")
        os.rename(old, gone)
        _remove_tree(gone)


def exchange(one: Path, other: Path) -> bool:
    """Exchange two directory entries atomically; False if the system or the file system does not support it."""
    renameat2 = _renameat2()
    if renameat2 is None:
        return False
    if renameat2(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(other))


def allocate(descriptor: int, nbytes: int) -> bool:
    """Allot disk blocks for the first `nbytes` bytes of a file, whose size stays; False where the system cannot.

    `os.posix_fallocate` writes into every block where the file system cannot, and lengthens the file. In memory the
    system fills every page with zeros, one after the other, which takes longer than writing it: False there as well.

    Raises:
        OSError: the disk is full.
    """
    fallocate = _fallocate()
    if fallocate is None or nbytes <= 0 or _file_system(descriptor) in _IN_MEMORY:
        return False
    if fallocate(descriptor, _KEEP_SIZE, 0, nbytes) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
        raise OSError(code, os.strerror(code))
    return False


@cache
def _fallocate() -> Any:
    return _of_linux("fallocate64", ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def start_writing(descriptor: int, offset: int, nbytes: int) -> None:
    """Have the system begin to write bytes of a file to the disk, where it can; nothing waits, and no error comes.

    The sync at the end then waits for the last bytes alone.
    """
    if (sync_file_range := _sync_file_range()) is not None:
        sync_file_range(descriptor, offset, nbytes, _BEGIN_WRITING)


@cache
def _sync_file_range() -> Any:
    return _of_linux("sync_file_range", ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


def _file_system(descriptor: int) -> int:
    """Return the magic number of a file's system, the first field of `struct statfs`; 0 where it is unknown."""
    if (fstatfs := _fstatfs()) is None:
        return 0
    status = (ctypes.c_ulong * 64)()  # longer than the structure on any platform
    return int(status[0]) if fstatfs(descriptor, ctypes.byref(status)) == 0 else 0


@cache
def _fstatfs() -> Any:
    return _of_linux("fstatfs", ctypes.c_int, ctypes.c_void_p)


@cache
def _renameat2() -> Any:
    return _of_linux("renameat2", ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)


def _of_linux(name: str, *types: Any) -> Any:
    """Return a function of Linux' C library; None if it has none."""
    if not sys.platform.startswith("linux"):
        return None
    function = getattr(ctypes.CDLL(None, use_errno=True), name, None)
    if function is not None:
        function.argtypes = types
    return function


__all__ = [
    "NAME_LIMIT",
    "allocate",
    "clear",
    "entries_below",
    "exchange",
    "hidden",
    "recover",
    "replace_directory",
    "replace_pair",
    "start_writing",
    "sync_directory",
    "sync_tree",
    "write_all",
    "write_small",
]
