"""Experts, hybrids and the other newer families as MLX directories: five random configurations of each (`families/`).

mlx-lm loads what edgekit writes and computes the same; what mlx-lm makes of a Hugging Face directory has the same
tensors, and opens with its encoded ones.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import shutil
from functools import cache
from pathlib import Path

import attrs
import family_oracles as oracles
import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import linear_to_lora_layers
from safetensors.numpy import load_file, save_file
from test_families_mxfp4 import packed  # noqa: F401  # a fixture

import edgekit
import edgekit_mlx.families
import edgekit_mlx.ops
from edgekit.architectures.forward import Transformer
from edgekit.architectures.hf import config_from_hf
from edgekit.errors import UnsupportedModelError
from edgekit.tensor import EncodedTensor
from edgekit.testing.models import artifact_of, random_model
from edgekit_mlx.adapters import fused
from edgekit_mlx.batching import Batch
from edgekit_mlx.families import COMPARED, faithful_context
from edgekit_mlx.library import from_mlx


def described(path: Path):
    """The module that describes a family's tests."""
    spec = importlib.util.spec_from_file_location(f"family_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


EVERY = {path.stem: described(path) for path in sorted(Path(__file__).with_name("families").glob("*.py"))}
MODULES = {family: module for family, module in EVERY.items() if family in COMPARED}
#: What mlx-lm's classes do not have.
REFUSED = {
    ("gemma", "untied"): "its gemma has no output matrix of its own",
    ("gemma2", "untied"): "its gemma2 has no output matrix of its own",
    ("gemma3", "odd-sizes"): "its gemma3 has a full layer at the end of every so many layers",
    ("gemma3", "untied"): "its gemma3 has a full layer at the end of every so many layers",
    ("granitemoehybrid", "odd-sizes"): "it normalizes all groups of a Mamba layer together",
    ("lfm2", "untied"): "its lfm2 has no output matrix of its own",
    ("lfm2_moe", "untied"): "its lfm2_moe has no output matrix of its own",
    ("mixtral", "wide-heads"): "its mixtral has heads of width / heads",
    ("phi3", "phi-4-mini"): "it applies longrope's long factors to short sequences too",
    ("qwen3", "biases"): "its qwen3 has no such biases",
    ("qwen3_5", "as-many-values"): "its qwen3_5 has a layer with attention at the end of every so many layers",
    ("qwen3_5_moe", "as-many-values"): "its qwen3_5_moe has a layer with attention at the end of every so many layers",
    ("qwen3_next", "as-many-values"): "its qwen3_next has a layer with attention at the end of every so many layers",
    ("gemma4", "fewer-key-heads"): "its gemma4 has the same number of key heads in all layers that have values",
    ("llama4_text", "all-experts"): "its llama4 has one expert for a token, this one 2",
    ("llama4_text", "llama3"): "it normalizes queries and keys with an epsilon of 1e-06, this model with 0.001",
    ("llama4_text", "three-layers"): "its llama4 has 4 layers or more, this one 3",
    ("llama4_text", "positions-everywhere"): "its llama4 has full attention without positions in every fourth layer",
    ("llama4_text", "experts-first"): "its llama4 has experts in the last of every so many layers",
    ("nemotron_h", "no-mamba"): "its nemotron_h has layers with attention and layers with Mamba",
    ("nemotron_h_moe", "one-expert"): "it does not normalize the weight of a single expert",
    ("phimoe", "near"): "its phimoe has no such biases",
    ("phimoe", "tied"): "its phimoe has no such biases",
    ("phimoe", "odd-sizes"): "its phimoe has no such biases",
    ("phimoe", "longrope"): "its phimoe has no such biases",
    ("phimoe", "output-without-bias"): "its phimoe has a bias of the output matrix",
    ("phimoe", "longrope-with-biases"): "it applies longrope's long factors to short sequences too",
}
_BIASES = {"lm_head_bias": True, "attention_bias": True}
_GEMMA4, _LLAMA4, _NEMOTRON, _NEMOTRON_MOE, _PHI = (
    EVERY[family].CONFIGS for family in ("gemma4", "llama4_text", "nemotron_h", "nemotron_h_moe", "phimoe")
)
#: Configurations that mlx-lm's classes tell apart, besides those that all formats are tested with.
FURTHER = {
    ("gemma4", "fewer-key-heads"): _GEMMA4["ropes"]
    | {"per_layer_config": {str(n): {"head_dim": 64, "num_key_value_heads": 1} for n in (2, 5)}},
    ("llama4_text", "equal-epsilon"): _LLAMA4["plain"] | {"rms_norm_eps": 1e-6, "attention_chunk_size": 8},
    ("llama4_text", "dense"): _LLAMA4["plain"] | {"moe_layers": []},
    ("llama4_text", "scaled"): _LLAMA4["llama3"] | {"rms_norm_eps": 1e-5},
    ("llama4_text", "three-layers"): _LLAMA4["plain"] | {"num_hidden_layers": 3},
    ("llama4_text", "positions-everywhere"): _LLAMA4["plain"] | {"no_rope_layers": [1] * 4},
    ("llama4_text", "experts-first"): _LLAMA4["plain"] | {"moe_layers": [0, 1]},
    ("nemotron_h", "no-mamba"): _NEMOTRON["plain"] | {"layers_block_type": ["mlp", "full_attention"]},
    ("nemotron_h_moe", "groups"): _NEMOTRON_MOE["plain"] | {"n_group": 2, "topk_group": 1},
    ("nemotron_h_moe", "one-expert"): _NEMOTRON_MOE["plain"] | {"num_experts_per_tok": 1},
    ("phimoe", "near-with-biases"): _PHI["near"] | _BIASES,
    ("phimoe", "odd-sizes-with-biases"): _PHI["odd-sizes"] | _BIASES | {"sliding_window": 40},
    ("phimoe", "output-without-bias"): _PHI["plain"] | {"lm_head_bias": False},
    ("phimoe", "longrope-with-biases"): _PHI["longrope"] | _BIASES,
}
CONFIGS = {(family, name): each for family, module in MODULES.items() for name, each in module.CONFIGS.items()}
CONFIGS |= FURTHER
#: The first configuration of each family.
PLAIN = {family: next(iter(module.CONFIGS)) for family, module in MODULES.items()}


def within_windows(family: str, name: str) -> bool:
    """Whether mlx-lm computes the test's tokens; of texts beyond a window that it ignores see test_mlx_runtime.py."""
    return faithful_context(config_from_hf(CONFIGS[family, name], name)) >= len(oracles.TOKENS)


CASES = [case for case in CONFIGS if case not in REFUSED and within_windows(*case)]
#: Of logits against numpy's, of the largest. Measured: at most 5e-6.
TOLERANCE = 1e-4
cases = pytest.mark.parametrize(("family", "name"), CASES, ids=["-".join(case) for case in CASES])
families = pytest.mark.parametrize("family", [case[0] for case in PLAIN.items() if case in CASES])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory):
    """For a family and a configuration: the directory that transformers wrote."""

    @cache
    def made(family: str, name: str) -> Path:
        folder = tmp_path_factory.mktemp(f"{family}-{name}".replace(".", "_")) / "hf"
        oracles.saved_model(CONFIGS[family, name], folder)
        return folder

    return made


def logits(module, tokens=oracles.TOKENS):
    return np.array(module(mx.array([tokens.tolist()])).astype(mx.float32))[0]


def quietly(function, *arguments, **options):
    with contextlib.redirect_stdout(io.StringIO()):
        return function(*arguments, **options)


@cases
def test_mlx_lm_loads_what_is_written_and_computes_the_same(family, name, saved, tmp_path):
    source = edgekit.open(saved(family, name))
    wanted = Transformer(source.model).logits(oracles.TOKENS)
    artifact = edgekit.convert(source, tmp_path / "mlx", format="mlx")
    assert oracles.relative(logits(mlx_lm.utils.load_model(artifact.path)[0]), wanted) < TOLERANCE
    again = edgekit.open(artifact.path)
    assert again.model.config == source.model.config
    assert oracles.relative(Transformer(again.model).logits(oracles.TOKENS), wanted) < 1e-5
    with edgekit.load(artifact, "mlx") as runtime:
        assert oracles.relative(runtime.logits(oracles.TOKENS), wanted) < TOLERANCE
        greedy = list(runtime.tokens(oracles.TOKENS[:6].tolist(), max_tokens=6))  # one by one, with states
        rows = runtime.logits(np.array([*oracles.TOKENS[:6], *greedy]))
        assert greedy == rows[5:-1].argmax(-1).tolist()


def unread(artifact):
    """The artifact with tensors that cannot be read."""

    def refuse(start, stop):
        raise AssertionError("a tensor is read")

    tensors = {name: attrs.evolve(tensor, read_rows=refuse) for name, tensor in artifact.model.tensors.items()}
    model = attrs.evolve(artifact.model, tensors=tensors)
    return attrs.evolve(artifact, load_model=lambda: model)


@pytest.mark.parametrize(("family", "name"), REFUSED, ids=["-".join(case) for case in REFUSED])
def test_what_mlx_lm_would_compute_otherwise_is_refused_before_a_tensor_is_read(family, name, saved, tmp_path):
    with pytest.raises(UnsupportedModelError, match=REFUSED[family, name]):
        edgekit.convert(unread(edgekit.open(saved(family, name))), tmp_path / "mlx", format="mlx")
    assert not (tmp_path / "mlx").exists()


def test_every_family_of_decoders_is_compared():
    assert EVERY.keys() <= set(COMPARED)


def test_a_family_that_was_not_compared_is_refused(tmp_path, monkeypatch):
    """Which only a plugin's is."""
    monkeypatch.setattr(edgekit_mlx.families, "COMPARED", tuple(name for name in COMPARED if name != "llama"))
    sizes = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = config_from_hf(
        {"model_type": "llama", "intermediate_size": 48, "max_position_embeddings": 32, **sizes}, ""
    )
    source = artifact_of(random_model(config), tmp_path / "memory")
    with pytest.raises(UnsupportedModelError, match="edgekit has not compared the family llama with it"):
        edgekit.convert(unread(source), tmp_path / "mlx", format="mlx")


def test_an_encoder_that_needs_what_mlx_lacks_is_refused(tmp_path, monkeypatch):
    available = [name for name in edgekit_mlx.ops.AVAILABLE if name != "layer_norm"]
    monkeypatch.setattr(edgekit_mlx.ops, "AVAILABLE", available)
    sizes = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = config_from_hf({"model_type": "bert", "intermediate_size": 48, "max_position_embeddings": 32, **sizes}, "")
    source = artifact_of(random_model(config), tmp_path / "memory")
    with pytest.raises(UnsupportedModelError, match=r"runtime mlx cannot run bert models: .* operation layer_norm"):
        edgekit.convert(unread(source), tmp_path / "mlx", format="mlx")


@pytest.mark.parametrize("family", [case[0] for case in PLAIN.items() if case in CASES and case[0] != "gpt_oss"])
def test_mlx_lm_makes_the_same_tensors_of_a_hugging_face_directory(family, saved, tmp_path):
    """Of gpt-oss it reads MXFP4 alone; see below. Its config.json is edgekit's: it lacks defaults of transformers 5."""
    ours = edgekit.convert(saved(family, PLAIN[family]), tmp_path / "mlx", format="mlx")
    hf = shutil.copytree(saved(family, PLAIN[family]), tmp_path / "hf")
    shutil.copy(ours.path / "config.json", hf / "config.json")
    if family == "qwen3_5_moe":
        together(hf / "model.safetensors")
    if family == "llama4_text":  # mlx-lm reads the names of the multimodal checkpoint
        tensors = load_file(hf / "model.safetensors")
        save_file({f"language_model.{n}": t for n, t in tensors.items()}, hf / "model.safetensors", {"format": "pt"})
    theirs = dict(tree_flatten(mlx_lm.utils.load_model(hf)[0].parameters()))
    assert theirs.keys() == ours.tensors.keys()
    for name, tensor in ours.tensors.items():
        # Gemma's norms have 1 added and taken away again: half a unit in the last place of numbers below 2.
        off = 2.0**-24 if family in ("gemma", "gemma3") and "norm" in name else 0.0
        np.testing.assert_allclose(from_mlx(theirs[name]), tensor.read(), rtol=0, atol=off, err_msg=name)


def together(file: Path) -> None:
    """Gate and up of all experts in one tensor, as Qwen 3.5 is published."""
    tensors = load_file(file)
    count = MODULES["qwen3_5_moe"].BASE["num_experts"]
    for first in [name for name in tensors if name.endswith("experts.0.gate_proj.weight")]:
        prefix = first.removesuffix("0.gate_proj.weight")

        def stack(projection, prefix=prefix):
            return np.stack([tensors.pop(f"{prefix}{i}.{projection}.weight") for i in range(count)])

        tensors[f"{prefix}gate_up_proj"] = np.concatenate([stack("gate_proj"), stack("up_proj")], axis=1)
        tensors[f"{prefix}down_proj"] = stack("down_proj")
    save_file(tensors, file, {"format": "pt"})


def with_modes(section):
    """The section with the modes that mlx-lm leaves out of a module's entry."""
    return {key: {"mode": "affine", **value} if isinstance(value, dict) else value for key, value in section.items()}


@families
def test_what_mlx_lm_quantizes_opens_with_encoded_tensors(family, saved, tmp_path):
    """All bytes and all of the section are those of the recipe ``4bit``, routers in 8 bits included."""
    plain = edgekit.convert(saved(family, PLAIN[family]), tmp_path / "mlx", format="mlx")
    module, config = mlx_lm.utils.load_model(plain.path)
    module, config = quietly(mlx_lm.utils.quantize_model, module, config, 64, 4)
    (tmp_path / "theirs").mkdir()
    mlx_lm.utils.save_model(tmp_path / "theirs", module)
    mlx_lm.utils.save_config(config, tmp_path / "theirs" / "config.json")
    theirs = edgekit.open(tmp_path / "theirs")
    ours = edgekit.quantize(plain, "4bit", to=tmp_path / "ours", format="mlx", allow_unquantized=True)
    assert with_modes(theirs.config["quantization"]) == ours.config["quantization"]
    assert theirs.tensors.keys() == ours.tensors.keys()
    for name, tensor in theirs.tensors.items():
        mine = ours.tensors[name]
        assert isinstance(tensor, EncodedTensor) == isinstance(mine, EncodedTensor), name
        parts = tensor.read().parts if isinstance(tensor, EncodedTensor) else {"": tensor.read()}
        own = mine.read().parts if isinstance(mine, EncodedTensor) else {"": mine.read()}
        assert {key: part.tobytes() for key, part in parts.items()} == {k: v.tobytes() for k, v in own.items()}, name
    wanted = Transformer(theirs.model).logits(oracles.TOKENS)
    with edgekit.load(theirs, "mlx") as runtime:
        # Measured: at most 5e-6.
        assert oracles.relative(runtime.logits(oracles.TOKENS), wanted) < TOLERANCE


def test_mxfp4_experts_are_those_that_mlx_lm_reads(packed, tmp_path):  # noqa: F811
    ours = edgekit.convert(packed, tmp_path / "mlx", format="mlx")
    config = json.loads((ours.path / "config.json").read_text())
    experts = {name: t for name, t in ours.tensors.items() if isinstance(t, EncodedTensor)}
    assert {t.precision.name for t in experts.values()} == {"mlx:mxfp4"}
    hf = shutil.copytree(packed, tmp_path / "hf")
    (hf / "config.json").write_text(json.dumps(config))
    theirs = dict(tree_flatten(mlx_lm.utils.load_model(hf)[0].parameters()))
    for name, tensor in experts.items():
        for part, values in tensor.read().parts.items():
            found = from_mlx(theirs[f"{name.removesuffix('weight')}{part}"])
            np.testing.assert_array_equal(found.reshape(-1), values.reshape(-1))
    wanted = Transformer(edgekit.open(packed).model).logits(oracles.TOKENS)
    assert oracles.relative(logits(mlx_lm.utils.load_model(ours.path)[0]), wanted) < TOLERANCE


def test_a_ramp_that_mlx_lm_rounds_is_said(saved, tmp_path):
    source = shutil.copytree(saved("gpt_oss", "plain"), tmp_path / "hf")
    config = json.loads((source / "config.json").read_text())
    config["rope_parameters"]["truncate"] = False
    (source / "config.json").write_text(json.dumps(config))
    said: list[str] = []
    made = edgekit.convert(source, tmp_path / "mlx", format="mlx", notes=said)
    assert any("mlx-lm rounds the borders of yarn's ramp" in note for note in said)
    wanted = Transformer(made.model).logits(oracles.TOKENS)
    found = logits(mlx_lm.utils.load_model(made.path)[0])
    # Measured: 2.4e-3.
    assert oracles.deviations(found, wanted) < 1e-2


@pytest.mark.parametrize(
    "family",
    ["qwen3_next", "qwen3_5", "lfm2", "granitemoehybrid", "gpt_oss", "gemma4", "nemotron_h", "llama4_text"],
)
def test_a_cache_of_states_on_disk_goes_on(family, saved, tmp_path):
    """Recurrent layers keep states that nothing can be dropped from."""
    artifact = edgekit.convert(saved(family, PLAIN[family]), tmp_path / "mlx", format="mlx")
    start = oracles.TOKENS[:12].tolist()
    with edgekit.load(artifact, "mlx") as runtime:
        wanted = list(runtime.tokens(oracles.TOKENS.tolist(), max_tokens=8))
        list(runtime.tokens(start, max_tokens=1))
        runtime.save_prompt_cache(tmp_path / "kept")
    with edgekit.load(artifact, "mlx", prompt_cache=str(tmp_path / "kept")) as runtime:
        assert runtime._held.seen == start
        assert list(runtime.tokens(oracles.TOKENS.tolist(), max_tokens=8)) == wanted
        assert list(runtime.tokens(start, max_tokens=3)) == runtime.logits(start)[-1:].argmax(-1).tolist() + list(
            runtime.tokens([*start, int(runtime.logits(start)[-1].argmax())], max_tokens=2)
        )


@families
def test_a_batch_is_what_one_by_one_gives(family, saved, tmp_path):
    """Merged caches of keys and values, of windows and of states; prompts of different lengths."""
    artifact = edgekit.convert(saved(family, PLAIN[family]), tmp_path / "mlx", format="mlx")
    prompts = [oracles.TOKENS[:5].tolist(), oracles.TOKENS[3:17].tolist(), oracles.TOKENS[:1].tolist()]
    with edgekit.load(artifact, "mlx") as runtime:
        wanted = [list(runtime.tokens(prompt, max_tokens=10)) for prompt in prompts]
        batch = Batch(runtime)
        texts = [batch.join(prompt, 10, lambda scores: int(scores.argmax())) for prompt in prompts]
        found = [[] for _ in prompts]
        for _ in range(10):
            for text, tokens in zip(texts, found, strict=True):
                tokens.append(next(text))
    assert found == wanted


ADAPTED = {
    **{family: PLAIN[family] for family in ("qwen3_next", "qwen3_5", "lfm2", "granitemoehybrid", "gpt_oss")},
    **{family: PLAIN[family] for family in ("mixtral", "qwen3_5_moe", "llama4_text", "nemotron_h_moe", "phimoe")},
    "gemma4": "experts-and-keys-as-values",
}


@pytest.mark.parametrize("family", ADAPTED)
def test_an_adapter_of_mlx_lm_is_fused(family, saved, tmp_path):
    """In every linear layer and stack of experts: fused projections, heads in another order, names with a prefix."""
    artifact = edgekit.convert(saved(family, ADAPTED[family]), tmp_path / "mlx", format="mlx")
    module, _ = mlx_lm.utils.load_model(artifact.path)
    kinds = ("Linear", "SwitchLinear")
    keys = {name for layer in module.layers for name, leaf in layer.named_modules() if type(leaf).__name__ in kinds}
    linear_to_lora_layers(module, len(module.layers), {"rank": 2, "scale": 3.0, "dropout": 0.0, "keys": sorted(keys)})
    random = np.random.default_rng(0)
    values = {
        name: mx.array(random.standard_normal(value.shape).astype(np.float32) * 0.2)
        for name, value in tree_flatten(module.parameters())
        if "lora" in name
    }
    module.load_weights(list(values.items()), strict=False)
    module.eval()
    (tmp_path / "a").mkdir()
    mx.save_safetensors(str(tmp_path / "a" / "adapters.safetensors"), values)
    config = {"fine_tune_type": "lora", "num_layers": -1, "lora_parameters": {"rank": 2, "scale": 3.0, "dropout": 0.0}}
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(config))
    added = fused(artifact, tmp_path / "a")
    wanted = logits(module)
    assert oracles.relative(Transformer(added.model).logits(oracles.TOKENS), wanted) < TOLERANCE
    assert oracles.relative(Transformer(artifact.model).logits(oracles.TOKENS), wanted) > 1e-2
    written = edgekit.convert(added, tmp_path / "fused", format="mlx")
    assert oracles.relative(logits(mlx_lm.utils.load_model(written.path)[0]), wanted) < TOLERANCE
