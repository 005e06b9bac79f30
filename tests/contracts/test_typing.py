"""Type checkers accept what the README writes, and find what is wrong in it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import edgekit

pytest.importorskip("mypy", reason="the type checker")

ROOT = Path(__file__).resolve().parents[2]
README = "\n".join(
    re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)
)
USES = """
from collections.abc import Sequence
from typing import Any, Self, Unpack

import edgekit as ek
from edgekit.runtime import Generation, GenerationOptions, Runtime

artifact = ek.open("model")
reveal_type(artifact)
reveal_type(ek.plugins())
reveal_type(ek.__version__)
with ek.load(artifact, runtime="numpy") as model:
    reveal_type(model.chat("Hi", stop="x", max_tokens=3))
    reveal_type(model.generate("Hi", stop=None))
    for piece in model.chat_stream([{"role": "user", "content": "Hi"}]):
        print(piece)
ek.quantize(artifact, "Q4_0", to="x", progress=True)


def ask(model: Runtime, **options: Unpack[GenerationOptions]) -> str:
    return model.generate("Hi", **options)


class Theirs:
    name = "theirs"

    def logits(self, tokens: object) -> Any:
        raise NotImplementedError

    def generate(self, prompt: str | Sequence[int], **options: Unpack[GenerationOptions]) -> str:
        raise NotImplementedError

    def stream(self, prompt: str | Sequence[int], **options: Unpack[GenerationOptions]) -> Generation:
        raise NotImplementedError

    def close(self) -> None: ...
    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None: ...


ask(Theirs(), seed=3, stop=["x"])
ek.compare(artifact, artifact, progress=lambda done, total, what: None).by_error(3)
"""
REVEALED = [
    "edgekit.artifact.Artifact",
    "tuple[edgekit.plugin._registry.PluginInfo, ...]",
    "str",
    "str",
    "str",
]
WRONG = {
    "ek.opne('model')": "has no attribute",
    "ek.open(3)": "arg-type",
    "ek.load('model').generate(5)": "arg-type",
    "ek.quantize('model', 'Q4_0')": "call-arg",
    "ek.load('model').generate('Hi', stopp='x')": "call-arg",
    "ek.load('model').chat('Hi', top_k='x')": "arg-type",
}


def mypy(tmp_path, code):
    file = tmp_path / "code.py"
    file.write_text(code)
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--config-file",
        os.devnull,
        "--cache-dir",
        str(tmp_path / "c"),
    ]
    environment = {**os.environ, "MYPYPATH": str(Path(edgekit.__file__).parents[1])}
    done = subprocess.run([*command, str(file)], capture_output=True, text=True, env=environment, check=False)
    return done.returncode, done.stdout


def test_the_readme_and_what_users_write_are_accepted(tmp_path):
    code, said = mypy(tmp_path, f"{README}\n{USES}")
    assert code == 0, said
    assert re.findall(r'Revealed type is "([^"]+)"', said.replace("builtins.", "")) == REVEALED


def test_what_is_wrong_is_found(tmp_path):
    code, said = mypy(tmp_path, "import edgekit as ek\n" + "\n".join(WRONG))
    lines = said.splitlines()
    assert code == 1
    for number, (wrong, says) in enumerate(WRONG.items(), 2):
        assert any(f"code.py:{number}: " in line and says in line for line in lines), f"{wrong}: {said}"


def test_dir_shows_the_api_alone():
    assert dir(edgekit) == sorted(edgekit.__all__)
    assert set(edgekit.__all__) == {*edgekit._WHERE, "__version__"}
    assert all(getattr(edgekit, name) is not None for name in edgekit.__all__)
