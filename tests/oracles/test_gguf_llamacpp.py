"""Whole files against llama.cpp's own quantizer, and text generated from files that edgekit wrote."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import llama_cpp
import numpy as np
import pytest
from gguf import GGUFWriter

import edgekit
import edgekit_gguf
from edgekit_gguf import recipes
from edgekit_gguf.format import GgufFormat
from edgekit_gguf.recipes import GgufRecipe
from edgekit_gguf.types import TENSOR_TYPES

SAMPLE = Path(edgekit.__file__).parent / "sample" / "model"
GGUF = GgufFormat()
RECIPES = [getattr(recipes, name) for name in edgekit_gguf.RECIPES]
BY_NAME = {recipe.name: recipe for recipe in RECIPES}


_SILENT = llama_cpp.llama_log_callback(lambda *_: None)


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    llama_cpp.llama_log_set(_SILENT, ctypes.c_void_p(0))
    yield
    llama_cpp.llama_log_set(llama_cpp.llama_log_callback(0), ctypes.c_void_p(0))


@pytest.fixture
def source(request: pytest.FixtureRequest) -> Path:
    """A real model, as an F32 GGUF file."""
    found: Path = request.getfixturevalue(request.param)
    return found


both = pytest.mark.parametrize("source", ["stories", "sample_gguf"], indirect=True)


Importance = dict[str, np.ndarray]


def llama_quantize(source: Path, target: Path, recipe: GgufRecipe, importance: Importance | None = None) -> bytes:
    """What ``llama-quantize`` writes."""
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = recipe.file_type, 1
    if importance:
        entry, pointer = llama_cpp.llama_model_imatrix_data, ctypes.POINTER(ctypes.c_float)
        entries = [entry(name.encode(), v.ctypes.data_as(pointer), len(v)) for name, v in importance.items()]
        parameters.imatrix = (entry * (len(entries) + 1))(*entries)
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(parameters)) == 0
    return target.read_bytes()


def llama_types(source: Path, recipe: GgufRecipe, weighed: bool) -> dict[str, str]:
    """The types that ``llama-quantize --dry-run`` announces: tensor to precision, in its order."""
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.dry_run = recipe.file_type, True
    nothing = (ctypes.c_float * 1)(1.0)
    named = llama_cpp.llama_model_imatrix_data(b"no such tensor", nothing, 1)
    if weighed:
        parameters.imatrix = (llama_cpp.llama_model_imatrix_data * 2)(named)
    said: list[str] = []
    callback = llama_cpp.llama_log_callback(lambda _, text, __: said.append(text.decode()))
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    assert llama_cpp.llama_model_quantize(str(source).encode(), b"", ctypes.byref(parameters)) == 0
    llama_cpp.llama_log_set(_SILENT, ctypes.c_void_p(0))
    line = r"\[ *\d+/ *\d+\] (\S+) .*?type = +(\S+), .*?size = +\S+ MiB(?: -> .*? MiB \((\S+)\))?\n"
    lines = re.findall(line, "".join(said), re.DOTALL)
    return {name: _PRECISIONS[after or before] for name, before, after in lines}


#: llama.cpp's spelling of types.
_PRECISIONS = {t.name.lower(): t.precision for t in TENSOR_TYPES.values()}
_PRECISIONS |= {t.name.replace("Q", "q"): t.precision for t in TENSOR_TYPES.values()}


@pytest.mark.parametrize("weighed", [False, True], ids=["plain", "weighed"])
@both
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_files_equal_llama_quantizes(
    recipe: GgufRecipe, weighed: bool, source: Path, sample_gguf: Path, tmp_path: Path
):
    if source == sample_gguf and recipe.name == "Q2_K_S" and not weighed:
        pytest.skip("llama.cpp refuses Q2_K_S without an importance matrix")
    if source != sample_gguf and recipe.name == "Q1_0":
        pytest.skip("llama.cpp has no fallback for Q1_0, whose blocks do not divide rows of 64")
    importance = random_importance(source) if weighed else None
    theirs = llama_quantize(source, tmp_path / "theirs.gguf", recipe, importance)
    edgekit.quantize(
        source, recipe, to=tmp_path / "ours.gguf", importance=importance, backend="reference", exact_importance=True
    )
    ours = (tmp_path / "ours.gguf").read_bytes()
    assert ours == theirs, f"{recipe.name}: first differing byte {first_difference(ours, theirs)}"


def random_importance(source: Path) -> Importance:
    """Heavy-tailed, as mean squared activations are."""
    rng = np.random.default_rng(5)
    matrices = {name: t for name, t in GGUF.open(source).tensors.items() if len(t.shape) == 2}
    return {name: (rng.standard_normal(t.shape[-1]) ** 4 + 1e-3).astype(np.float32) for name, t in matrices.items()}


def first_difference(a: bytes, b: bytes) -> int:
    """Offset of the first differing byte."""
    shorter = min(len(a), len(b))
    unequal = np.frombuffer(a, np.uint8, shorter) != np.frombuffer(b, np.uint8, shorter)
    return int(unequal.argmax()) if unequal.any() else shorter


def test_a_directory_is_quantized_as_its_f32_file(sample_gguf: Path, tmp_path: Path):
    theirs = llama_quantize(sample_gguf, tmp_path / "theirs.gguf", BY_NAME["Q4_K_M"])
    edgekit.quantize(SAMPLE, "Q4_K_M", to=tmp_path / "ours.gguf", backend="reference")
    assert (tmp_path / "ours.gguf").read_bytes() == theirs


# Shapes on which every rule and fallback shows: architecture, layers, width, ffn, heads, kv_heads, experts, tied.
SYNTHETIC = {
    "one-of-each": ("llama", 2, 256, 256, 4, 4, 0, False),
    "deep": ("llama", 33, 256, 256, 8, 2, 0, True),
    "fused": ("phi3", 17, 256, 512, 4, 4, 0, False),
    "70B": ("llama", 80, 256, 256, 8, 1, 0, False),
    "80-layers-ungrouped": ("llama", 80, 256, 256, 8, 8, 0, False),
    "80-layers-qwen": ("qwen2", 80, 256, 256, 8, 1, 0, False),
    "eight-experts": ("llama", 9, 256, 256, 8, 2, 8, False),
    "four-experts": ("llama", 9, 256, 256, 8, 2, 4, True),
    "blocks-of-32": ("llama", 9, 96, 352, 3, 3, 0, True),
    "no-blocks": ("llama", 9, 48, 200, 2, 1, 0, False),
    "tied-qwen": ("qwen2", 18, 512, 256, 4, 1, 0, True),
}


def write_synthetic(path: Path, architecture: str, layers: int, width: int, ffn: int, heads: int, kv_heads: int,
                    experts: int, tied: bool) -> None:  # fmt: skip
    """A model of zeros, written by gguf-py in an order that is not llama.cpp's."""
    writer = GGUFWriter(path, architecture)
    writer.add_block_count(layers)
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(8)
    writer.add_tokenizer_model("no_vocab")
    if experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(2)
    keys = width // heads * kv_heads
    matrices: dict[str, tuple[int, ...]] = {"attn_output": (width, width)}
    if architecture == "phi3":
        matrices |= {"attn_qkv": (width + 2 * keys, width), "ffn_up": (2 * ffn, width), "ffn_down": (width, ffn)}
    else:
        matrices |= {"attn_q": (width, width), "attn_k": (keys, width), "attn_v": (keys, width)}
        suffix, lead = ("_exps", (experts,)) if experts else ("", ())
        matrices |= {f"ffn_{name}{suffix}": (*lead, ffn, width) for name in ("up", "gate")}
        matrices[f"ffn_down{suffix}"] = (*lead, width, ffn)
        if experts:
            matrices["ffn_gate_inp"] = (experts, width)
    for layer in reversed(range(layers)):
        for name, shape in matrices.items():
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.zeros(shape, np.float32))
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(width, np.float32))
        if architecture == "qwen2":
            for name, size in (("attn_q", width), ("attn_k", keys), ("attn_v", keys)):
                writer.add_tensor(f"blk.{layer}.{name}.bias", np.ones(size, np.float32))
    for name in ("token_embd", "output_norm") + (() if tied else ("output",)):
        shape = (width,) if name.endswith("norm") else (8, width)
        writer.add_tensor(f"{name}.weight", np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("model", SYNTHETIC)
def test_every_rule_and_fallback_is_llama_cpps(model: str, tmp_path: Path):
    """Types and order; bytes are compared on real models above, and type by type in the core's own oracles."""
    source = tmp_path / "source.gguf"
    write_synthetic(source, *SYNTHETIC[model])
    layout = GGUF.layout(GGUF.open(source))
    configs = {layout.model and layout.model.config, None}  # without it the facts are read off names and shapes
    for recipe, weighed, config in product(RECIPES, [False, True], configs):
        if recipe.name == "Q1_0" and any(slot.shape[-1] % 128 for slot in layout.slots):
            continue  # llama.cpp has no fallback for it, and stops
        theirs = llama_types(source, recipe, weighed)
        assert len(theirs) == len(layout.slots)
        ours = {a.name: a.precision.name for a in recipe.plan(layout.slots, config, importance=weighed)}
        wrong = {name: (ours[name], theirs[name]) for name in theirs if ours[name] != theirs[name]}
        assert not wrong, f"{model} {recipe.name} {weighed=}: (ours, llama.cpp's) {wrong}"
        assert list(ours) == list(theirs), f"{model} {recipe.name}: another order"


def greedy(path: Path, prompt: str, tokens: int = 60) -> str:
    """What llama.cpp writes at temperature 0 from the file."""
    model = llama_cpp.Llama(str(path), n_ctx=128, n_threads=1, verbose=False, seed=1)
    text = model.create_completion(prompt, max_tokens=tokens, temperature=0.0)["choices"][0]["text"]
    model.close()
    return str(text)


@both
@pytest.mark.parametrize("dtype", ["F32", "F16"])
def test_text_is_the_same_after_conversion(source: Path, dtype: str, tmp_path: Path):
    edgekit.convert(source, tmp_path / "converted.gguf", dtype=dtype)
    before = greedy(source, "Once upon a time")
    assert len(before) > 60
    assert greedy(tmp_path / "converted.gguf", "Once upon a time") == before


@both
@pytest.mark.parametrize("recipe", ["Q8_0", "Q4_K_M", "Q2_K"])
def test_quantized_files_run(recipe: str, source: Path, tmp_path: Path):
    path = tmp_path / "model.gguf"
    edgekit.quantize(source, recipe, to=path)
    assert greedy(path, "Once", 20).strip(), f"{source.name} in {recipe} says nothing"
