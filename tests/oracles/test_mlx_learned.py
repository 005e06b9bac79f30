"""mlx-lm's learned methods as passes: kept by the kit, better than rounding, the same bytes each run, no downloads."""

from __future__ import annotations

import urllib.request
from pathlib import Path

import attrs
import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from click.testing import CliRunner
from mlx_models import BASE, config_of

import edgekit
from edgekit import sample
from edgekit.architectures import FAMILIES
from edgekit.architectures.forward import Transformer
from edgekit.cli import cli
from edgekit.errors import InvalidFileError, MissingFileError, ShapeError, UnsupportedModelError, UsageError
from edgekit.pipeline.passes import run_pass
from edgekit.tensor import EncodedTensor
from edgekit.testing import pass_checks
from edgekit.testing.models import artifact_of, random_model

TOKENS = np.random.default_rng(3).integers(0, 128, 400).tolist()
#: Options that make a method quick on a model of width 64.
SMALL = {
    "mlx-gptq": {"group": 32, "fallback_group": 32},
    "mlx-awq": {"group": 32, "grid": 2},
    "mlx-dwq": {"group": 32, "rate": 1e-3},
    "mlx-dynamic": {"group": 32, "high_group": 32, "high_bits": 6, "target": 6.0},
}
methods = pytest.mark.parametrize("method", SMALL)


@pass_checks("mlx-gptq")
def test_gptq_is_a_pass(check):
    check()


@pass_checks("mlx-awq")
def test_awq_is_a_pass(check):
    check()


@pass_checks("mlx-dwq")
def test_dwq_is_a_pass(check):
    check()


@pass_checks("mlx-dynamic")
def test_dynamic_is_a_pass(check):
    check()


def test_the_command_verifies_them():
    done = CliRunner().invoke(cli, ["verify", "mlx-gptq", "--check", "check_quality_reported"])
    assert done.exit_code == 0, done.output
    assert "1 passed" in done.stdout


@pytest.fixture
def source(tmp_path: Path):
    return edgekit.convert(artifact_of(random_model(BASE, 5), tmp_path / "memory"), tmp_path / "hf", dtype="BF16")


@methods
def test_ten_runs_one_hash_and_no_download(method, source, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("nothing is downloaded")

    monkeypatch.setattr(urllib.request, "urlretrieve", refuse)
    hashes = set()
    state = np.random.get_state()[1].tobytes()
    for number in range(10):
        mx.random.seed(number)  # whatever a program did before
        np.random.seed(number) if method != "mlx-dwq" else None
        made = run_pass(
            source, method, to=tmp_path / str(number), options={"text": TOKENS, "length": 32, **SMALL[method]}
        )
        hashes.add(tuple(file.read_bytes() for file in sorted(made.path.iterdir())))
    assert len(hashes) == 1
    assert method != "mlx-dwq" or np.random.get_state()[1].tobytes() == state  # numpy's own generator is as it was


@methods
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_mlx_lm_loads_the_result_and_numpy_computes_the_same(method, dtype, tmp_path):
    source = edgekit.convert(artifact_of(random_model(BASE, 5), tmp_path / "memory"), tmp_path / "hf", dtype=dtype)
    made = run_pass(source, method, to=tmp_path / "out", options={"text": TOKENS, "length": 32, **SMALL[method]})
    kinds = {t.precision.name for t in made.tensors.values() if isinstance(t, EncodedTensor)}
    assert {kind[:7] for kind in kinds} == {"mlx:int"}
    scales = made.tensors["model.layers.0.mlp.up_proj.weight"].read().parts["scales"]
    assert scales.dtype.name == {"F32": "float32", "BF16": "bfloat16"}[dtype]
    ids = TOKENS[:24]
    wanted = Transformer(made.model).logits(ids)
    found = np.array(mlx_lm.utils.load_model(made.path)[0](mx.array([ids])).astype(mx.float32))[0]
    # The bounds of test_mlx_runtime.py, for the same reason.
    assert np.abs(found - wanted).max() / np.abs(wanted).max() < {"F32": 1e-4, "BF16": 1e-1}[dtype]
    with edgekit.load(made, "mlx", exact=True) as runtime:
        assert np.abs(runtime.logits(ids) - wanted).max() / np.abs(wanted).max() < 1e-4
    assert made.manifest.recipe.startswith(method)
    assert made.manifest.quality["tokens"] == 32 * 11
    assert made.manifest.quality["tokens_measured"] == 32


@pytest.mark.parametrize("method", ["mlx-gptq", "mlx-awq", "mlx-dwq"])
def test_what_is_learned_diverges_less_than_rounding(method, tmp_path):
    """On the sample model and windows that nothing was learned from."""
    (tmp_path / "text.txt").write_text(sample.heldout_text()[:12_000])
    given: dict = {
        "mlx-gptq": {"fallback_bits": 4, "length": 256},
        "mlx-awq": {"grid": 4, "samples": 6},
        "mlx-dwq": {"rate": 1e-4, "samples": 24},
    }[method]
    # Measured, in nats, and to nearest: GPTQ 0.0041 and 0.0054, AWQ 0.0062 and 0.0063, DWQ 0.0074 and 0.0086.
    made = run_pass(
        sample.path(), method, to=tmp_path / "out", options={"text": str(tmp_path / "text.txt"), "length": 96} | given
    )
    quality = made.manifest.quality
    assert quality["divergence"] < quality["divergence_nearest"]
    assert set(made.manifest.sources) == {"text.txt", *(file.name for file in edgekit.open(sample.path()).files)}
    assert made.tokenizer is not None


def test_dynamic_keeps_to_its_target(tmp_path):
    sizes = []
    for target in (4.7, 5.2):
        made = run_pass(
            sample.path(), "mlx-dynamic", to=tmp_path / str(target),
            options={"text": list(range(10, 500)) * 2, "length": 64, "samples": 4, "target": target},
        )  # fmt: skip
        sizes.append(made.manifest.quality["bits_per_weight"])
        widths = {t.precision.bits for t in made.tensors.values() if isinstance(t, EncodedTensor)}
        assert widths == {4, 5}
    assert sizes[0] < 4.75
    assert sizes[0] < sizes[1] < 5.25


@pytest.mark.parametrize("family", ["qwen3_moe", "lfm2", "granitemoehybrid"])
def test_experts_and_hybrids(family, tmp_path):
    """Through the newer families' modules: stacked experts, convolutions and states."""
    import test_mlx_families as newer

    hf = newer.MODULES[family].CONFIGS["plain"] | {"intermediate_size": 64, "moe_intermediate_size": 64}
    read = FAMILIES[family].config_from_hf({**hf, "shared_intermediate_size": 64}, "test")
    source = edgekit.convert(artifact_of(random_model(read), tmp_path / "memory"), tmp_path / "hf")
    for name in ("mlx-gptq", "mlx-dwq"):
        made = run_pass(
            source, name, to=tmp_path / name, options={"text": [t % 96 for t in TOKENS], "length": 32, **SMALL[name]}
        )
        wanted = Transformer(made.model).logits([t % 96 for t in TOKENS[:8]])
        with edgekit.load(made, "mlx", exact=True) as runtime:
            found = runtime.logits([t % 96 for t in TOKENS[:8]])
        assert np.abs(found - wanted).max() / np.abs(wanted).max() < 1e-4


@pytest.mark.parametrize(
    ("method", "changes", "error", "message"),
    [
        ("mlx-gptq", {"bits": 3}, UsageError, "bits 3; choose 2, 4, 8"),
        ("mlx-gptq", {"group": 48}, UsageError, "group 48; choose 32, 64, 128"),
        ("mlx-gptq", {"samples": 0}, UsageError, "samples 0; choose an integer of at least 1"),
        ("mlx-gptq", {"length": 1}, UsageError, "length 1; choose 2 or more"),
        ("mlx-gptq", {"text": "nowhere.txt"}, MissingFileError, "nowhere.txt: no such file; text names a file"),
        ("mlx-gptq", {"text": TOKENS[:40]}, UsageError, "the text has 40 tokens, fewer than two windows of 32"),
        ("mlx-gptq", {"group": 128}, ShapeError, "model.layers.0.self_attn.q_proj has rows of 64, which groups of 128"),
        ("mlx-gptq", {"device": "tpu"}, UsageError, "device 'tpu' is not there"),
        (
            "mlx-gptq",
            {"steps": 3},
            UsageError,
            "the pass 'mlx-gptq' has no option 'steps'; it has bits, group, fallback_bits, fallback_group, text",
        ),
        ("mlx-gptq", {"text": None}, UsageError, "text is missing; name a file of calibration text"),
        ("mlx-awq", {"grid": 0}, UsageError, "grid 0; choose an integer of at least 1"),
        ("mlx-dwq", {"bits": 8}, UsageError, "bits 8; choose 2, 3, 4, 5, 6"),
        ("mlx-dwq", {"rate": 2}, UsageError, "rate 2; choose above 0 and below 1"),
        ("mlx-dwq", {"seed": -1}, UsageError, "seed -1; choose an integer of 0 or more"),
        ("mlx-dynamic", {"high_bits": 4}, UsageError, "high_bits 4; choose more than bits, 4"),
        ("mlx-dynamic", {"target": 0}, UsageError, "target 0; choose bits a weight"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(method, changes, error, message, source, tmp_path):
    given = {"text": TOKENS, "length": 32, **SMALL[method], **changes}
    given = {key: value for key, value in given.items() if value is not None}
    with pytest.raises(error) as caught:
        run_pass(source, method, to=tmp_path / "out", options=given)
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_text_that_is_none_and_a_family_without_a_rule(source, tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\x00")
    with_tokenizer = edgekit.open(sample.path())
    with pytest.raises(InvalidFileError, match="it is no UTF-8 text"):
        run_pass(with_tokenizer, "mlx-gptq", to=tmp_path / "out", options={"text": str(tmp_path / "bad.txt")})
    (tmp_path / "text.txt").write_text("Once upon a time")
    with pytest.raises(UsageError, match="it has no tokenizer"):
        run_pass(source, "mlx-gptq", to=tmp_path / "out", options={"text": str(tmp_path / "text.txt")})
    phi = artifact_of(random_model(attrs.evolve(config_of("phi3"))), tmp_path / "phi")
    other = edgekit.convert(phi, tmp_path / "hf-phi")
    with pytest.raises(UnsupportedModelError, match="mlx-lm's AWQ has no rule for phi3; it has llama, mistral"):
        run_pass(other, "mlx-awq", to=tmp_path / "out", options={"text": TOKENS, "length": 32})
