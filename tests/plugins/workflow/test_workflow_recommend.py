"""The recommender's whole matrix as a table, its reasons, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import attrs
import pytest

import edgekit
from edgekit import sample
from edgekit.architectures import ModelConfig
from edgekit.errors import InvalidFileError, UsageError
from edgekit_workflow.hardware import machine_of, profile, profiles
from edgekit_workflow.recommend import recommend
from edgekit_workflow.rules import default_rules, rules_of
from edgekit_workflow.speed import active_share, predicted_speed

#: A model of 8 billion weights, as Llama 3.1 8B, and one of a billion.
EIGHT = ModelConfig(
    family="llama", layers=32, width=4096, heads=32, kv_heads=8, head_dim=128, ffn=14336, vocab=128256, context=131072,
    norm_eps=1e-5, rope_theta=5e5, attention_scale=128**-0.5, rotary_dim=128,
)  # fmt: skip
ONE = attrs.evolve(EIGHT, layers=16, width=2048, head_dim=64, ffn=8192, rotary_dim=64, attention_scale=0.125, tied=True)

#: Profile -> the model that is asked about, the frameworks in order, and the best one's precision by priority.
MATRIX = {
    "raspberry-pi-4": (ONE, ("llamacpp", "openvino", "olive"), ("8 bits", "4 bits", "4 bits")),
    "raspberry-pi-5": (ONE, ("llamacpp", "openvino", "olive"), ("8 bits", "4 bits", "4 bits")),
    "orange-pi-5": (EIGHT, ("llamacpp", "openvino", "olive"), ("8 bits", "4 bits", "3 bits")),
    "android-phone": (EIGHT, ("llamacpp", "openvino", "olive"), ("8 bits", "4 bits", "3 bits")),
    "android-phone-budget": (ONE, ("llamacpp", "openvino", "olive"), ("8 bits", "4 bits", "4 bits")),
    "snapdragon-laptop": (EIGHT, ("llamacpp", "openvino", "olive"), ("8 bits", "4 bits", "3 bits")),
    "jetson-orin": (EIGHT, ("olive", "openvino", "llamacpp"), ("8 bits", "4 bits", "4 bits")),
    "jetson-orin-nano": (ONE, ("olive", "openvino", "llamacpp"), ("8 bits", "4 bits", "4 bits")),
    "gaming-pc": (EIGHT, ("olive", "openvino", "llamacpp"), ("8 bits", "4 bits", "4 bits")),
    "gpu-server": (EIGHT, ("olive", "openvino", "llamacpp"), ("8 bits", "4 bits", "4 bits")),
    "apple-m1": (ONE, ("mlx", "llamacpp", "olive"), ("8 bits", "4 bits", "4 bits")),
    "apple-m4": (EIGHT, ("mlx", "llamacpp", "olive"), ("8 bits", "4 bits", "3 bits")),
    "apple-m4-max": (EIGHT, ("mlx", "llamacpp", "olive"), ("8 bits", "4 bits", "3 bits")),
    "iphone-16": (ONE, ("mlx", "llamacpp", "olive"), ("8 bits", "4 bits", "4 bits")),
    "ipad-m4": (ONE, ("mlx", "llamacpp", "olive"), ("8 bits", "4 bits", "4 bits")),
    "intel-laptop-npu": (EIGHT, ("openvino", "olive", "llamacpp"), ("8 bits", "4 bits", "3 bits")),
    "intel-laptop": (ONE, ("openvino", "olive", "llamacpp"), ("8 bits", "4 bits", "4 bits")),
    "intel-nuc": (ONE, ("openvino", "olive", "llamacpp"), ("8 bits", "4 bits", "4 bits")),
    "x86-server": (EIGHT, ("openvino", "olive", "llamacpp"), ("8 bits", "4 bits", "3 bits")),
    "amd-laptop": (ONE, ("llamacpp", "openvino", "olive"), ("8 bits", "4 bits", "4 bits")),
    "amd-server": (EIGHT, ("llamacpp", "openvino", "olive"), ("8 bits", "4 bits", "3 bits")),
    "arm-server": (EIGHT, ("llamacpp", "openvino", "olive"), ("8 bits", "4 bits", "3 bits")),
}


def test_the_table_has_every_profile():
    assert set(MATRIX) == set(profiles())
    assert len(MATRIX) >= 20


@pytest.mark.parametrize("name", MATRIX)
def test_the_matrix(name):
    config, order, tiers = MATRIX[name]
    machine = profile(name)
    for priority, tier in zip(("quality", "speed", "size"), tiers, strict=True):
        result = recommend(config, machine, priority=priority, use="chat")
        firsts = list(dict.fromkeys(candidate.framework for candidate in result.ranked))
        assert tuple(firsts) == order
        assert result.ranked[0].tier == tier, f"{priority}: {result.ranked[0]}"
        assert result.ranked[0].memory.needed <= result.memory
        assert result.ranked[0].tokens_per_second > 0
        assert len(result.ranked[0].reasons) >= 2
        assert all(rejected.reason for rejected in result.rejected)


@pytest.mark.parametrize(
    ("name", "first", "then"),
    [
        ("intel-laptop-npu", "openvino", "olive"),
        ("x86-server", "openvino", "olive"),
        ("gpu-server", "olive", "openvino"),
        ("jetson-orin", "olive", "openvino"),
        ("amd-server", "olive", "openvino"),
        ("apple-m4", "olive", "openvino"),
        ("android-phone", "olive", "openvino"),
    ],
)
def test_multimodal_models_are_openvinos_or_olives(name, first, then):
    result = recommend(ONE, profile(name), use="vision")
    assert [candidate.framework for candidate in result.ranked[:2]] == [first, then]
    assert {"llama.cpp", "MLX"} <= {rejected.framework for rejected in result.rejected}


def test_embeddings_get_more_bits():
    chat = recommend(EIGHT, profile("amd-server"), priority="size", use="chat")
    embedding = recommend(EIGHT, profile("amd-server"), priority="size", use="embedding")
    assert chat.ranked[0].tier == "3 bits"
    assert embedding.ranked[0].tier == "4 bits"
    assert any("neighbours in a space of embeddings" in rejected.reason for rejected in embedding.rejected)


def test_the_memory_decides_the_tier():
    machine = profile("amd-server")
    tiers = [recommend(EIGHT, machine, memory=gigabytes * 10**9).ranked[0].tier for gigabytes in (16, 9, 8, 6, 5)]
    bits = [next(tier.bits for tier in default_rules().tiers if tier.name == name) for name in tiers]
    assert bits == sorted(bits, reverse=True)
    assert len(set(bits)) >= 3


def test_a_memory_below_the_smallest_is_refused_with_that():
    with pytest.raises(UsageError, match=r"^nothing fits 100,000,000 bytes of memory: the smallest choice needs [1-9]"):
        recommend(EIGHT, profile("raspberry-pi-5"), memory=100_000_000)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": 10**12}, r"memory 1,000,000,000,000 bytes: raspberry-pi-5 has 8,000,000,000; give less"),
        ({"memory": 0}, "memory 0; give the bytes"),
        ({"context": 10**6}, r"context 1000000; the model was trained for 1 to 131,072 tokens"),
        ({"priority": "beauty"}, "priority 'beauty'; choose quality, speed, size"),
        ({"use": "music"}, "use 'music'; choose chat, embedding, vision"),
    ],
)
def test_contradictions_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        recommend(ONE, profile("raspberry-pi-5"), **options)


def test_an_encoder_writes_no_text():
    encoder = attrs.evolve(ONE, causal=False)
    with pytest.raises(UsageError, match="the model is an encoder"):
        recommend(encoder, profile("amd-server"), use="chat")


def test_only_used_experts_count():
    from edgekit.architectures import FAMILIES

    own = {"experts": 128, "experts_used": 8, "expert_ffn": 768, "normalized": True}
    config = attrs.evolve(EIGHT, family="qwen3_moe", own=own)
    assert FAMILIES["qwen3_moe"].network(config)
    assert active_share(config, "blk.0.ffn_up_exps.weight") == 8 / 128
    assert active_share(config, "blk.0.attn_q.weight") == 1
    assert active_share(config, "token_embd.weight") == 1 / config.vocab
    assert active_share(attrs.evolve(config, tied=True), "token_embd.weight") == 1


def test_the_speed_follows_the_bandwidth_where_cores_suffice():
    machine = profile("arm-server")
    moved = {"Q8_0": 8e9}
    full = predicted_speed(EIGHT, moved, "llamacpp", machine)
    half = predicted_speed(EIGHT, moved, "llamacpp", attrs.evolve(machine, bandwidth=machine.bandwidth / 2))
    assert 1.8 < full / half < 2
    one = predicted_speed(EIGHT, moved, "llamacpp", machine, threads=1)
    assert one < 2  # 15 GB/s of one core
    assert predicted_speed(EIGHT, moved, "llamacpp", attrs.evolve(machine, bandwidth=None)) is None
    with pytest.raises(UsageError, match="no speed is known of the runtime 'nothing'"):
        predicted_speed(EIGHT, moved, "nothing", machine)


def test_rules_can_be_overridden():
    from importlib import resources

    text = resources.files("edgekit_workflow").joinpath("rules.toml").read_text("utf-8")
    other = text.replace('order = ["mlx", "llamacpp", "olive"]', 'order = ["llamacpp", "mlx"]')
    assert other != text
    result = recommend(ONE, profile("apple-m4"), rules=rules_of(other, "own.toml"))
    assert result.ranked[0].framework == "llamacpp"
    for old, new, message in (
        ("[accelerators]", "[acelerators]", "not rules of edgekit recommend"),
        ("share = 0.6", "share = 0.6\n[more]\nx = 1", "unknown more"),
        ('"llamacpp", "openvino", "olive"]\nreason = "llama.cpp runs', '"tvm"]\nreason = "llama.cpp runs', r"no \[fra"),
        ('prefer = "larger"', 'prefer = "best"', "not rules of edgekit recommend"),
    ):
        assert old in text
        with pytest.raises(InvalidFileError, match=message):
            rules_of(text.replace(old, new, 1), "own.toml")


def test_every_profile_is_complete():
    for name in profiles():
        machine = profile(name)
        assert machine.bandwidth
        assert machine.form
        assert machine.source
        assert machine.instructions
    with pytest.raises(UsageError, match=r"no profile 'raspberry-pi-55'; did you mean raspberry-pi-5"):
        profile("raspberry-pi-55")


def test_a_machine_without_a_fitting_framework():
    text = 'processor = "X"\nvendor = "x"\narchitecture = "riscv64"\ncores = 4\nthreads = 4\nmemory = "8GB"\n'
    machine = machine_of(text + 'system = "plan9"\n', "other", "other.toml")
    with pytest.raises(UsageError, match=r"nothing can be recommended: llama.cpp: does not run on plan9"):
        recommend(ONE, machine)


def test_the_command():
    line = [sys.executable, "-m", "edgekit", "recommend", str(sample.path()), "--device", "apple-m4", "--json"]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode in (0, 4), done.stderr  # 4: no plugin with a runtime is installed
    result = json.loads(done.stdout)
    assert result["ranked"][0]["framework"] == "mlx"
    if done.returncode:
        assert "pip install edgekit-mlx" in done.stderr
    assert edgekit.open(sample.path()).model.config.context >= result["context"]


def test_no_plugin_for_any_recommendation():
    """What there would be is still shown; the message says which to install, and the exit code is 4."""
    line = [sys.executable, "-m", "edgekit", "recommend", str(sample.path()), "--device", "apple-m4"]
    without = {**os.environ, "EDGEKIT_NO_PLUGINS": "gguf,llamacpp,mlx,olive,openvino,numba"}
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=120, env=without)
    assert done.returncode == 4, done.stdout
    assert "MLX (not installed)" in done.stdout
    assert "no plugin for any of these is installed; for the first: pip install edgekit-mlx" in done.stderr
