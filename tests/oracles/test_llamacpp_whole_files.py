"""Every recipe on every shape that its rules tell apart: whole files, byte for byte as ``llama_model_quantize`` writes.

Both backends, F32 and F16 sources, with and without an importance matrix. The models are random; `test_gguf_llamacpp`
has the real ones, and the types alone of models too large for here (70B, 80 layers).
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import llama_cpp
import numpy as np
import pytest
from gguf import GGUFWriter

import edgekit
from edgekit_gguf import recipes
from edgekit_gguf.format import GgufFormat
from edgekit_gguf.types import FILE_TYPES

GGUF = GgufFormat()
RECIPES = (
    "Q2_K", "Q2_K_S", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_0", "Q4_1", "Q4_K_S", "Q4_K_M", "Q5_0", "Q5_1", "Q5_K_S",
    "Q5_K_M", "Q6_K", "Q8_0", "IQ4_NL", "IQ4_XS",
)  # fmt: skip
#: Those whose rules count layers: enough for deep models, which take their time.
COUNTING = ("Q2_K_S", "Q3_K_M", "Q4_0", "Q4_K_S", "Q4_K_M", "Q5_0", "IQ4_XS")
VOCAB = 40


@attrs.frozen
class Shape:
    """What the recipes' rules ask of a model."""

    family: str = "llama"
    layers: int = 2
    width: int = 256
    ffn: int = 256
    heads: int = 4
    kv_heads: int = 4
    experts: int = 0
    tied: bool = False

    def matrices(self) -> dict[str, tuple[int, ...]]:
        """Of one layer."""
        keys = self.width // self.heads * self.kv_heads
        found: dict[str, tuple[int, ...]] = {"attn_output": (self.width, self.width)}
        if self.family == "phi3":
            found |= {"attn_qkv": (self.width + 2 * keys, self.width), "ffn_up": (2 * self.ffn, self.width)}
            return found | {"ffn_down": (self.width, self.ffn)}
        found |= {"attn_q": (self.width, self.width), "attn_k": (keys, self.width), "attn_v": (keys, self.width)}
        suffix, lead = ("_exps", (self.experts,)) if self.experts else ("", ())
        found |= {f"ffn_{name}{suffix}": (*lead, self.ffn, self.width) for name in ("up", "gate")}
        found[f"ffn_down{suffix}"] = (*lead, self.width, self.ffn)
        return found | ({"ffn_gate_inp": (self.experts, self.width)} if self.experts else {})

    def vectors(self) -> dict[str, int]:
        """Of one layer."""
        found = {"attn_norm.weight": self.width, "ffn_norm.weight": self.width}
        if self.family == "gemma2":
            found |= {"post_attention_norm.weight": self.width, "post_ffw_norm.weight": self.width}
        if self.family == "qwen2":
            found |= {f"attn_{n}.bias": self.matrices()[f"attn_{n}"][0] for n in "qkv"}
        return found


SHAPES = {
    "ungrouped": Shape(),
    "grouped by 2, 9 layers": Shape(layers=9, kv_heads=2, tied=True),
    "grouped by 4, qwen2": Shape("qwen2", heads=8, kv_heads=2),
    "grouped by 8, 17 layers": Shape(layers=17, heads=8, kv_heads=1),
    "gemma2": Shape("gemma2", heads=4, kv_heads=2, tied=True),
    "phi3, fused": Shape("phi3"),
    "eight experts": Shape(layers=1, heads=8, kv_heads=2, experts=8),
    "four experts": Shape(layers=1, experts=4, tied=True),
    "rows that 256 does not divide": Shape(layers=9, width=96, ffn=352, heads=3, kv_heads=3, tied=True),
    "rows that 32 does not divide": Shape(layers=3, width=80, ffn=172, heads=4, kv_heads=1),
}


def write(path: Path, shape: Shape, dtype: Any, alignment: int = 0) -> Path:
    """A model of heavy-tailed weights, by gguf-py, the layers not in llama.cpp's order."""
    writer = GGUFWriter(path, shape.family)
    if alignment:
        writer.add_custom_alignment(alignment)
    writer.add_block_count(shape.layers)
    writer.add_context_length(64)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    if shape.experts:
        writer.add_expert_count(shape.experts)
        writer.add_expert_used_count(2)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", *(f"t{i}" for i in range(VOCAB - 3))])
    writer.add_token_scores([0.0] * VOCAB)
    writer.add_token_types([2, 3, 3, *[1] * (VOCAB - 3)])
    for name, values in _tensors(shape, np.random.default_rng(11), dtype):
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _tensors(shape: Shape, random: np.random.Generator, dtype: Any) -> Iterator[tuple[str, np.ndarray]]:
    def matrix(*size: int) -> np.ndarray:
        return (random.standard_normal(size) * np.exp(random.standard_normal(size[-1])) / 8).astype(dtype)

    for layer in reversed(range(shape.layers)):
        for name, size in shape.matrices().items():
            values = matrix(*size)
            yield f"blk.{layer}.{name}.weight", values.astype(np.float32) if name == "ffn_gate_inp" else values
        for name, count in shape.vectors().items():
            yield f"blk.{layer}.{name}", np.ones(count, np.float32)
    yield "output_norm.weight", np.ones(shape.width, np.float32)
    yield "token_embd.weight", matrix(VOCAB, shape.width)
    if not shape.tied:
        yield "output.weight", matrix(VOCAB, shape.width)


def importance_of(source: Path) -> dict[str, np.ndarray]:
    """For every matrix but those of experts, of which each would have its own."""
    random = np.random.default_rng(5)
    tensors = {name: t for name, t in GGUF.open(source).tensors.items() if len(t.shape) == 2}
    return {name: (random.standard_normal(t.shape[-1]) ** 4 + 1e-3).astype(np.float32) for name, t in tensors.items()}


def llama_quantize(source: Path, target: Path, recipe: str, importance: dict[str, np.ndarray] | None) -> bool:
    """Whether llama.cpp writes it; Q2_K_S it refuses without an importance matrix."""
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = FILE_TYPES[recipe], 1
    entry, pointer = llama_cpp.llama_model_imatrix_data, ctypes.POINTER(ctypes.c_float)
    entries = [entry(n.encode(), v.ctypes.data_as(pointer), len(v)) for n, v in (importance or {}).items()]
    if entries:
        parameters.imatrix = (entry * (len(entries) + 1))(*entries)
    return llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(parameters)) == 0


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    callback = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    yield
    llama_cpp.llama_log_set(llama_cpp.llama_log_callback(0), ctypes.c_void_p(0))


#: The reference encodes these too; what it gives for each type is compared in `test_ggml_exact`.
SLOWLY = ("ungrouped", "grouped by 4, qwen2", "rows that 256 does not divide", "rows that 32 does not divide")


@pytest.mark.parametrize(("dtype", "weighed"), [(np.float32, False), (np.float16, True)], ids=["F32", "F16, weighed"])
@pytest.mark.parametrize("name", SHAPES)
def test_files_are_llama_cpps(name: str, dtype: Any, weighed: bool, tmp_path: Path):
    check(tmp_path, SHAPES[name], dtype, weighed, ("llamacpp", "reference") if name in SLOWLY else ("llamacpp",))


@pytest.mark.parametrize(("dtype", "weighed"), [(np.float32, True), (np.float16, False)], ids=["F32, weighed", "F16"])
@pytest.mark.parametrize("name", ["ungrouped", "rows that 256 does not divide"])
def test_the_other_half(name: str, dtype: Any, weighed: bool, tmp_path: Path):
    check(tmp_path, SHAPES[name], dtype, weighed, ("llamacpp",))


def check(folder: Path, shape: Shape, dtype: Any, weighed: bool, backends: tuple[str, ...]) -> None:
    """Every recipe by every backend."""
    source, theirs, ours = (folder / f"{name}.gguf" for name in ("source", "theirs", "ours"))
    write(source, shape, dtype)
    importance = importance_of(source) if weighed else None
    for recipe in COUNTING if shape.layers > 8 and shape.width == 256 else RECIPES:
        if not llama_quantize(source, theirs, recipe, importance):
            assert recipe == "Q2_K_S"
            continue
        for backend in backends:
            as_it_comes = {"exact_importance": True, "allow_unquantized": True}  # llama.cpp refuses neither
            edgekit.quantize(source, recipe, to=ours, importance=importance, backend=backend, **as_it_comes)
            assert ours.read_bytes() == theirs.read_bytes(), f"{recipe} by {backend}"


def test_no_recipe_of_block_types_is_left_out():
    plain = {"F32", "F16", "BF16"}
    others = {"MXFP4_MOE", "Q2_0", "Q1_0", "TQ1_0", "TQ2_0"}
    assert {r.name for r in vars(recipes).values() if isinstance(r, recipes.GgufRecipe)} - plain - others == set(
        RECIPES
    )


def test_the_one_key_that_differs(tmp_path: Path):
    """llama.cpp keeps ``general.alignment`` and pads to 32 all the same: its own file is then no GGUF that it can read.

    edgekit leaves the key out and pads to the 32 that it stands for.
    """
    source = write(tmp_path / "source.gguf", SHAPES["ungrouped"], np.float32, alignment=64)
    assert llama_quantize(source, tmp_path / "theirs.gguf", "Q4_K_M", None)
    edgekit.quantize(source, "Q4_K_M", to=tmp_path / "ours.gguf", backend="llamacpp")
    broken, ours = (tmp_path / f"{name}.gguf" for name in ("theirs", "ours"))
    model = llama_cpp.llama_model_load_from_file(str(broken).encode(), llama_cpp.llama_model_default_params())
    assert not model
    assert "general.alignment" in GGUF.open(source).config
    assert "general.alignment" not in GGUF.open(ours).config
    model = llama_cpp.llama_model_load_from_file(str(ours).encode(), llama_cpp.llama_model_default_params())
    assert model
    llama_cpp.llama_model_free(model)
    plain = write(tmp_path / "plain.gguf", SHAPES["ungrouped"], np.float32)
    assert llama_quantize(plain, tmp_path / "theirs.gguf", "Q4_K_M", None)
    assert ours.read_bytes() == broken.read_bytes()
