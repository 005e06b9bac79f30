"""What a model is, from its header: large sparse checkpoints, coarse grids, and sizes that match what is written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import attrs
import numpy as np
import pytest

import edgekit
from edgekit import sample
from edgekit.tensor import Tensor
from edgekit_workflow import memory, planning
from edgekit_workflow.assess import ROWS, assess, grid_of
from edgekit_workflow.hardware import profile
from edgekit_workflow.recommend import recommend

sys.path.insert(0, str(Path(__file__).parent))
import big_models


@pytest.fixture(scope="module", params=["LLAMA_70B", "QWEN3_235B"])
def big(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("big") / request.param
    return request.param, big_models.write(folder, getattr(big_models, request.param))


def test_headers_suffice_for_large_models(big, monkeypatch):
    name, folder = big
    edgekit.open(sample.path())  # loads the plugins
    artifact = edgekit.open(folder)
    result = assess(artifact, values=False)
    parameters, active = {"LLAMA_70B": (70_553_706_496, 69.5e9), "QWEN3_235B": (235_093_634_560, 21.6e9)}[name]
    assert result.parameters == parameters
    assert result.active == pytest.approx(active, rel=0.01)
    assert sum(result.roles.values()) == parameters
    recommend(artifact.model.config, profile("x86-server"), priority="size")


def test_at_most_a_few_rows_are_read(big, monkeypatch):
    _, folder = big
    read: list[int] = []
    original = Tensor.float32

    def counted(self, start=0, stop=None):
        read.append((self.rows if stop is None else stop) - start)
        return original(self, start, stop)

    artifact = edgekit.open(folder)
    config = artifact.model.config
    monkeypatch.setattr(Tensor, "float32", counted)
    assess(attrs.evolve(artifact, load_model=lambda: attrs.evolve(artifact.model, config=config)))
    assert sum(read[-3:]) <= 3 * ROWS
    assert all(count <= 4096 for count in read)


def bf16(values):
    bits = np.asarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).view(np.float32)


def quantized(values, bits, group):
    """Values on a grid of so many bits with a scale a group, as bfloat16 stores them."""
    shape = values.shape
    parts = values.reshape(-1, group)
    scales = np.abs(parts).max(axis=-1, keepdims=True) / (2 ** (bits - 1) - 0.5)
    codes = np.clip(np.round(parts / scales), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return bf16((codes * bf16(scales)).reshape(shape))


@pytest.mark.parametrize(
    ("bits", "group"), [(4, 32), (4, 64), (4, 128), (3, 32), (3, 128), (2, 32), (2, 64), (1, 32), (8, 4096), (5, 128)]
)
def test_a_coarse_grid_is_seen_in_bfloat16(bits, group):
    values = np.random.default_rng(bits * group).standard_normal((ROWS, 4096)).astype(np.float32)
    found = grid_of(quantized(values, max(bits, 2), group) if bits > 1 else bf16(np.sign(values) * 0.02))
    assert found is not None
    assert found[0] <= bits + 1
    if bits > 1:
        assert (found[1] == 0) == (group == 4096)


@pytest.mark.parametrize("columns", [64, 576, 1024, 4096, 14336])
@pytest.mark.parametrize("spread", ["normal", "uniform", "student"])
def test_trained_floats_are_no_grid(columns, spread):
    random = np.random.default_rng(columns)
    draw = {
        "normal": random.standard_normal,
        "uniform": lambda size: random.uniform(-1, 1, size),
        "student": lambda size: random.standard_t(3, size),
    }[spread]
    assert grid_of(bf16(0.02 * draw((ROWS, columns)))) is None


def test_empty_matrices_are_no_grid():
    assert grid_of(np.zeros((ROWS, 4096), np.float32)) is None


def test_a_quantized_source_is_named(tmp_path):
    small = edgekit.quantize(sample.path(), "Q4_0", to=tmp_path / "small.gguf")
    again = edgekit.convert(small.path, tmp_path / "decoded", format="hf", dtype="BF16")
    grids = assess(again).grids
    assert len(grids) == 3
    assert all(grid.bits <= 4 and grid.group == 32 for grid in grids)
    assert assess(edgekit.open(sample.path())).grids == ()
    assert assess(small).stored_quantized


@pytest.mark.parametrize("recipe", ["Q8_0", "Q4_K_M", "Q5_K_M", "Q2_K", "F16"])
def test_planned_sizes_are_those_that_are_written(recipe, tmp_path):
    source = edgekit.open(sample.path())
    written = edgekit.quantize(source, recipe, to=tmp_path / "model.gguf")
    plan = planning.planned(source.model.config, recipe, "gguf")
    assert plan.nbytes == pytest.approx(written.tensor_nbytes, rel=0.005)
    kinds = memory.stored_kinds(written)
    for kind, nbytes in plan.kinds.items():
        if nbytes > 0.01 * plan.nbytes:
            assert kinds[kind] == pytest.approx(nbytes, rel=0.005), kind


def test_the_rows_that_block_a_format_are_named():
    config = edgekit.open(sample.path()).model.config
    odd = attrs.evolve(config, width=576, ffn=1536, heads=9, kv_heads=3, head_dim=64, rotary_dim=64)
    plan = planning.planned(odd, "Q4_K_M", "gguf")
    assert "blk.0.attn_q.weight" in plan.fallbacks
    assert "576" in plan.fallbacks["blk.0.attn_q.weight"]


def test_states_follow_the_layers():
    config = edgekit.open(sample.path()).model.config
    full = memory.state_bytes(config, 100)
    assert full == config.layers * 2 * config.kv_heads * config.head_dim * 100 * 2
    windowed = attrs.evolve(config, family="mistral", sliding_window=32)
    assert memory.state_bytes(windowed, 100) == full * 32 // 100
    assert memory.state_bytes(windowed, 16) == full * 16 // 100


def test_the_command():
    line = [sys.executable, "-m", "edgekit", "assess", str(sample.path())]
    shown = subprocess.run(line, capture_output=True, text=True, check=True, timeout=120).stdout
    assert "3 × attention, 3 × feed-forward" in shown
    assert "llama.cpp" in shown
    told = json.loads(subprocess.run([*line, "--json"], capture_output=True, text=True, check=True).stdout)
    assert told["parameters"] == edgekit.open(sample.path()).parameters
    assert {option["recipe"] for option in told["options"]} >= {"Q8_0", "Q4_K_M"}
