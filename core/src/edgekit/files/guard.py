"""Protects sources, and files that edgekit did not write, from being overwritten.

A verb that reads a model and writes another declares both with `working`. Every `edgekit.files.atomic` writer inside,
including those of plugins, refuses a target that is, contains, or lies inside a source, and checks before its commit
point that no source was changed while it was read.

Files are compared by device and inode, so that links, spelling, case and mounts do not matter.
"""

from __future__ import annotations

import fnmatch
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

import attrs

from edgekit.errors import ChangedSourceError, EdgekitError, UsageError
from edgekit.files import pairs
from edgekit.files._problems import writing
from edgekit.files.digests import has_digest

#: Nanoseconds. A file modified within this time before it is opened may change again with the same times.
_RACY = 2_000_000_000
#: Files of a model's directory besides weights, which are copied unchanged.
CARRIED_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.json",
    "chat_template.jinja",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
)
#: Names in a directory that an artifact's writer may replace; anything else belongs to the user.
ARTIFACT_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "preprocessor_config.json",
    *CARRIED_FILES,
    "additional_chat_templates/*.jinja",
    "modules.json",
    "[0-9]_*/config.json",
    "[0-9]_*/model.safetensors",
    "edgekit.manifest.json",
)
_LINKS = 40
_LOOKS = 8
Identity = tuple[int, int]


@attrs.frozen
class Stamp:
    """The identity, size and times of a file when it was opened.

    Attributes:
        identity: device and inode.
        size: bytes.
        modified, changed: of the content, and of anything; nanoseconds.
        taken: time of the stamp, nanoseconds; not compared.
    """

    identity: Identity
    size: int
    modified: int
    changed: int
    taken: int = attrs.field(eq=False)

    @classmethod
    def of(cls, path: Path) -> Stamp | None:
        """Return the stamp of a file or directory; None if it cannot be read."""
        try:
            status = os.stat(path)
        except (OSError, ValueError):
            return None
        identity = (status.st_dev, status.st_ino)
        return cls(identity, status.st_size, status.st_mtime_ns, status.st_ctime_ns, time.time_ns())

    def same_content(self, other: Stamp) -> bool:
        """Return whether size and times show no change of the content."""
        return (self.identity, self.size, self.modified) == (other.identity, other.size, other.modified)

    @property
    def racy(self) -> bool:
        """Return whether a change just after the stamp could have the same times."""
        return max(self.modified, self.changed) > self.taken - _RACY


def stamps(files: Iterable[Path]) -> dict[Path, Stamp | None]:
    """Return a stamp for each file."""
    return {file: Stamp.of(file) for file in files}


@attrs.define
class Work:
    """The sources and the target of a running verb.

    Attributes:
        target: as given.
        reads: the sources, with their stamps when they were opened.
        overwrite: whether to replace a target that edgekit did not write.
        hashes: digests of the sources, by file name, if they are computed; see `edgekit.files.digests`.
        notes: remarks about the target for the user, one sentence each.
        restarted: remark that nothing of an interrupted run could be used; else empty.
    """

    target: Path
    reads: Mapping[Path, Stamp | None]
    overwrite: bool = False
    hashes: Mapping[str, str] = attrs.field(factory=dict)
    notes: list[str] = attrs.field(factory=list)
    restarted: str = ""

    def admit(self, target: Path, early: bool = False) -> None:
        """Raise if a target must not be written.

        Args:
            target: the file or directory.
            early: whether the writer, which checks a directory's files in detail, has not begun yet.

        Raises:
            UsageError: it is, contains or lies inside a source, or exists and was not written by edgekit.
        """
        refuse_harm(target, self.reads)
        if os.path.realpath(target) == os.path.realpath(self.target):
            self._refuse_foreign(target, early)

    def _refuse_foreign(self, target: Path, early: bool) -> None:
        for _ in range(_LOOKS):  # another run may be replacing it: look again if it changed meanwhile
            before = Stamp.of(target)
            if target.exists() and not (target.is_file() or target.is_dir()):  # --force would not help
                raise UsageError(f"{target} is a device or a pipe, not a regular file; name a file to write")
            entries = _entries(target)
            if before is None or not entries:
                return
            if early and target.is_dir() and not all(matches(entry.name, ARTIFACT_FILES) for entry in entries):
                return
            if self.overwrite or _written_here(target, before):
                return self.note(f"{target} existed and is replaced")
            if Stamp.of(target) == before:
                break
        raise UsageError(
            f"{target} exists and was not written by edgekit; choose another target, or replace it with "
            "--force (overwrite=True)"
        )

    def note(self, text: str) -> None:
        """Add a note, unless it was added before."""
        if text not in self.notes:
            self.notes.append(text)

    def restart(self) -> None:
        """Add the note that nothing of an interrupted run could be used."""
        self.restarted = "nothing of what an interrupted run left could be used, so this one started anew"
        self.note(self.restarted)

    def check_sources(self, hashes: bool = True) -> None:
        """Raise if a source was changed since it was opened.

        Args:
            hashes: whether to read a file again if its times are not conclusive.

        Raises:
            ChangedSourceError: one was changed, replaced or deleted since.
        """
        for file, stamp in self.reads.items():
            if stamp is not None and not (file.is_dir() or self._unchanged(file, stamp, hashes)):
                raise ChangedSourceError(
                    f"{file}: changed while it was read, so the result would be a mixture and was not written; "
                    "run it again when nothing else writes the file"
                )

    def blame_sources(self, error: Exception) -> None:
        """Raise `ChangedSourceError` if an error was caused by a source that changed."""
        try:
            self.check_sources(hashes=False)
        except ChangedSourceError as changed:
            raise changed from error

    def _unchanged(self, file: Path, stamp: Stamp, hashes: bool) -> bool:
        now = Stamp.of(file)
        if now is None or not stamp.same_content(now):
            return False
        if not hashes or (stamp == now and not stamp.racy) or file.name not in self.hashes:
            return True
        return has_digest(file, self.hashes[file.name])


_WORK: ContextVar[Work | None] = ContextVar("edgekit_work", default=None)


def current() -> Work | None:
    """Return the work that the running verb declared with `working`."""
    return _WORK.get()


@contextmanager
def working(
    target: Path, reads: Mapping[Path, Stamp | None], overwrite: bool = False, notes: list[str] | None = None
) -> Iterator[Work]:
    """Declare what is read and written; every writer inside checks against it.

    Args:
        target: the file or directory to write.
        reads: every file that is read, and a source's directory, with their `Stamp`.
        overwrite: replace a target that edgekit did not write.
        notes: list to which remarks for the user are appended.

    Raises:
        UsageError: as `Work.admit`, before anything is opened for writing.
    """
    work = Work(target, reads, overwrite, notes=[] if notes is None else notes)
    work.admit(target, early=True)
    token = _WORK.set(work)
    try:
        yield work
    except ChangedSourceError:
        raise
    except Exception as error:
        work.blame_sources(error)
        raise
    finally:
        _WORK.reset(token)


def refuse_harm(target: Path, reads: Iterable[Path]) -> None:
    """Refuse a target that is, contains, or lies inside anything that is read.

    Args:
        target: the file or directory to write; its manifest beside it counts as well.
        reads: files and directories; links on the way to them count as well.

    Raises:
        UsageError: names both.
    """
    with writing(target):
        identities = _identities([target])
        inside = _identities(Path(os.path.realpath(target)).parents)
        beside = _identities([pairs.beside(Path(os.path.realpath(target)))])
        held = _identities(_entries(target)) if target.is_dir() else set()
        lineages = {source: _lineage(source) for source in reads}
        if any(itself & (identities | beside) for itself, _ in lineages.values()):
            raise UsageError(f"{target}: the target is the source; choose another path")
        for source, (itself, above) in lineages.items():
            if itself & inside:
                raise UsageError(f"{target}: the target lies inside the source {source}; choose a path outside of it")
            if above & identities or itself & held:
                raise UsageError(f"{target}: the target holds the source {source}; choose another path")


def _lineage(source: Path) -> tuple[set[Identity], set[Identity]]:
    """Return identities of a source and of every directory above it, through all links."""
    ways = [source, *_hops(source), Path(os.path.realpath(source))]
    above = {parent for way in ways for parent in (*way.absolute().parents, *_real(way).parents)}
    return _identities([source]), _identities(above)


def _hops(path: Path) -> Iterator[Path]:
    """Yield a path and the links that it leads through."""
    for _ in range(_LINKS):
        if not path.is_symlink():
            return
        path = path.parent / os.readlink(path)
        yield path


def _real(path: Path) -> Path:
    """Return the path, which may be a link, in its real directory."""
    return Path(os.path.realpath(path.absolute().parent)) / path.name


def _identities(paths: Iterable[Path]) -> set[Identity]:
    return {stamp.identity for stamp in map(Stamp.of, paths) if stamp}


def _written_here(target: Path, before: Stamp) -> bool:
    try:
        with writing(target):
            return pairs.written_here(target)
    except EdgekitError:
        if Stamp.of(target) == before:
            raise
        return False  # it is being replaced


def _entries(target: Path) -> list[Path]:
    """Return the entries of a directory, or the file itself; empty if it no longer exists."""
    with writing(target), suppress(FileNotFoundError):
        return list(target.iterdir()) if target.is_dir() else [target]
    return []


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Return whether a file name matches one of the patterns."""
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


__all__ = ["ARTIFACT_FILES", "CARRIED_FILES", "Stamp", "Work", "current", "matches", "refuse_harm", "stamps", "working"]
