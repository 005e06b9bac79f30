"""A source is never harmed, what edgekit did not write is not overwritten, and a source that changes is noticed."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import edgekit
from edgekit import sample
from edgekit.cli import cli
from edgekit.errors import ChangedSourceError, InvalidFileError, UsageError
from edgekit.files import digests as digests_module
from edgekit.files import guard
from edgekit.files.atomic import AtomicDirectory, AtomicFile
from edgekit.files.guard import Stamp, refuse_harm, stamps, working
from edgekit.formats import safetensors

RECIPE = "affine:int4-sym-g32"


def digests(folder: Path) -> dict[str, str]:
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def model(folder: Path, shards: int = 1) -> Path:
    """A Hugging Face directory without a known family, its weights in one file or in several."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "nobody"}')
    arrays = {f"w{n}.weight": np.full((8, 32), n, np.float32) for n in range(4)}
    if shards == 1:
        safetensors.write(folder / "model.safetensors", arrays)
        return folder
    names = [f"model-{n + 1:05}-of-{shards:05}.safetensors" for n in range(shards)]
    for number, name in enumerate(names):
        safetensors.write(folder / name, {k: v for i, (k, v) in enumerate(arrays.items()) if i % shards == number})
    index = ", ".join(f'"w{n}.weight": "{names[n % shards]}"' for n in range(4))
    (folder / "model.safetensors.index.json").write_text(f'{{"weight_map": {{{index}}}}}')
    return folder


RELATIONS: dict[str, Callable[[Path], Path]] = {
    "the directory": lambda m: m,
    "spelled otherwise": lambda m: Path(f"{m}/../{m.name}/."),
    "a file of it": lambda m: m / "config.json",
    "another shard": lambda m: max(m.glob("*.safetensors")),
    "its parent": lambda m: m.parent,
    "its grandparent": lambda m: m.parent.parent,
    "inside it": lambda m: m / "new",
    "deep inside it": lambda m: m / "new" / "newer",
}


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("link", ["", "directory"])
def test_no_target_harms_the_source(tmp_path: Path, shards: int, relation: str, link: str) -> None:
    folder = model(tmp_path / "a" / "b" / "m", shards)
    before = digests(tmp_path)
    named = folder
    if link:
        named = tmp_path / "link"
        named.symlink_to(folder)
    target = RELATIONS[relation](folder)
    for verb in (
        lambda: edgekit.quantize(named, RECIPE, to=target, format="hf"),
        lambda: edgekit.quantize(edgekit.open(named), RECIPE, to=target, format="hf", overwrite=True),
        lambda: edgekit.convert(named, target, format="hf", dtype="F16"),
    ):
        with pytest.raises(UsageError, match=r"the target (is|holds|lies inside) the source"):
            verb()
    result = CliRunner().invoke(cli, ["quantize", str(named), RECIPE, "--to", str(target), "--format", "hf", "--force"])
    assert isinstance(result.exception, UsageError)
    assert result.exception.exit_code == 2
    assert digests(tmp_path) == before


def test_a_link_as_the_target_is_followed(tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    before = digests(tmp_path)
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "chain").symlink_to("link")
    for target in (tmp_path / "link", tmp_path / "chain", tmp_path / "chain" / "sub"):
        with pytest.raises(UsageError, match="the target"):
            edgekit.quantize(folder, RECIPE, to=target)
    shutil.rmtree(tmp_path / "link", ignore_errors=True)  # a link is no directory: refused, so it stays
    (tmp_path / "link").unlink()
    (tmp_path / "chain").unlink()
    assert digests(tmp_path) == before


def test_a_hard_link_is_the_source(tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    other = tmp_path / "other"
    other.mkdir()
    os.link(folder / "model.safetensors", other / "model.safetensors")
    with pytest.raises(UsageError, match="holds the source"):
        edgekit.quantize(folder, RECIPE, to=other, overwrite=True)
    with pytest.raises(UsageError, match="the target is the source"):
        refuse_harm(other / "model.safetensors", [folder / "model.safetensors"])


def test_every_link_on_the_way_counts(tmp_path: Path) -> None:
    """As in the hub's cache: names in a snapshot lead to blobs elsewhere."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1"
    for folder in (blobs, snapshot, tmp_path / "between"):
        folder.mkdir(parents=True)
    (blobs / "b").write_bytes(b"weights")
    (tmp_path / "between" / "l").symlink_to("../blobs/b")
    (snapshot / "model.safetensors").symlink_to("../../between/l")
    for target in (blobs / "b", blobs, tmp_path / "between", tmp_path / "between" / "l", snapshot, tmp_path):
        with pytest.raises(UsageError, match=r"the target (is|holds) the source"):
            refuse_harm(target, [snapshot / "model.safetensors"])
    refuse_harm(blobs / "c", [snapshot / "model.safetensors"])
    refuse_harm(snapshot / "other.gguf", [snapshot / "model.safetensors"])


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="this system has no /proc/self/fd")
def test_a_descriptors_name_is_the_file(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"x")
    with (tmp_path / "source").open("rb") as file, pytest.raises(UsageError, match="the target is the source"):
        refuse_harm(Path(f"/proc/self/fd/{file.fileno()}"), [tmp_path / "source"])


def test_a_manifest_that_would_be_written_over_a_source(tmp_path: Path) -> None:
    (tmp_path / "m.gguf.edgekit.json").write_bytes(b"x")
    with pytest.raises(UsageError, match="the target is the source"):
        refuse_harm(tmp_path / "m.gguf", [tmp_path / "m.gguf.edgekit.json"])


def test_every_writer_inside_a_verb_holds_to_it(tmp_path: Path) -> None:
    """Whatever a plugin writes besides its target."""
    folder = model(tmp_path / "m")
    before = digests(tmp_path)
    with working(tmp_path / "out", stamps([folder, folder / "config.json"])):
        with pytest.raises(UsageError, match="the target is the source"):
            AtomicFile(folder / "config.json")
        with pytest.raises(UsageError, match="the target is the source"):
            AtomicDirectory(folder)
        with pytest.raises(UsageError, match="lies inside the source"):
            AtomicFile(folder / "notes.json")
    assert digests(tmp_path) == before
    assert guard.current() is None


def test_what_edgekit_did_not_write_is_not_overwritten(tmp_path: Path) -> None:
    source, target = model(tmp_path / "m"), model(tmp_path / "mine")
    before = digests(target)
    message = (
        f"{target} exists and was not written by edgekit; choose another target, or replace it with --force "
        "(overwrite=True)"
    )
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        edgekit.quantize(source, RECIPE, to=target)
    assert digests(target) == before
    result = CliRunner().invoke(cli, ["quantize", str(source), RECIPE, "--to", str(target)])
    assert isinstance(result.exception, UsageError)
    assert digests(target) == before
    assert CliRunner().invoke(cli, ["quantize", str(source), RECIPE, "--to", str(target), "--force"]).exit_code == 0
    assert edgekit.open(target).manifest is not None


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_pipe_is_refused_without_the_advice_to_force_it(tmp_path: Path, overwrite: bool) -> None:
    os.mkfifo(tmp_path / "t")
    with pytest.raises(UsageError) as caught, working(tmp_path / "t", {}, overwrite):
        pass
    assert str(caught.value) == f"{tmp_path / 't'} is a device or a pipe, not a regular file; name a file to write"


def test_what_edgekit_wrote_is_replaced_and_said(tmp_path: Path) -> None:
    source, target, notes = model(tmp_path / "m"), tmp_path / "q", list[str]()
    first = edgekit.quantize(source, RECIPE, to=target, notes=notes)
    assert not any("replaced" in note for note in notes)
    manifest = (target / "edgekit.manifest.json").read_bytes()
    second = edgekit.quantize(source, RECIPE, to=target, notes=notes)
    assert f"{target} existed and is replaced" in notes
    assert second.notes.keys() - first.notes.keys() == {"replaced"}
    assert (target / "edgekit.manifest.json").read_bytes() == manifest, "the same command, the same bytes"
    assert sorted(os.listdir(tmp_path)) == ["m", "q"]


def test_an_empty_directory_is_nobodys(tmp_path: Path) -> None:
    (tmp_path / "q").mkdir()
    assert edgekit.quantize(model(tmp_path / "m"), RECIPE, to=tmp_path / "q").manifest is not None


def test_a_manifest_of_another_file_does_not_make_a_file_ours(tmp_path: Path) -> None:
    with AtomicFile(tmp_path / "f", manifest=True) as file:
        file.write(b"ours")
        file.commit(b'{"schema": 1}')
    with working(tmp_path / "f", {}) as work:
        assert work.notes == [f"{tmp_path / 'f'} existed and is replaced"]
    (tmp_path / "f").write_bytes(b"mine")
    with pytest.raises(UsageError, match="exists and was not written by edgekit"), working(tmp_path / "f", {}):
        pass


def changes(file: Path) -> dict[str, Callable[[], object]]:
    def in_place() -> None:
        with file.open("r+b") as opened:
            opened.seek(-4, os.SEEK_END)
            opened.write(b"zzzz")

    def in_place_with_old_times() -> None:
        times = os.stat(file)
        in_place()
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))

    def replaced() -> None:
        shutil.copy2(file, file.with_suffix(".new"))
        os.replace(file.with_suffix(".new"), file)

    return {
        "in place": in_place,
        "in place, times put back": in_place_with_old_times,
        "replaced": replaced,
        "deleted": file.unlink,
    }


@pytest.mark.parametrize("change", list(changes(Path())))
@pytest.mark.parametrize("which", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("late", [False, True])
def test_a_source_that_changes_is_noticed(tmp_path: Path, change: str, which: str, late: bool) -> None:
    source, target = model(tmp_path / "m"), tmp_path / "q"
    for file in source.iterdir():  # settled long ago
        os.utime(file, ns=(0, 0))
    edgekit.quantize(source, "affine:int8-sym-g32", to=target)
    before = digests(target)

    def progress(done: int, total: int, name: str) -> None:
        if done == (total if late else 1):
            changes(source / which)[change]()

    with pytest.raises((ChangedSourceError, InvalidFileError)) as caught:
        edgekit.quantize(source, RECIPE, to=target, progress=progress)
    assert caught.value.exit_code == 3
    assert digests(target) == before
    assert sorted(os.listdir(tmp_path)) == ["m", "q"]


@pytest.mark.parametrize("hashed", ["before the change", "after it"])
def test_what_an_interrupted_run_read_before_a_change_is_not_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hashed: str
) -> None:
    """The hash may be that of the new content, as large files are hashed for a while; the first tensors are not."""
    source, other = model(tmp_path / "m"), model(tmp_path / "other")
    safetensors.write(
        other / "model.safetensors", {f"w{n}.weight": np.full((8, 32), 9 + n, np.float32) for n in range(4)}
    )
    for file in source.iterdir():
        os.utime(file, ns=(0, 0))
    new, changed, real = (other / "model.safetensors").read_bytes(), threading.Event(), digests_module._sha256

    def late(file: Path, stopped: threading.Event) -> bytes:
        changed.wait(10)
        return real(file, stopped)

    def progress(done: int, total: int, name: str) -> None:
        if done == 2 and hashed == "after it":
            with (source / "model.safetensors").open("r+b") as opened:
                opened.write(new)
            changed.set()
        if done == 3:
            raise KeyboardInterrupt

    if hashed == "after it":
        monkeypatch.setattr(digests_module, "_sha256", late)
    with pytest.raises((KeyboardInterrupt, ChangedSourceError)):
        edgekit.quantize(source, RECIPE, to=tmp_path / "q", progress=progress)
    (source / "model.safetensors").write_bytes(new)
    edgekit.quantize(source, RECIPE, to=tmp_path / "q")
    edgekit.quantize(other, RECIPE, to=tmp_path / "undisturbed")
    assert digests(tmp_path / "q") == digests(tmp_path / "undisturbed")


def test_a_unit_of_a_source_that_changed_is_not_noted(tmp_path: Path) -> None:
    """However the process ends after it."""
    (source := tmp_path / "s").write_bytes(b"old")
    with (
        working(tmp_path / "t", stamps([source])),
        AtomicFile(tmp_path / "t", fingerprint=lambda: b"f") as file,
    ):
        file.write(b"first")
        file.unit_done()
        source.write_bytes(b"changed")
        file.write(b"second")
        with pytest.raises(ChangedSourceError):
            file.unit_done()
        assert file.done == 1


def test_what_came_to_the_target_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "t"
    with working(target, {}), AtomicFile(target) as file:
        file.write(b"ours")
        target.write_bytes(b"theirs")
        with pytest.raises(UsageError, match="exists and was not written by edgekit"):
            file.commit()
    assert target.read_bytes() == b"theirs"
    assert os.listdir(tmp_path) == ["t"]


@pytest.mark.parametrize("damage", ["nothing", "a line", "the data", "another recipe"])
def test_a_run_that_cannot_use_what_is_left_says_so(tmp_path: Path, damage: str) -> None:
    source, target = model(tmp_path / "m"), tmp_path / "q"

    def progress(done: int, total: int, name: str) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        edgekit.quantize(source, RECIPE, to=target, progress=progress)
    partial = tmp_path / ".q.partial" / ".model.safetensors.partial"
    journal = partial.with_name(partial.name + ".json")
    match damage:
        case "a line":
            journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[1:]))
        case "the data":
            partial.write_bytes(b"x" + partial.read_bytes()[1:])
    recipe = "affine:int8-sym-g32" if damage == "another recipe" else RECIPE
    result = CliRunner().invoke(cli, ["quantize", str(source), recipe, "--to", str(target)])
    assert result.exit_code == 0, result.output
    said = "nothing of what an interrupted run left could be used, so this one started anew"
    assert (said in result.output) == (damage != "nothing")
    kinds = edgekit.quantize(source, recipe, to=target).notes
    assert "restarted" not in kinds, "neither the manifest nor a later run has it"


def test_a_touch_of_the_times_alone_is_no_change_of_the_content(tmp_path: Path) -> None:
    """A backup that makes hard links changes a file's ctime: the hash says that nothing else did."""
    source = model(tmp_path / "m")

    def progress(done: int, total: int, name: str) -> None:
        if done == 1:
            os.link(source / "model.safetensors", tmp_path / "backup")

    assert edgekit.quantize(source, RECIPE, to=tmp_path / "q", progress=progress).manifest is not None


def test_a_stamp_shortly_after_a_change_is_racy(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"x")
    stamp = Stamp.of(file)
    assert stamp is not None
    assert stamp.racy
    assert not Stamp(stamp.identity, 1, 0, 0, stamp.taken).racy
    assert Stamp.of(tmp_path / "none") is None


def test_the_sample_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the target"):
        edgekit.quantize(sample.path(), RECIPE, to=sample.path())


def test_the_demo_overwrites_nobodys_page(tmp_path: Path) -> None:
    page = tmp_path / "index.html"
    page.write_text("my own")
    result = CliRunner().invoke(cli, ["demo", "--out", str(tmp_path)])
    assert str(result.exception) == (
        f"{page} exists, and the demo did not write it; choose another directory with --out"
    )
    assert os.listdir(tmp_path) == ["index.html"]
    assert page.read_text() == "my own"
