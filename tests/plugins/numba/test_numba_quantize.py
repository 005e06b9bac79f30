"""Whole models: the same artifact with and without the kernels, and the manifest says who encoded."""

import pytest

import edgekit
from edgekit.architectures import ModelConfig
from edgekit.testing.models import artifact_of, random_model

CONFIG = ModelConfig(
    family="llama", layers=2, width=256, heads=4, kv_heads=2, head_dim=64, ffn=512, vocab=320, context=64,
    norm_eps=1e-5, rope_theta=10000.0, attention_scale=0.125, rotary_dim=64,
)  # fmt: skip


@pytest.mark.parametrize(
    ("recipe", "target"),
    [
        ("Q4_K_M", "model.gguf"),
        ("Q3_K_M", "model.gguf"),
        ("mlx:int4-g64", "model"),
        ("openvino:int4-asym-g64", "model"),
    ],
)
def test_the_artifact_is_the_same(recipe, target, tmp_path):
    source = artifact_of(random_model(CONFIG), tmp_path / "source")
    made = {}
    for backend in (None, "reference"):
        (tmp_path / str(backend)).mkdir()
        made[backend] = edgekit.quantize(source, recipe, to=tmp_path / str(backend) / target, backend=backend)
    for fast, slow in zip(made[None].files, made["reference"].files, strict=True):
        assert fast.read_bytes() == slow.read_bytes()
    backends = {backend: artifact.manifest.tensors for backend, artifact in made.items()}
    encoded = [name for name, entry in backends[None].items() if not entry["precision"].startswith("float:")]
    assert encoded
    assert {backends[None][name]["backend"] for name in encoded} == {"numba"}
    assert {backends["reference"][name]["backend"] for name in encoded} == {"reference"}
    assert "edgekit-numba" in made[None].manifest.versions


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
@pytest.mark.parametrize("recipe", ["Q4_K_M", "F16", "Q8_0"])
def test_sources_of_16_bits_and_tensors_that_stay_floats(recipe, dtype, tmp_path):
    """A backend that is asked for by name encodes what it can; floats are the core's own."""
    source = edgekit.convert(
        artifact_of(random_model(CONFIG), tmp_path / "source"), tmp_path / "source.gguf", dtype=dtype
    )
    made = []
    for backend in ("numba", "reference"):
        (tmp_path / backend).mkdir()
        made.append(edgekit.quantize(source, recipe, to=tmp_path / backend / "model.gguf", backend=backend))
    assert made[0].path.read_bytes() == made[1].path.read_bytes()
