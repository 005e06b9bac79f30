"""Predicted and measured memory, for every runtime that is installed: real loads in processes of their own."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import pytest

from edgekit import sample
from edgekit_workflow.bench import measure
from edgekit_workflow.memory import footprint, memory_needed

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
from workflow_cases import CASES, options, written

CLOSE = 0.15


@pytest.fixture(scope="module")
def wide(write_llama, tmp_path_factory):
    """A random Llama of 56 million weights, F16."""
    return write_llama(
        tmp_path_factory.mktemp("wide") / "wide.gguf",
        layers=6,
        width=768,
        ffn=2048,
        heads=12,
        kv_heads=4,
        vocab=16_384,
        context=1024,
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Bytes that Python and a runtime's libraries take here, by runtime: measured on the unquantized sample.

    The share of the libraries differs between machines of one kind, by allocators, huge pages and thread counts: for
    MLX the table's 293 MB came from one, and 363 MB were measured on another. What a model adds does not.
    """

    @functools.cache
    def measured(format_name, runtime):
        artifact = written(sample.path(), format_name, None, tmp_path_factory.mktemp(f"base-{runtime}"))
        without = memory_needed(artifact, predicted_context(runtime), runtime, prompt=48, base=0).total
        return peak(artifact, runtime) - without

    return measured


def peak(artifact, runtime):
    # Two prompts: ONNX Runtime takes more for the second than for the first.
    counts = {"prompt_tokens": 48, "tokens": 8, "repeats": 2, "warmup": 0}
    return measure(artifact, runtime, **counts, options=options(runtime)).peak_memory


def predicted_context(runtime):
    return None if runtime == "llamacpp" else 56


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks of children are read from Linux's /proc")
@pytest.mark.parametrize(("format_name", "recipe", "runtime"), CASES, ids=str)
@pytest.mark.parametrize("model", ["sample", "wide", "smollm2"])
def test_the_peak_is_as_predicted(model, format_name, recipe, runtime, base, request, tmp_path, record_property):
    source = sample.path() if model == "sample" else request.getfixturevalue(model)
    here = base(format_name, runtime)
    artifact = written(source, format_name, recipe, tmp_path)
    measured = peak(artifact, runtime)
    predicted = memory_needed(artifact, predicted_context(runtime), runtime, prompt=48, base=here)
    error = predicted.total / measured - 1
    record_property("error", error)
    record_property("base", here / footprint(runtime).base)
    assert abs(error) <= CLOSE, (
        f"predicted {predicted.total / 1e6:.1f} MB (weights {predicted.weights / 1e6:.1f}, state "
        f"{predicted.state / 1e6:.1f}, overhead {predicted.overhead / 1e6:.1f}), measured {measured / 1e6:.1f}"
    )
    # The table's share of the libraries, which a device that is not at hand is planned with: the right order, no more.
    assert 0.6 <= here / footprint(runtime).base <= 1.5
