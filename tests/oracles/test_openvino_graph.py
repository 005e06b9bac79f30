"""edgekit's OpenVINO graph against its numpy forward pass: every family, whole and token by token.

Run against openvino 2026.4.1, compiled for the CPU in float32 throughout.
"""

import importlib.util
import os
import sys
from pathlib import Path

os.environ["NNCF_CI"] = "1"  # no telemetry

import nncf
import numpy as np
import openvino as ov
import pytest
from nncf import CompressWeightsMode as Mode

import edgekit
from edgekit import sample
from edgekit.architectures.forward import KVCache, Transformer
from edgekit.architectures.rope import turns_change
from edgekit.precision import find_precision
from edgekit.tensor import EncodedTensor
from edgekit_openvino import recipes
from edgekit_openvino.format import XML

_SPEC = importlib.util.spec_from_file_location("openvino_cases", Path(__file__).with_name("openvino_cases.py"))
cases = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = cases
_SPEC.loader.exec_module(cases)

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:nncf.*", "ignore::DeprecationWarning")
nncf.set_log_level(40)

TOKENS = cases.TOKENS
#: Measured: at most 4e-6.
TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=cases.vectors.CONFIGS)
def case(request, tmp_path_factory):
    """A family's model, and its graph."""
    model = cases.model_of(request.param)
    artifact = cases.written(model, tmp_path_factory.mktemp("graph"))
    return request.param, model, cases.Compiled(artifact.path / XML)


def test_logits(case):
    _, model, compiled = case
    compiled.request.reset_state()
    expected = Transformer(model).logits(TOKENS)
    assert cases.relative(compiled(TOKENS[None])[0], expected) < TOLERANCE


def test_token_by_token(case):
    name, model, compiled = case
    reference, past, seen = Transformer(model), KVCache(), 0
    compiled.request.reset_state()
    for size in (5, *[1] * (len(TOKENS) - 5)):
        new = TOKENS[seen : seen + size]
        if turns_change(model.config, seen, seen + size):  # start over, as the runtime does
            compiled.request.reset_state()
            new = TOKENS[: seen + size]
        logits = compiled(new[None], np.ones((1, seen + size), np.int64))
        assert cases.relative(logits[0, -1], reference.step(TOKENS[seen : seen + size], past)) < TOLERANCE, name
        seen += size


def test_a_batch_with_padding_on_the_left(case):
    _, model, compiled = case
    compiled.request.reset_state()
    mask = np.ones((2, 12), np.int64)
    mask[1, :5] = 0
    logits = compiled(np.stack([TOKENS[:12], np.r_[[0] * 5, TOKENS[:7]]]), mask)
    reference = Transformer(model)
    assert cases.relative(logits[0], reference.logits(TOKENS[:12])) < TOLERANCE
    if not turns_change(model.config, 7, 12):  # the graph takes the padded length
        assert cases.relative(logits[1, 5:], reference.logits(TOKENS[:7])) < TOLERANCE


def test_a_graph_is_fused_where_the_plugin_knows_how(tmp_path):
    """Attention with its cache, rotary embeddings and norms become one operation each."""
    artifact = cases.written(cases.model_of("llama"), tmp_path)
    compiled = ov.compile_model(artifact.path / XML, "CPU", cases.EXACT)
    kinds = [node.get_rt_info()["layerType"].astype(str) for node in compiled.get_runtime_model().get_ordered_ops()]
    counts = {kind: kinds.count(kind) for kind in ("ScaledDotProductAttention", "RoPE", "RMS", "MatMul")}
    assert counts == {"ScaledDotProductAttention": 3, "RoPE": 6, "RMS": 7, "MatMul": 0}


@pytest.mark.parametrize("model", ["stories", "sample_gguf"])
@pytest.mark.parametrize("recipe", ["float:F32", "INT8_ASYM", "INT4_SYM_G32"])
def test_trained_models(model, recipe, tmp_path, request):
    path = request.getfixturevalue(model)
    artifact = edgekit.quantize(path, recipe, to=tmp_path / "ir", format="openvino")
    tokens = np.array(edgekit.open(path).tokenizer.encode("Once upon a time there was a little dog."))
    logits = cases.Compiled(artifact.path / XML)(tokens[None])[0]
    assert cases.relative(logits, Transformer(artifact.model).logits(tokens)) < TOLERANCE


# Number formats: the IR's constants are the reference's codes, and OpenVINO computes with what they decode to.

SOME = [
    "int8-sym-channel", "int8-asym-channel", "int8-sym-g32", "int4-sym-g32", "int4-sym-channel", "int4-asym-g64",
    "int4-asym-channel", "int3-sym-g32", "int2-sym-g64", "cb4-g32", "fp4-g32", "fp8-g64", "mxfp4", "mxfp8", "nvfp4",
]  # fmt: skip


@pytest.mark.parametrize("name", [*(f"openvino:{name}" for name in SOME), "float:F16", "float:BF16"])
def test_the_library_computes_with_the_decoded_weights(name, tmp_path):
    model = cases.model_of("llama", width=64, ffn=128)
    artifact = cases.written(model, tmp_path, precision=name)
    kinds = {t.precision.name for t in artifact.model.tensors.values() if isinstance(t, EncodedTensor)}
    assert kinds == ({name} if name.startswith("openvino") else set())
    logits = cases.Compiled(artifact.path / XML)(TOKENS[None])[0]
    assert cases.relative(logits, Transformer(artifact.model).logits(TOKENS)) < TOLERANCE


def test_nf4_levels_are_float16_in_the_library(tmp_path):
    """openvino 2026.4.1 looks NF4 codes up in float16, unlike its own constant folding: 2^-12 of each level off."""
    artifact = cases.written(cases.model_of("llama", width=64, ffn=128), tmp_path, precision="openvino:nf4-g32")
    logits = cases.Compiled(artifact.path / XML)(TOKENS[None])[0]
    off = cases.relative(logits, Transformer(artifact.model).logits(TOKENS))
    assert 1e-4 < off < 2e-3


# Recipes, and IRs that NNCF has compressed.

NNCF = [
    (recipes.INT8_SYM, {}), (recipes.INT8_ASYM, {}), (recipes.INT4_SYM, {}), (recipes.INT4_ASYM_G32, {"group_size": 32}),
    (recipes.INT3_SYM_G64, {"group_size": 64}), (recipes.INT2_SYM_G32, {"group_size": 32}), (recipes.NF4_G64, {"group_size": 64}),
    (recipes.CB4, {}), (recipes.FP4_G32, {"group_size": 32}), (recipes.FP8_E4M3, {}), (recipes.MXFP4, {}),
    (recipes.MXFP8_E4M3, {}), (recipes.NVFP4, {}),
    (recipes.Nncf("INT4_SYM", 64, ratio=0.5), {"group_size": 64, "ratio": 0.5}),
    (recipes.Nncf("NF4", 32, ratio=0.3), {"group_size": 32, "ratio": 0.3}),
    (recipes.Nncf("INT4_ASYM", 32, all_layers=True), {"group_size": 32, "all_layers": True}),
]  # fmt: skip


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A model in float32 whose rows every group divides."""
    sizes = {"width": 256, "ffn": 384, "heads": 16, "kv_heads": 8, "head_dim": 16, "layers": 2}
    model = cases.model_of("llama", **sizes, rotary_dim=16, attention_scale=0.25)
    return cases.written(model, tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize(("recipe", "options"), NNCF, ids=[recipe.name for recipe, _ in NNCF])
def test_a_recipe_is_what_nncf_does_and_its_ir_is_read_back(recipe, options, plain, tmp_path):
    compressed = nncf.compress_weights(ov.Core().read_model(plain.path / XML), mode=Mode[recipe.mode], **options)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    ov.save_model(compressed, theirs / XML, compress_to_fp16=False)
    (theirs / "config.json").write_bytes((plain.path / "config.json").read_bytes())
    found = edgekit.open(theirs).model.tensors
    ours = edgekit.quantize(plain, recipe, to=tmp_path / "ours", format="openvino").model.tensors
    for name, tensor in ours.items():
        if not isinstance(tensor, EncodedTensor):
            assert tensor.read().tobytes() == found[name].read().tobytes(), name
            continue
        assert tensor.precision == found[name].precision, name
        wanted = tensor.read().parts
        for part, data in found[name].read().parts.items():
            assert np.asarray(data).tobytes() == np.asarray(wanted[part]).tobytes(), (name, part)


def test_an_ir_that_is_saved_in_float16_is_read_back(plain, tmp_path):
    folder = tmp_path / "half"
    folder.mkdir()
    ov.save_model(ov.Core().read_model(plain.path / XML), folder / XML)
    (folder / "config.json").write_bytes((plain.path / "config.json").read_bytes())
    tensor = edgekit.open(folder).model.tensors["blk.0.ffn_up.weight"]
    assert (tensor.dtype, tensor.shape) == ("float16", (384, 256))
    np.testing.assert_array_equal(
        tensor.float32(), plain.model.tensors["blk.0.ffn_up.weight"].float32().astype(np.float16).astype(np.float32)
    )


# Bridges.


@pytest.mark.parametrize(("recipe", "kind"), [("Q4_0", "int4-sym-g32"), ("Q8_0", "int8-sym-g32")])
def test_a_gguf_file_keeps_its_codes(recipe, kind, tmp_path):
    source = edgekit.quantize(sample.path(), recipe, to=tmp_path / "model.gguf")
    artifact = edgekit.convert(source, tmp_path / "ir", format="openvino")
    kinds = [t.precision.name for t in artifact.model.tensors.values() if isinstance(t, EncodedTensor)]
    assert kinds.count(f"openvino:{kind}") >= 20
    for name, tensor in source.model.tensors.items():
        assert tensor.float32().tobytes() == artifact.model.tensors[name].float32().tobytes(), name
    tokens = np.arange(3, 20)
    logits = cases.Compiled(artifact.path / XML)(tokens[None])[0]
    assert cases.relative(logits, Transformer(source.model).logits(tokens)) < TOLERANCE


def test_matmulnbits_keeps_its_codes_where_every_scale_is_a_float16(tmp_path):
    precision = find_precision("onnx:int4-sym-g32")
    model = cases.model_of("llama", width=64, ffn=128)
    tensors = dict(model.tensors)
    for name in ("blk.0.ffn_up.weight", "blk.0.ffn_down.weight"):
        values = tensors[name].float32()
        encoded = edgekit.encode(values, precision)
        scales = encoded.parts["scales"].astype(np.float16 if "up" in name else np.float32).astype(np.float32)
        parts = {**encoded.parts, "scales": scales}
        tensors[name] = EncodedTensor(
            name,
            tensors[name].shape,
            precision,
            encoded.nbytes,
            lambda a, b, p=parts: {k: v[a:b] for k, v in p.items()},
        )
    artifact = cases.written(edgekit.architectures.Model(model.config, tensors), tmp_path)
    found = artifact.model.tensors
    assert found["blk.0.ffn_up.weight"].precision.name == "openvino:int4-sym-g32"
    assert found["blk.0.ffn_down.weight"].dtype == "float32"
    for name in ("blk.0.ffn_up.weight", "blk.0.ffn_down.weight"):
        assert found[name].float32().tobytes() == tensors[name].float32().tobytes()
