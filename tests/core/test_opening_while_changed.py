"""A model whose files are changed while it is opened: what is opened is what lies there in the end, or an error."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

import edgekit
from edgekit.errors import InvalidFileError
from edgekit.formats import hf, safetensors


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "nobody", "number": 1}')
    safetensors.write(folder / "model.safetensors", {"w": np.ones((8, 32), np.float32)})
    for file in folder.iterdir():
        os.utime(file, ns=(0, 0))
    return folder


def after_the_first_opening(monkeypatch: pytest.MonkeyPatch, change) -> list[int]:
    """Do something when a directory was read and its stamps are not taken yet; count the openings."""
    openings, artifact = [], hf.Artifact

    def made(*arguments, **named):
        openings.append(len(openings))
        if len(openings) == 1:
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
