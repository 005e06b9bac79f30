"""A model whose files are changed while it is opened: what is opened is what lies there in the end, or an error."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

import edgekit
from edgekit.errors import ChangedSourceError, InvalidFileError
from edgekit.formats import hf, safetensors
from edgekit.pipeline import _conversion


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "nobody", "number": 1}')
    safetensors.write(folder / "model.safetensors", {"w": np.ones((8, 32), np.float32)})
    for file in folder.iterdir():
        os.utime(file, ns=(0, 0))
    return folder


def after_the_first_opening(monkeypatch: pytest.MonkeyPatch, change, *, openings_changed: int = 1) -> list[int]:
    """Do something when a directory was read and its stamps are not taken yet; count the openings."""
    openings, artifact = [], hf.Artifact

    def made(*arguments, **named):
        openings.append(len(openings))
        if len(openings) <= openings_changed:
            change()
        return artifact(*arguments, **named)

    monkeypatch.setattr(hf, "Artifact", made)
    return openings


def test_a_file_that_was_overwritten_in_place_is_read_again(model, monkeypatch):
    """Its directory has the times of before, and the file's stamp would be that of what was not read."""
    openings = after_the_first_opening(
        monkeypatch, lambda: (model / "config.json").write_text('{"model_type": "nobody", "number": 2}')
    )
    assert edgekit.open(model).config["number"] == 2
    assert len(openings) == 2


def test_a_file_that_was_emptied_is_refused(model, monkeypatch):
    after_the_first_opening(monkeypatch, lambda: os.truncate(model / "config.json", 0))
    with pytest.raises(InvalidFileError, match=r"config\.json"):
        edgekit.open(model)


def test_a_file_that_nothing_reads_may_change(model, monkeypatch):
    (model / "training.log").write_text("step 1")
    openings = after_the_first_opening(monkeypatch, lambda: (model / "training.log").write_text("step 2"))
    assert edgekit.open(model).config == json.loads((model / "config.json").read_text())
    assert len(openings) == 1


def numbered(model: Path):
    """Give the model's configuration the next number, in a file that replaces the one of before."""

    def change() -> None:
        config = json.loads((model / "config.json").read_text())
        (model / "next").write_text(json.dumps({**config, "number": config["number"] + 1}))
        os.replace(model / "next", model / "config.json")

    return change


def test_a_file_that_was_replaced_twenty_times_is_read_as_it_is_in_the_end(model, monkeypatch):
    openings = after_the_first_opening(monkeypatch, numbered(model), openings_changed=20)
    assert edgekit.open(model).config["number"] == 21
    assert len(openings) == 21


def test_a_file_that_is_replaced_at_every_opening_is_refused(model, monkeypatch):
    """What was read at last may be of two models: until this was refused, it was opened."""
    monkeypatch.setattr(_conversion, "_PATIENCE", 0.2)
    after_the_first_opening(monkeypatch, numbered(model), openings_changed=1 << 30)
    with pytest.raises(ChangedSourceError, match="nothing writes to it"):
        edgekit.open(model)
