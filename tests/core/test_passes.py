"""Passes: found by name, given what they take and understand, and reached from the command line."""

import json
import re
from typing import TypedDict, Unpack

import attrs
import pytest
from click.testing import CliRunner

from edgekit import sample
from edgekit.cli import cli
from edgekit.errors import InvalidFileError, MissingPluginError, UnsupportedModelError, UsageError
from edgekit.files.atomic import AtomicFile
from edgekit.manifest import Manifest
from edgekit.pipeline import _conversion as pipeline
from edgekit.pipeline import passes
from edgekit.pipeline.passes import run_pass, unread
from edgekit.plugin import Manager, Registration

REAL = pipeline.manager()


class Repeat:
    """Repeats the bytes of a file."""

    name = "repeat"

    def run(self, source, to, *, times=2, comment=""):
        data = source.path.read_bytes() if source.format == "txt" else b"hf"
        quality = {"growth": float(times), "comment": comment}
        with AtomicFile(to, manifest=True) as file:
            file.write(data * times)
            file.commit(Manifest(quality=quality).to_json().encode())
        return unread(to)


class Anything(Repeat):
    name = "anything"

    def run(self, source, to, **options):
        return super().run(source, to, times=len(options))


class Shared(TypedDict, total=False):
    comment: str


class Sharing(Repeat):
    name = "sharing"

    def run(self, source, to, *, times=2, **shared: Unpack[Shared]):
        return super().run(source, to, times=times, **shared)


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    found = [
        Registration("passes", "repeat", f"{__name__}:Repeat", "p", "edgekit-p", {"formats": ("txt", "hf")}),
        Registration("passes", "anything", f"{__name__}:Anything", "p", "edgekit-p", {}),
        Registration("passes", "sharing", f"{__name__}:Sharing", "p", "edgekit-p", {}),
        Registration("passes", "gguf-only", f"{__name__}:Anything", "p", "edgekit-p", {"formats": ("gguf",)}),
    ]
    monkeypatch.setattr(passes, "manager", lambda: Manager(registrations=[*REAL.registrations, *found]))


def test_a_pass_takes_artifacts_and_files_that_no_format_reads(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"ab")
    written = run_pass(tmp_path / "a.txt", "repeat", to=tmp_path / "b.txt", options={"times": 3})
    assert (tmp_path / "b.txt").read_bytes() == b"ababab"
    assert written.manifest.quality == {"growth": 3.0, "comment": ""}
    assert (written.format, dict(written.tensors), written.tokenizer) == ("txt", {}, None)
    with pytest.raises(
        UnsupportedModelError, match=r"b\.txt: no installed format reads \.txt files; only what converts"
    ):
        _ = written.model
    assert run_pass(sample.path(), "repeat", to=tmp_path / "c.txt").nbytes == 4
    assert run_pass(pipeline.open_artifact(sample.path()), "repeat", to=tmp_path / "c.txt").nbytes == 4
    assert run_pass(sample.path(), "anything", to=tmp_path / "c.txt", options={"x": 1, "y": 2, "z": 3}).nbytes == 6


def test_what_makes_no_sense_is_refused_before_the_pass_runs(tmp_path):
    source = tmp_path / "a.txt"
    source.write_bytes(b"ab")
    target = tmp_path / "b.txt"
    with pytest.raises(MissingPluginError, match=r"^no pass 'nothing' is installed \(available: .*repeat"):
        run_pass(source, "nothing", to=target)
    with pytest.raises(UsageError, match=r"^the pass 'repeat' has no option 'time'; it has times, comment$"):
        run_pass(source, "repeat", to=target, options={"time": 3})
    with pytest.raises(UsageError, match=r"^the pass 'sharing' has no option 'time'; it has times, comment$"):
        run_pass(sample.path(), "sharing", to=target, options={"comment": "x", "time": 3})
    assert run_pass(sample.path(), "sharing", to=tmp_path / "c.txt", options={"comment": "x"}).nbytes == 4
    with pytest.raises(UsageError, match=r"a\.txt: the target is the source; choose another path$"):
        run_pass(source, "repeat", to=source)
    with pytest.raises(InvalidFileError, match=r"a\.txt: no installed format recognises it"):
        run_pass(source, "gguf-only", to=target)
    refused = f"{sample.path()}: the pass 'gguf-only' takes gguf, this is hf; convert it first"
    with pytest.raises(UnsupportedModelError, match=f"^{re.escape(refused)}$"):
        run_pass(sample.path(), "gguf-only", to=target)
    odd = attrs.evolve(unread(source), format="odd")
    with pytest.raises(UnsupportedModelError, match=r"the pass 'repeat' takes txt, hf, this is odd; convert it first$"):
        run_pass(odd, "repeat", to=target)
    assert not target.exists()


def apart() -> CliRunner:
    """A runner that keeps stderr out of stdout; before click 8.2 that has to be asked for."""
    try:
        return CliRunner(mix_stderr=False)
    except TypeError:
        return CliRunner()


def test_the_command_line_reaches_every_pass(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"ab")
    line = ["apply", "repeat", str(tmp_path / "a.txt"), "--to", str(tmp_path / "b.txt"), "-o", "times=4"]
    done = CliRunner().invoke(cli, [*line, "-o", "comment=no JSON", "--json"], catch_exceptions=False)
    assert json.loads(done.stdout) == {
        "path": str(tmp_path / "b.txt"),
        "format": "txt",
        "pass": "repeat",
        "size": 8,
        "files": ["b.txt"],
        "quality": {"growth": 4.0, "comment": "no JSON"},
        "notes": {},
    }
    told = apart().invoke(cli, line, catch_exceptions=False).stdout
    assert told == f"{tmp_path / 'b.txt'}  8 B\n  comment: \n  growth: 4\n"
    with pytest.raises(UsageError, match=r"^-o 'times'; give NAME=VALUE, such as ratio=0\.8$"):
        CliRunner().invoke(cli, [*line[:-1], "times"], catch_exceptions=False)
