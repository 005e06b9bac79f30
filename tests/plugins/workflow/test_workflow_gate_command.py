"""`edgekit gate` and `edgekit blame` from the command line, with every category of gates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import edgekit
from edgekit import sample
from edgekit.cli import main
from edgekit_workflow.gates import CATEGORIES, GATES
from edgekit_workflow.gates.classifiers import OF_CLASSIFIERS
from edgekit_workflow.gates.quality import OF_EMBEDDINGS

#: Little text and few runs; edgekit's own pass is not twice as fast with fewer bits.
POLICY = """
[quality]
tokens = 512
[performance]
tokens = 4
repeats = 2
latency_variation = 100
[silent]
tokens = 8
[robustness]
tokens = 4
requests = 2
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return edgekit.quantize(sample.path(), "Q4_K_M", to=tmp_path_factory.mktemp("small") / "small.gguf").path


def run(*arguments: object) -> int:
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_gate_writes_a_certificate_and_exits_with_7(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, policy, target = tmp_path / "stories.txt", tmp_path / "gates.toml", tmp_path / "certificate.json"
    text.write_text(sample.heldout_text()[:4000])
    policy.write_text(POLICY)
    given = ("gate", small, "--against", sample.path(), "--policy", policy, "--runtime", "numpy", "--text", text)
    assert run(*given, "--to", target, "--json") == 7
    out, err = capsys.readouterr()
    assert out == target.read_text()
    *_, heading, line = err.strip().splitlines()
    assert heading.endswith("gates failed; mend the artifact, or change the limits in a policy:")
    assert line.startswith("  performance speedup: ")
    statement = json.loads(out)
    measured = statement["predicate"]["measurements"]
    assert [m["name"] for m in measured] == [name for name in GATES if name not in (*OF_EMBEDDINGS, *OF_CLASSIFIERS)]
    assert {m["category"] for m in measured} == set(CATEGORIES)
    assert statement["predicate"]["failedTests"] == ["performance/speedup"]
    assert statement["predicate"]["warnedTests"] == [
        "security/signature",
        "compliance/licence",
        "compliance/base_model",
    ]


def test_gate_prints_a_table_and_exits_with_0(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = tmp_path / "gates.toml"
    policy.write_text('skip = ["performance", "robustness", "quality", "runtime", "degenerate"]')
    assert run("gate", small, "--against", sample.path(), "--policy", policy, "--full") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["silent", "values", "passed", "1", "4"] in rows
    codes = next(row for row in rows if row[:2] == ["derivation", "codes"])
    assert codes[2:4] == ["passed", "1"]


def test_two_texts_of_one_name_are_refused(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "text.txt").write_text("words")
    texts = ("--text", tmp_path / "one" / "text.txt", "--text", tmp_path / "two" / "text.txt")
    assert run("gate", small, "--against", sample.path(), *texts) == 2
    assert "two files of one name" in capsys.readouterr().err


def test_blame_prints_each_layer(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "stories.txt"
    text.write_text(sample.heldout_text()[:2000])
    given = ("blame", small, "--against", sample.path(), "--runtime", "numpy", "--text", text)
    assert run(*given) == 0
    out = capsys.readouterr().out
    assert "no layer stands out" in out
    assert [line.split()[0] for line in out.splitlines()[-5:]] == ["embedding", "layer", "layer", "layer", "output"]
    assert run(*given, "--json") == 0
    assert json.loads(capsys.readouterr().out)["side"] == "neither"
