"""Every family that has a file in vectors/families: known answers of transformers, without any framework."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgekit.architectures import FAMILIES, settings, tensor_shapes
from edgekit.architectures.forward import KVCache, Transformer
from edgekit.architectures.hf import config_from_hf, hf_config, hf_tensors, model_from_hf
from edgekit.architectures.mixture import ExpertSizes
from edgekit.errors import InvalidFileError
from edgekit.tensor import Tensor
from edgekit.testing.models import random_hf_tensors, random_model

FILES = sorted((Path(__file__).parent / "vectors" / "families").glob("*.json"))
VECTORS = {path.stem: json.loads(path.read_text("utf-8")) for path in FILES}
CASES = {f"{family}-{name}": (family, case) for family, v in VECTORS.items() for name, case in v["cases"].items()}
TOKENS = np.array(next(iter(VECTORS.values()))["tokens"])
cases = pytest.mark.parametrize("case", CASES)


def config_of(case):
    return config_from_hf(CASES[case][1]["config"], case)


@cases
def test_logits_are_those_of_transformers(case):
    family, known = CASES[case]
    config = config_of(case)
    assert config.family == family
    found = Transformer(random_model(config)).logits(TOKENS)
    assert np.abs(found[-1] - np.array(known["last"])).max() < 1e-4 * known["scale"]


@cases
def test_steps_and_batches_give_what_the_whole_pass_gives(case):
    network = Transformer(random_model(config_of(case)))
    whole = network.logits(np.stack([TOKENS, TOKENS[::-1]]))
    allowed = 2e-5 * np.abs(whole).max()
    np.testing.assert_allclose(whole[0], network.logits(TOKENS), atol=allowed, rtol=0)
    past = KVCache()
    for start, stop in [(0, 9), (9, 10), (10, 11), (11, 24)]:
        found = network.step(np.stack([TOKENS, TOKENS[::-1]])[:, start:stop], past)
        np.testing.assert_allclose(found, whole[:, stop - 1], atol=allowed, rtol=0)


@cases
def test_nothing_sees_the_future(case):
    network = Transformer(random_model(config_of(case)))
    other = TOKENS.copy()
    other[20:] = (other[20:] + 1) % 40
    a, b = network.logits(TOKENS), network.logits(other)
    scale = np.abs(a).max()
    # Which tokens share an expert's product depends on all of them, so that its sums may be rounded otherwise.
    np.testing.assert_allclose(a[:20], b[:20], atol=1e-5 * scale, rtol=0)
    assert np.abs(a[20:] - b[20:]).max() > 1e-3 * scale


@cases
def test_a_directory_holds_the_model_and_nothing_else(case):
    config = config_of(case)
    model = random_model(config)
    written = {name: tensor for name, (_, tensor) in hf_tensors(config, model.tensors).items()}
    back = model_from_hf(CASES[case][1]["config"], written)
    assert list(back.tensors) == list(tensor_shapes(config))
    for name, tensor in model.tensors.items():
        np.testing.assert_allclose(back.tensors[name].float32(), tensor.float32(), rtol=1e-6, atol=1e-6)
    assert config_from_hf(json.loads(json.dumps(hf_config(config))), "written") == config


@cases
def test_every_tensor_is_read_lazily(case):
    def unread(name, tensor):
        def read_rows(start, stop):
            raise AssertionError(f"{name} was read")

        return Tensor(name, tensor.shape, "float32", read_rows)

    tensors = random_hf_tensors(config_of(case))
    compared = ("lm_head.weight", "model.embed_tokens.weight") if "lm_head.weight" in tensors else ()
    given = {n: t if n in compared else unread(n, t) for n, t in tensors.items()}
    assert model_from_hf(CASES[case][1]["config"], given).config == config_of(case)


def test_a_stack_of_experts_reads_the_rows_it_is_asked_for():
    config = config_of("qwen3_moe-plain")
    reads = []

    def watched(name, tensor):
        def read_rows(start, stop):
            reads.append((name, start, stop))
            return tensor.read_rows(start, stop)

        return Tensor(name, tensor.shape, "float32", read_rows)

    tensors = {n: watched(n, t) for n, t in random_hf_tensors(config).items()}
    stack = model_from_hf(CASES["qwen3_moe-plain"][1]["config"], tensors).tensors["blk.1.ffn_up_exps.weight"]
    reads.clear()
    assert stack.float32(40, 60).shape == (20, 64)
    experts = "model.layers.1.mlp.experts"
    assert reads == [(f"{experts}.0.up_proj.weight", 40, 48), (f"{experts}.1.up_proj.weight", 0, 12)]


def test_fused_experts_are_read_as_those_apart():
    known = CASES["qwen3_moe-plain"][1]
    tensors = random_hf_tensors(config_of("qwen3_moe-plain"))
    fused = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    for layer in range(2):
        prefix = f"model.layers.{layer}.mlp.experts."
        each = [
            {part: tensors[f"{prefix}{i}.{part}_proj.weight"].read() for part in ("gate", "up", "down")}
            for i in range(8)
        ]
        both = np.stack([np.concatenate([e["gate"], e["up"]]) for e in each])
        fused[f"{prefix}gate_up_proj"] = Tensor.of("f", both)
        fused[f"{prefix}down_proj"] = Tensor.of("g", np.stack([e["down"] for e in each]))
    found = Transformer(model_from_hf(known["config"], fused)).logits(TOKENS)
    assert np.abs(found[-1] - np.array(known["last"])).max() < 1e-4 * known["scale"]


def test_observe_sees_each_expert_with_the_tokens_that_use_it():
    seen = {}
    network = Transformer(random_model(config_of("qwen3_moe-plain")), observe=seen.setdefault)
    network.logits(TOKENS)
    sizes = settings(ExpertSizes, network.config)
    rows = [seen[name].shape for name in seen if name.startswith("blk.0.ffn_gate_exps.weight[")]
    assert sum(count for count, _ in rows) == TOKENS.size * sizes.experts_used
    assert {width for _, width in rows} == {network.config.width}
    assert "blk.0.ffn_gate_inp.weight" in seen


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"num_experts": 8, "num_experts_per_tok": 9},
            "where: each token uses 9 experts, but a layer has 8; the file is damaged",
        ),
        (
            {"num_experts": 0},
            "where: experts is 0, it has to be an integer between 1 and 4096; the file is damaged or hostile",
        ),
        (
            {"num_experts": 1 << 40},
            f"where: experts is {1 << 40}, it has to be an integer between 1 and 4096; the file is damaged or hostile",
        ),
    ],
)
def test_experts_that_no_model_has_are_refused(change, message):
    with pytest.raises(InvalidFileError) as caught:
        config_from_hf(CASES["qwen3_moe-plain"][1]["config"] | change, "where")
    assert str(caught.value) == message


def test_a_missing_expert_is_named():
    tensors = random_hf_tensors(config_of("qwen3_moe-plain"))
    del tensors["model.layers.1.mlp.experts.3.up_proj.weight"]
    with pytest.raises(InvalidFileError, match=r"tensors are missing: model.layers.1.mlp.experts.3.up_proj.weight; "):
        model_from_hf(CASES["qwen3_moe-plain"][1]["config"], tensors)


def test_families_are_known_by_name():
    assert set(VECTORS) <= set(FAMILIES)
