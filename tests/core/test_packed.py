"""Checkpoints that other libraries quantized, built here to their specifications, code by code.

The libraries' own dequantization is the oracle of `tests/oracles/test_packed.py`; what is here needs none of them. Each
builder states the source of its layout. They pack in plain loops, as the specifications do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

import edgekit
from edgekit.errors import InvalidFileError, UnsupportedModelError
from edgekit.formats import safetensors
from edgekit.formats._packed import SCHEMES
from edgekit.numerics.smallfloats import E2M1, E4M3
from edgekit.reference._packed import BNB_FP4, LLM_INT8_UNIT, NF4
from edgekit.tensor import EncodedTensor

Q = "model.layers.0.self_attn.q_proj"
CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 32,
    "max_position_embeddings": 16,
    "tie_word_embeddings": True,
}
MATRICES = {
    **{f"model.layers.0.self_attn.{name}_proj": (64, 64) for name in "qkvo"},
    **{f"model.layers.0.mlp.{name}_proj": (96, 64) for name in ("gate", "up")},
    "model.layers.0.mlp.down_proj": (64, 96),
}
rng = np.random.default_rng(15)


def write(directory: Path, tensors: Mapping[str, np.ndarray], quantization: Mapping[str, object] | None) -> Path:
    """A checkpoint with these tensors; `E4M3` codes are given as uint8 under names of 8-bit floats."""
    directory.mkdir()
    config = CONFIG | ({} if quantization is None else {"quantization_config": quantization})
    (directory / "config.json").write_text(json.dumps(config))
    safetensors.write(directory / "model.safetensors", tensors)
    return directory


def with_plain(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The quantized tensors, and what a model has beside them."""
    norms = {f"model.layers.0.{name}_layernorm.weight": (64,) for name in ("input", "post_attention")}
    plain = {"model.embed_tokens.weight": (32, 64), "model.norm.weight": (64,), **norms}
    return {**tensors, **{name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in plain.items()}}


def float8(codes: np.ndarray) -> np.ndarray:
    import ml_dtypes

    return codes.view(ml_dtypes.float8_e4m3fn)


def finite_codes(shape: tuple[int, ...]) -> np.ndarray:
    codes = rng.integers(0, 256, shape, np.uint8)
    return np.where(codes & 0x7F == 0x7F, codes ^ 1, codes)


def check(directory: Path, expected: Mapping[str, np.ndarray], precision: str) -> None:
    """Every matrix has the precision and the values, whole and in any rows."""
    artifact = edgekit.open(directory)
    assert set(artifact.model.tensors)
    for name, values in expected.items():
        tensor = artifact.tensors[f"{name}.weight"]
        assert isinstance(tensor, EncodedTensor)
        assert tensor.precision.name == precision
        assert tensor.shape == values.shape
        np.testing.assert_array_equal(tensor.float32(), values.reshape(-1, values.shape[-1]))
        np.testing.assert_array_equal(tensor.float32(5, 23), values[5:23])
        np.testing.assert_array_equal(tensor.read().dequantize(), values)


def packed_words(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes [n, m] packed along the first dimension into int32 [n * bits / 32, m], lowest bits first."""
    words = np.zeros((-(-len(codes) * bits // 32), codes.shape[1]), np.uint32)
    for column in range(codes.shape[1]):
        stream = sum(int(code) << bits * number for number, code in enumerate(codes[:, column]))
        for number in range(len(words)):
            words[number, column] = stream >> 32 * number & 0xFFFFFFFF
    return words.view(np.int32)


def grid(values: np.ndarray, group: int, cols: int) -> np.ndarray:
    return np.repeat(values, group, axis=1)[:, :cols]


# --- GPTQ: AutoGPTQ 0.7.1, nn_modules/qlinear/qlinear_cuda_old.py (`pack`) ---


def gptq(bits: int, group: int, *, version: str = "gptq", order: bool = False, sym: bool = False, cfg: object = None):
    tensors, expected = {}, {}
    for name, (out, cols) in MATRICES.items():
        size = cols if group == -1 else group
        groups = -(-cols // size)
        codes = rng.integers(0, 1 << bits, (out, cols))
        zeros = np.full((out, groups), 1 << (bits - 1)) if sym else rng.integers(1, 1 << bits, (out, groups))
        scales = rng.uniform(0.001, 0.01, (groups, out)).astype(np.float16)
        index = np.arange(cols) // size
        if order:
            index = rng.permutation(index)
        tensors[f"{name}.qweight"] = packed_words(codes.T, bits)
        stored = zeros if version == "gptq_v2" else zeros - 1
        tensors[f"{name}.qzeros"] = np.ascontiguousarray(packed_words(stored, bits).T)
        tensors[f"{name}.scales"] = scales
        tensors[f"{name}.g_idx"] = index.astype(np.int32)
        expected[name] = (codes - zeros[:, index]).astype(np.float32) * scales.T.astype(np.float32)[:, index]
    config = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": order, "sym": sym}
    return tensors, expected, config | {"checkpoint_format": version}


@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
@pytest.mark.parametrize(("bits", "group"), [(2, 32), (3, 32), (4, 32), (4, -1), (8, 32)])
def test_gptq(tmp_path: Path, bits: int, group: int, version: str) -> None:
    tensors, expected, config = gptq(bits, group, version=version)
    where = "channel" if group == -1 else f"g{group}"
    check(write(tmp_path / "m", with_plain(tensors), config), expected, f"affine:int{bits}-asym-{where}")


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq_in_the_order_of_activations(tmp_path: Path, bits: int) -> None:
    tensors, expected, config = gptq(bits, 32, order=True)
    check(write(tmp_path / "m", with_plain(tensors), config), expected, f"packed:int{bits}-g32")


def test_the_first_version_of_gptq_undoes_its_borrow(tmp_path: Path) -> None:
    """GPTQModel subtracts 0x11111111 from whole words, which borrows from the next field where a zero point is 0."""
    tensors, expected, config = gptq(4, 32, version="gptq_v2")
    for name, values in tensors.items():
        if name.endswith("qzeros"):
            values.view(np.uint32)[:] &= 0xFFF0FFFF  # zero points of 0 among others
    second = write(tmp_path / "v2", with_plain(tensors), config)
    wanted = {name: edgekit.open(second).tensors[f"{name}.weight"].float32() for name in expected}
    first = {
        name: (values.view(np.uint32) - np.uint32(0x11111111)).view(np.int32) if name.endswith("qzeros") else values
        for name, values in tensors.items()
    }
    check(
        write(tmp_path / "v1", with_plain(first), config | {"checkpoint_format": "gptq"}),
        wanted,
        "affine:int4-asym-g32",
    )


def test_gptq_with_patterns_of_modules(tmp_path: Path) -> None:
    """As GPTQModel writes mixtures: some modules in floats, some with other bits, the first pattern counts."""
    wide, wide_values, _ = gptq(8, -1)
    narrow, narrow_values, config = gptq(4, 32)
    down = "model.layers.0.mlp.down_proj"
    parts = {name: values for name, values in narrow.items() if not name.startswith((Q, down))}
    parts |= {name: values for name, values in wide.items() if name.startswith(down)}
    parts |= {f"{Q}.weight": rng.normal(0, 0.1, MATRICES[Q]).astype(np.float32)}
    dynamic = {
        "lm_head": {},
        r"-:.*q_proj": {},
        r"+:.*down_proj$": {"bits": 8, "group_size": -1},
        ".*down": {"bits": 2},
    }
    directory = write(tmp_path / "m", with_plain(parts), config | {"dynamic": dynamic})
    check(directory, {name: v for name, v in narrow_values.items() if name not in (Q, down)}, "affine:int4-asym-g32")
    check(directory, {down: wide_values[down]}, "affine:int8-asym-channel")
    np.testing.assert_array_equal(edgekit.open(directory).tensors[f"{Q}.weight"].float32(), parts[f"{Q}.weight"])


@pytest.mark.parametrize(
    ("dynamic", "message"),
    [
        (
            {"-:.*q_proj": {}},
            r"q_proj is quantized, and quantization_config.dynamic has '-:.\*q_proj', by which it is not",
        ),
        (
            {".*q_proj": {"bits": 5}},
            r"quantization_config.dynamic.'.\*q_proj'.bits is 5; read is 2 or 3 or 4 or 8; conv",
        ),
        (
            {".*q_proj": {"curve": 1}},
            r"quantization_config.dynamic.'.\*q_proj' has the field 'curve' \(1\), which is not",
        ),
        ({"(a+)+": {}}, r"dynamic.'\(a\+\)\+' \(\{\}\) is no pattern that edgekit matches, with an object; convert"),
        ({".*q_proj": 3}, r"dynamic.'.\*q_proj' \(3\) is no pattern that edgekit matches, with an object; convert"),
        ([3], r"quantization_config.dynamic is \[3\]; patterns with what they set are read; convert"),
    ],
)
def test_patterns_of_gptq_that_are_not_understood(tmp_path: Path, dynamic: object, message: str) -> None:
    tensors, _, config = gptq(4, 32)
    with pytest.raises(UnsupportedModelError, match=message):
        _ = edgekit.open(write(tmp_path / "m", with_plain(tensors), config | {"dynamic": dynamic})).model


def test_autogptq_configuration_in_its_own_file(tmp_path: Path) -> None:
    tensors, expected, config = gptq(4, 32)
    directory = write(tmp_path / "m", with_plain(tensors), None)
    with pytest.raises(UnsupportedModelError, match=r"its config.json has no quantization_config that says how"):
        _ = edgekit.open(directory).model
    own = {key: config[key] for key in ("bits", "group_size", "desc_act", "sym")} | {"damp_percent": 0.01}
    (directory / "quantize_config.json").write_text(json.dumps(own))
    check(directory, expected, "affine:int4-asym-g32")


# --- AWQ: AutoAWQ 0.2.9, awq/modules/linear/gemm.py (`from_linear`), order_map ---


def awq(group: int, zero_point: bool = True):
    tensors, expected = {}, {}
    for name, (out, cols) in MATRICES.items():
        codes = rng.integers(0, 16, (cols, out))
        zeros = rng.integers(0, 16, (cols // group, out)) if zero_point else np.full((cols // group, out), 8)
        scales = rng.uniform(0.001, 0.01, (cols // group, out)).astype(np.float16)
        tensors[f"{name}.qweight"], tensors[f"{name}.scales"] = interleaved(codes), scales
        if zero_point:
            tensors[f"{name}.qzeros"] = interleaved(zeros)
        index = np.arange(cols) // group
        expected[name] = ((codes - zeros[index]).astype(np.float32) * scales[index].astype(np.float32)).T.copy()
    return tensors, expected, {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": zero_point}


def interleaved(codes: np.ndarray) -> np.ndarray:
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    words = np.zeros((len(codes), codes.shape[1] // 8), np.uint32)
    for column in range(words.shape[1]):
        for position, of in enumerate(order):
            words[:, column] |= codes[:, column * 8 + of].astype(np.uint32) << np.uint32(4 * position)
    return words.view(np.int32)


@pytest.mark.parametrize("zero_point", [True, False])
def test_awq(tmp_path: Path, zero_point: bool) -> None:
    tensors, expected, config = awq(32, zero_point)
    config |= {"version": "gemm", "modules_to_not_convert": None}
    symmetry = "asym" if zero_point else "sym"
    check(write(tmp_path / "m", with_plain(tensors), config), expected, f"affine:int4-{symmetry}-g32")


# --- FP8: DeepSeek-V3, inference/kernel.py (`weight_dequant`) ---


def fp8(block: tuple[int, int] | None, scales: str = "float32", ending: str = "weight_scale_inv"):
    import ml_dtypes

    tensors, expected = {}, {}
    for name, (out, cols) in MATRICES.items():
        codes = finite_codes((out, cols))
        shape = (out, 1) if block is None else (-(-out // block[0]), -(-cols // block[1]))
        scale = rng.uniform(0.001, 0.01, shape).astype(np.float32)
        if scales == "float8_e8m0fnu":
            exponents = rng.integers(110, 125, shape, np.uint8)
            scale = np.ldexp(np.float32(1), exponents.astype(np.int32) - 127).astype(np.float32)
            stored = exponents.view(ml_dtypes.float8_e8m0fnu)
        else:
            stored = scale.astype(ml_dtypes.bfloat16 if scales == "bfloat16" else np.float32)
            scale = stored.astype(np.float32)
        tensors[f"{name}.weight"], tensors[f"{name}.{ending}"] = float8(codes), stored
        rows, columns = (1, cols) if block is None else block
        expected[name] = E4M3[codes] * np.repeat(np.repeat(scale, rows, 0)[:out], columns, 1)[:, :cols]
    config = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3"}
    return tensors, expected, config | {"weight_block_size": None if block is None else list(block)}


@pytest.mark.parametrize("scales", ["float32", "bfloat16", "float8_e8m0fnu"])
@pytest.mark.parametrize("block", [(32, 32), (40, 48), (128, 128)], ids=str)
def test_fine_grained_fp8(tmp_path: Path, block: tuple[int, int], scales: str) -> None:
    tensors, expected, config = fp8(block, scales)
    several = any(tensors[f"{name}.weight_scale_inv"].size > 1 for name in expected)
    precision = f"packed:fp8-g{block[1]}" if several else "packed:fp8-channel"
    check(write(tmp_path / "m", with_plain(tensors), config), expected, precision)


def test_fp8_with_a_scale_a_row_or_a_tensor(tmp_path: Path) -> None:
    tensors, expected, config = fp8(None, ending="weight_scale")
    check(write(tmp_path / "rows", with_plain(tensors), config), expected, "packed:fp8-channel")
    for name in expected:
        tensors[f"{name}.weight_scale"] = np.array(0.25, np.float32)
        tensors[f"{name}.input_scale"] = np.array(3, np.float32)
    expected = {name: E4M3[tensors[f"{name}.weight"].view(np.uint8)] * np.float32(0.25) for name in expected}
    check(write(tmp_path / "tensor", with_plain(tensors), config), expected, "packed:fp8-channel")


def test_fp8_experts_in_one_tensor(tmp_path: Path) -> None:
    codes, scale = finite_codes((3, 40, 64)), rng.uniform(0.01, 0.1, (3, 2, 2)).astype(np.float32)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    tensors = {name: float8(codes), f"{name}_scale_inv": scale}
    config = {"quant_method": "fp8", "weight_block_size": [32, 32]}
    tensor = edgekit.open(write(tmp_path / "m", tensors, config)).tensors[name]
    expected = E4M3[codes] * np.repeat(np.repeat(scale, 32, 1)[:, :40], 32, 2)
    np.testing.assert_array_equal(tensor.read().dequantize(), expected)
    np.testing.assert_array_equal(tensor.float32(37, 81), expected.reshape(-1, 64)[37:81])


def test_fp8_experts_one_by_one(tmp_path: Path) -> None:
    """Each is quantized by itself; the model's tensor is their stack, still encoded."""
    experts, tensors, expected = "model.layers.0.mlp.experts", {}, {}
    shapes = {"gate": (32, 64), "up": (32, 64), "down": (64, 32)}
    for part, (out, cols) in shapes.items():
        expected[part] = np.empty((4, out, cols), np.float32)
        for number in range(4):
            codes, scale = finite_codes((out, cols)), rng.uniform(0.01, 0.1, (out // 32, cols // 32)).astype(np.float32)
            name = f"{experts}.{number}.{part}_proj.weight"
            tensors |= {name: float8(codes), f"{name}_scale_inv": scale}
            expected[part][number] = E4M3[codes] * np.repeat(np.repeat(scale, 32, 0), 32, 1)
    plain = with_plain(tensors)
    for name, shape in {**{f"self_attn.{n}_proj": (64, 64) for n in "qkvo"}, "mlp.gate": (4, 64)}.items():
        plain[f"model.layers.0.{name}.weight"] = rng.normal(0, 0.1, shape).astype(np.float32)
    for name in "qk":
        plain[f"model.layers.0.self_attn.{name}_norm.weight"] = np.ones(16, np.float32)
    directory = write(tmp_path / "m", plain, {"quant_method": "fp8", "weight_block_size": [32, 32]})
    config = json.loads((directory / "config.json").read_text()) | {"model_type": "qwen3_moe", "head_dim": 16}
    config |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True}
    (directory / "config.json").write_text(json.dumps(config))
    model = edgekit.open(directory).model
    for part, values in expected.items():
        tensor = model.tensors[f"blk.0.ffn_{part}_exps.weight"]
        assert isinstance(tensor, EncodedTensor)
        np.testing.assert_array_equal(tensor.read().dequantize(), values)
        np.testing.assert_array_equal(tensor.float32(17, 77), values.reshape(-1, values.shape[-1])[17:77])


# --- MXFP4: OCP Microscaling Formats v1.0; transformers' integrations/mxfp4.py ---


def test_mxfp4_blocks(tmp_path: Path) -> None:
    blocks, scales = rng.integers(0, 256, (3, 40, 2, 16), np.uint8), rng.integers(110, 130, (3, 40, 2), np.uint8)
    name = "model.layers.0.mlp.experts.down_proj"
    tensors = {f"{name}_blocks": blocks, f"{name}_scales": scales}
    tensor = edgekit.open(write(tmp_path / "m", tensors, {"quant_method": "mxfp4"})).tensors[name]
    assert isinstance(tensor, EncodedTensor)
    assert tensor.precision.name == "ggml:MXFP4"
    codes = np.stack([blocks & 15, blocks >> 4], -1).reshape(3, 40, 64)
    exponents = np.ldexp(np.float32(1), scales.astype(np.int32) - 127)
    expected = np.concatenate([E2M1, -E2M1])[codes] * np.repeat(exponents, 32, -1).astype(np.float32)
    np.testing.assert_array_equal(tensor.read().dequantize(), expected)
    np.testing.assert_array_equal(tensor.float32(37, 81), expected.reshape(-1, 64)[37:81])
    held = tensor.read().parts["blocks"].reshape(3, 40, 2, 17)
    np.testing.assert_array_equal(held[..., 0], scales)
    again = np.concatenate([held[..., 1:] & 15, held[..., 1:] >> 4], -1).reshape(3, 40, 64)
    np.testing.assert_array_equal(again, codes)


# --- bitsandbytes 0.50.2: functional.py (`QuantState.as_dict`, `int8_vectorwise_dequant`) ---


def bitsandbytes(kind: str, block: int, nested: bool):
    levels = {"nf4": NF4, "fp4": BNB_FP4}[kind]
    tensors, expected = {}, {}
    for name, (out, cols) in MATRICES.items():
        codes = rng.integers(0, 16, out * cols, np.uint8)
        state = {"quant_type": kind, "blocksize": block, "dtype": "bfloat16", "shape": [out, cols]}
        count = -(-len(codes) // block)
        absmax = rng.uniform(0.01, 0.1, count).astype(np.float32)
        tensors[f"{name}.weight"] = (codes[0::2] << 4 | codes[1::2])[:, None]
        tensors[f"{name}.weight.quant_map"] = levels
        if nested:
            numbers, inner = rng.integers(0, 256, count, np.uint8), np.linspace(-1, 1, 256, dtype=np.float32)
            outer = rng.uniform(0.01, 0.1, -(-count // 8)).astype(np.float32)
            state |= {"nested_blocksize": 8, "nested_dtype": "float32", "nested_offset": 0.0625}
            absmax = inner[numbers] * outer[np.arange(count) // 8] + np.float32(0.0625)
            tensors |= {f"{name}.weight.nested_absmax": outer, f"{name}.weight.nested_quant_map": inner}
        tensors[f"{name}.weight.absmax"] = numbers if nested else absmax
        text = np.frombuffer(json.dumps(state).encode(), np.uint8)
        tensors[f"{name}.weight.quant_state.bitsandbytes__{kind}"] = text
        expected[name] = (levels[codes] * np.repeat(absmax, block)[: len(codes)]).reshape(out, cols)
    config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}
    return tensors, expected, config | {"bnb_4bit_compute_dtype": "bfloat16", "bnb_4bit_use_double_quant": nested}


@pytest.mark.parametrize("nested", [False, True], ids=["", "nested"])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_bitsandbytes_4_bits(tmp_path: Path, kind: str, nested: bool) -> None:
    tensors, expected, config = bitsandbytes(kind, 32, nested)
    name = {"nf4": "nf4", "fp4": "bnb_fp4"}[kind]
    check(write(tmp_path / "m", with_plain(tensors), config), expected, f"packed:{name}-g32")


def test_bitsandbytes_blocks_that_run_over_the_ends_of_rows(tmp_path: Path) -> None:
    tensors, expected, config = bitsandbytes("nf4", 128, False)
    directory = write(tmp_path / "m", with_plain(tensors), config)
    for name, values in expected.items():
        tensor = edgekit.open(directory).tensors[f"{name}.weight"]
        assert tensor.precision.name == f"packed:nf4-g{np.gcd(128, values.shape[1])}"
        np.testing.assert_array_equal(tensor.float32(5, 23), values[5:23])


def test_bitsandbytes_8_bits(tmp_path: Path) -> None:
    tensors, expected = {}, {}
    for name, shape in MATRICES.items():
        codes, scale = rng.integers(-127, 128, shape, np.int8), rng.uniform(0.1, 1, shape[0]).astype(np.float32)
        tensors |= {f"{name}.weight": codes, f"{name}.SCB": scale, f"{name}.weight_format": np.array(0, np.uint8)}
        expected[name] = codes.astype(np.float32) * scale[:, None] * LLM_INT8_UNIT
    config = {"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_threshold": 6.0}
    check(write(tmp_path / "m", with_plain(tensors), config), expected, "packed:int8-channel")


# --- compressed-tensors 0.20.0: compressors/pack_quantized/helpers.py (`pack_to_int32`) ---


def compressed(bits: int, group: int, symmetric: bool, order: bool = False):
    tensors, expected = {}, {}
    half = 1 << (bits - 1)
    for name, (out, cols) in MATRICES.items():
        codes = rng.integers(-half, half, (out, cols))
        zeros = np.zeros((out, cols // group), int) if symmetric else rng.integers(-half, half, (out, cols // group))
        scale = rng.uniform(0.001, 0.01, (out, cols // group)).astype(np.float32)
        index = np.arange(cols) // group
        if order:
            index = rng.permutation(index)
            tensors[f"{name}.weight_g_idx"] = index.astype(np.int32)
        tensors[f"{name}.weight_packed"] = np.ascontiguousarray(packed_words((codes + half).T, bits).T)
        tensors[f"{name}.weight_scale"] = scale
        tensors[f"{name}.weight_shape"] = np.array([out, cols], np.int64)
        if not symmetric:
            tensors[f"{name}.weight_zero_point"] = packed_words(zeros + half, bits)
        expected[name] = (codes - zeros[:, index]).astype(np.float32) * scale[:, index]
    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": "group", "group_size": group}
    config = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}},
        "ignore": ["lm_head"],
    }
    return tensors, expected, config


@pytest.mark.parametrize("symmetric", [True, False], ids=["sym", "asym"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_compressed_tensors_packed(tmp_path: Path, bits: int, symmetric: bool) -> None:
    tensors, expected, config = compressed(bits, 32, symmetric)
    precision = f"affine:int{bits}-{'sym' if symmetric else 'asym'}-g32"
    check(write(tmp_path / "m", with_plain(tensors), config), expected, precision)


def test_compressed_tensors_in_the_order_of_activations(tmp_path: Path) -> None:
    tensors, expected, config = compressed(4, 32, False, order=True)
    config["config_groups"]["group_0"]["weights"]["actorder"] = "group"
    check(write(tmp_path / "m", with_plain(tensors), config), expected, "packed:int4-g32")


def test_compressed_tensors_groups_of_modules(tmp_path: Path) -> None:
    """Two groups: one by pattern, the rest by class."""
    four, expected, config = compressed(4, 32, True)
    eight, others, another = compressed(8, 32, True)
    tensors = {name: (eight if "mlp" in name else four)[name] for name in four}
    weights = another["config_groups"]["group_0"]["weights"]
    config["config_groups"]["group_1"] = {"targets": ["re:.*mlp.*"], "weights": weights}
    artifact = edgekit.open(write(tmp_path / "m", with_plain(tensors), config))
    for name in MATRICES:
        tensor, values = artifact.tensors[f"{name}.weight"], (others if "mlp" in name else expected)[name]
        assert tensor.precision.name == f"affine:int{8 if 'mlp' in name else 4}-sym-g32"
        np.testing.assert_array_equal(tensor.float32(), values)


# --- ModelOpt: modelopt/torch/quantization/qtensor/nvfp4_tensor.py and fp8_tensor.py, by hand ---


def modelopt(kind: str, one: tuple[int, ...] = ()) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict]:
    """NVFP4 with two scales, or 8-bit floats with a scale a tensor or a row; `one`: the shape of a single scale."""
    tensors, expected = {}, {}
    for name, (out, cols) in MATRICES.items():
        if kind == "NVFP4":
            codes = rng.integers(0, 16, (out, cols)).astype(np.uint8)
            scales, overall = rng.integers(0x20, 0x70, (out, cols // 16)).astype(np.uint8), np.float32(3.7e-4)
            values = np.concatenate([E2M1, -E2M1])[codes].astype(np.float32).reshape(out, -1, 16)
            each = E4M3[scales].astype(np.float32) * overall
            expected[name] = (values * each[..., None]).reshape(out, cols)
            tensors[f"{name}.weight"] = codes[:, ::2] | codes[:, 1::2] << 4
            tensors[f"{name}.weight_scale"], tensors[f"{name}.weight_scale_2"] = float8(scales), np.full(one, overall)
        else:
            codes = rng.integers(0, 0x7E, (out, cols)).astype(np.uint8)
            scale = rng.uniform(0.001, 0.01, one if kind == "FP8" else (out,)).astype(np.float32)
            expected[name] = E4M3[codes].astype(np.float32) * scale.reshape(-1, 1)
            tensors[f"{name}.weight"], tensors[f"{name}.weight_scale"] = float8(codes), np.asarray(scale)
        if name != Q:
            tensors[f"{name}.input_scale"] = np.full(one, np.float32(0.5))
    config = {"quant_method": "modelopt", "quant_algo": kind, "ignore": ["lm_head"], "producer": {"name": "modelopt"}}
    return tensors, expected, config


@pytest.mark.parametrize("kind", ["NVFP4", "FP8", "FP8_PER_CHANNEL_PER_TOKEN"])
def test_modelopt(tmp_path: Path, kind: str) -> None:
    tensors, expected, config = modelopt(kind)
    precision = "packed:fp4-g16" if kind == "NVFP4" else "packed:fp8-channel"
    check(write(tmp_path / "m", with_plain(tensors), config), expected, precision)


def test_modelopt_configuration_in_its_own_file(tmp_path: Path) -> None:
    tensors, expected, _ = modelopt("NVFP4")
    directory = write(tmp_path / "m", with_plain(tensors), None)
    section = {"quant_algo": "NVFP4", "group_size": 16, "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}
    (directory / "hf_quant_config.json").write_text(json.dumps({"producer": {}, "quantization": section}))
    check(directory, expected, "packed:fp4-g16")


# --- torchao 0.18: prototype/safetensors/safetensors_support.py (`flatten_tensor_state_dict`) ---


def torchao(directory: Path, changes: Mapping[str, object] | None = None, metadata: bool = True):
    """4-bit integers in int8, which the file's metadata describes."""
    tensors, expected, described = {}, {}, {}
    for name, (out, cols) in MATRICES.items():
        codes, zeros = (rng.integers(-8, 8, (out, n)).astype(np.int8) for n in (cols, cols // 32))
        scale = rng.uniform(0.001, 0.01, (out, cols // 32)).astype(np.float32)
        parts = {"qdata": codes, "scale": scale, "zero_point": zeros}
        tensors |= {f"{name}._weight_{part}": values for part, values in parts.items()}
        data = {"target_dtype": {"_type": "torch.dtype", "_data": "int4"}, "block_size": [1, 32]}
        kind = {"_type": "IntxUnpackedToInt8Tensor", "_data": data} | (dict(changes) if changes else {})
        described[f"{name}.weight"] = json.dumps(kind)
        expected[name] = (codes - np.repeat(zeros, 32, 1).astype(int)).astype(np.float32) * np.repeat(scale, 32, 1)
    write(directory, {}, {"quant_method": "torchao", "quant_type": {"default": {"_type": "IntxWeightOnlyConfig"}}})
    safetensors.write(directory / "model.safetensors", with_plain(tensors), described if metadata else {})
    return expected


def test_torchao(tmp_path: Path) -> None:
    expected = torchao(tmp_path / "m")
    check(tmp_path / "m", expected, "affine:int4-asym-g32")


def torchao_int4(directory: Path, group: int = 32, extra: bool = False, turn: bool = True, **data: object):
    """Int4Tensor: pairs of columns in a byte, scales and offsets [in / group, out]; FBGEMM's `pack_int4`, by hand."""
    tensors, expected, described = {}, {}, {}
    for name, (out, cols) in MATRICES.items():
        codes = rng.integers(-8, 8, (out, cols))
        scale, offset = (rng.normal(0, 0.01, (out, cols // group)).astype(np.float32) for _ in range(2))
        packed = np.zeros((out, cols // 2), np.uint8)
        for row, column in np.ndindex(out, cols):
            packed[row, column // 2] |= (int(codes[row, column]) & 15) << 4 * (column % 2)
        parts = {"qdata": packed.view(np.int8), "scale": scale.T if turn else scale, "zero_point": offset.T}
        if extra:
            parts["act_pre_scale"] = np.ones(cols, np.float32)
        tensors |= {f"{name}._weight_{part}": np.ascontiguousarray(values) for part, values in parts.items()}
        attributes = {"block_size": [1, group], "shape": [out, cols], "activation_dtype": None} | data
        described[f"{name}.weight"] = json.dumps({"_type": "Int4Tensor", "_data": attributes})
        product = codes.astype(np.float32) * np.repeat(scale, group, 1)
        expected[name] = product + np.repeat(offset, group, 1)
    write(directory, {}, {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int4WeightOnlyConfig"}}})
    safetensors.write(directory / "model.safetensors", with_plain(tensors), described)
    return expected


def test_torchao_int4(tmp_path: Path) -> None:
    check(tmp_path / "m", torchao_int4(tmp_path / "m"), "packed:int4_offset-g32")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"extra": True},
            r"q_proj._weight_act_pre_scale multiplies the inputs, which is not supported; convert the full",
        ),
        ({"block_size": [2, 32]}, r"has block_size \[2, 32\]; read is \[1, group\]; convert the full"),
        ({"turn": False}, r"_weight_scale has shape \[64, 2\], \[2, 64\] is needed"),
        ({"curve": 3}, r"has the attribute 'curve' \(3\), which is not understood"),
    ],
)
def test_what_an_int4_tensor_says_and_is_not_read_is_named(tmp_path: Path, options: dict, message: str) -> None:
    torchao_int4(tmp_path / "m", **options)
    with pytest.raises((InvalidFileError, UnsupportedModelError), match=message):
        _ = edgekit.open(tmp_path / "m").model


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_type": "Int4TilePackedTo4dTensor"}, r"is of torchao's 'Int4TilePackedTo4dTensor'; read are Int8Tensor, "),
        ({"_data": {"curve": 3}}, r"has the attribute 'curve' \(3\), which is not understood"),
        ({"_data": {"block_size": [4, 32]}}, r"has block_size \[4, 32\]; read are \[1, group\]"),
        ({"_data": {"block_size": [1, 32], "target_dtype": "int9"}}, r"has target_dtype 'int9'; read are int1, "),
        ({"_data": None}, r"the file's metadata does not say what .*q_proj.weight is"),
    ],
)
def test_what_torchao_says_and_is_not_understood_is_named(tmp_path: Path, changes: dict, message: str) -> None:
    torchao(tmp_path / "m", changes)
    with pytest.raises(UnsupportedModelError, match=message):
        _ = edgekit.open(tmp_path / "m").model


def test_torchao_without_its_metadata_is_refused(tmp_path: Path) -> None:
    torchao(tmp_path / "m", metadata=False)
    with pytest.raises(UnsupportedModelError, match=r"the file's metadata does not say what .*q_proj.weight is"):
        _ = edgekit.open(tmp_path / "m").model


# --- optimum-quanto 0.2.7: tensor/qbytes.py, by hand; with the library in tests/oracles/test_packed_quanto.py ---


def quanto(kind: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict]:
    tensors, expected = {}, {}
    for name, (out, cols) in MATRICES.items():
        scale = rng.uniform(0.001, 0.01, (out, 1)).astype(np.float32)
        if kind == "qint8":
            codes = rng.integers(-128, 128, (out, cols)).astype(np.int8)
            expected[name] = codes.astype(np.float32) * scale
        else:
            bits = rng.integers(0, 0x7E, (out, cols)).astype(np.uint8)
            codes, expected[name] = float8(bits), E4M3[bits].astype(np.float32) * scale
        tensors |= {f"{name}.weight._data": codes, f"{name}.weight._scale": scale}
        tensors |= {f"{name}.{side}_scale": np.ones((), np.float32) for side in ("input", "output")}
    return tensors, expected, {name: {"weights": kind, "activations": "none"} for name in MATRICES}


@pytest.mark.parametrize("kind", ["qint8", "qfloat8_e4m3fn"])
def test_quanto(tmp_path: Path, kind: str) -> None:
    tensors, expected, modules = quanto(kind)
    directory = write(tmp_path / "m", with_plain(tensors), None)
    (directory / "quanto_qmap.json").write_text(json.dumps(modules))
    check(directory, expected, "affine:int8-sym-channel" if kind == "qint8" else "packed:fp8-channel")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": "qint4"}, r"quanto_qmap.json: .*q_proj.weights is 'qint4'; read is qint8 or qfloat8_e4m3fn; conv"),
        ({"weights": "none"}, r"q_proj.weights is 'none'; read is qint8 or"),
        ({"group": 3}, r"q_proj has the field 'group' \(3\), which is not understood"),
    ],
)
def test_what_quanto_says_and_is_not_read_is_named(tmp_path: Path, change: dict, message: str) -> None:
    tensors, _, modules = quanto("qint8")
    directory = write(tmp_path / "m", with_plain(tensors), None)
    first = next(iter(MATRICES))
    (directory / "quanto_qmap.json").write_text(json.dumps(modules | {first: modules[first] | change}))
    with pytest.raises(UnsupportedModelError, match=message):
        _ = edgekit.open(directory).model


def test_quanto_without_its_map_is_refused(tmp_path: Path) -> None:
    tensors, _, _ = quanto("qint8")
    with pytest.raises(UnsupportedModelError, match=r"optimum-quanto without the quanto_qmap.json that says how"):
        _ = edgekit.open(write(tmp_path / "m", with_plain(tensors), None)).model
    with pytest.raises(UnsupportedModelError, match=r"quanto_qmap.json, which says how .* is missing or no object"):
        _ = edgekit.open(write(tmp_path / "n", with_plain(tensors), {"quant_method": "quanto"})).model


# --- Olive 0.13.0: common/quant/utils.py (`pack_to_uint8`), by hand; what it saves in tests/oracles/test_olive_passes.py ---


def olive(bits: int, group: int, sym: bool) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict]:
    def packed(values: np.ndarray, width: int) -> np.ndarray:
        padded = np.pad(values, ((0, 0), (0, -values.shape[1] % (8 // width))))
        return (padded.reshape(len(values), -1, 8 // width) << np.arange(0, 8, width)).sum(-1).astype(np.uint8)

    tensors, expected = {}, {}
    for name, (out, cols) in MATRICES.items():
        own = 8 if name == EIGHT else bits
        size = cols if group == -1 else group
        codes = rng.integers(0, 1 << own, (out, cols))
        zeros = np.full((out, cols // size), 1 << (own - 1)) if sym else rng.integers(0, 1 << own, (out, cols // size))
        scales = rng.uniform(0.001, 0.01, zeros.shape).astype(np.float32)
        parts = {"qweight": packed(codes, own), "scales": scales} | ({} if sym else {"qzeros": packed(zeros, own)})
        tensors |= {f"{name}.{part}": values for part, values in parts.items()}
        expected[name] = (codes - grid(zeros, size, cols)).astype(np.float32) * grid(scales, size, cols)
    overrides = {EIGHT: {"bits": 8}} if bits != 8 else None
    config = {"quant_method": "olive", "bits": bits, "group_size": group, "symmetric": sym, "overrides": overrides}
    return tensors, expected, config


EIGHT = "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize("sym", [True, False], ids=["sym", "asym"])
@pytest.mark.parametrize(("bits", "group"), [(2, 16), (4, 32), (4, -1), (8, 32)])
def test_olive(tmp_path: Path, bits: int, group: int, sym: bool) -> None:
    """One module has 8 bits of its own."""
    tensors, expected, config = olive(bits, group, sym)
    directory, kind = write(tmp_path / "m", with_plain(tensors), config), "sym" if sym else "asym"
    where = "channel" if group == -1 else f"g{group}"
    own = {EIGHT: expected.pop(EIGHT)}
    check(directory, expected, f"affine:int{bits}-{kind}-{where}")
    check(directory, own, f"affine:int8-{kind}-{where}")


# --- what is refused ---

BUILT = {
    "olive": lambda: olive(4, 32, False),
    "gptq": lambda: gptq(4, 32),
    "awq": lambda: awq(32),
    "fp8": lambda: fp8((32, 32)),
    "bitsandbytes": lambda: bitsandbytes("nf4", 32, True),
    "compressed-tensors": lambda: compressed(4, 32, False),
    "modelopt": lambda: modelopt("NVFP4", (1,)),
}


@pytest.mark.parametrize("method", BUILT)
def test_a_field_that_is_not_understood_is_named(tmp_path: Path, method: str) -> None:
    tensors, _, config = BUILT[method]()
    directory = write(tmp_path / "m", with_plain(tensors), config | {"rotation": "hadamard"})
    assert edgekit.open(directory).tensors  # `edgekit inspect` shows it
    message = r"m: quantization_config has the field 'rotation' \('hadamard'\), which is not understood; known are "
    with pytest.raises(UnsupportedModelError, match=message):
        _ = edgekit.open(directory).model
    with pytest.raises(UnsupportedModelError, match=message):
        edgekit.quantize(directory, "affine:int4-sym-g32", to=tmp_path / "q")


@pytest.mark.parametrize(
    ("method", "change", "message"),
    [
        ("gptq", {"bits": 5}, r"quantization_config.bits is 5; read is 2 or 3 or 4 or 8"),
        ("gptq", {"checkpoint_format": "marlin"}, r"checkpoint_format is 'marlin'; read is gptq or gptq_v2"),
        ("gptq", {"group_size": 0}, r"group_size is 0; a positive integer is needed"),
        ("awq", {"version": "gemv"}, r"version is 'gemv'; read is gemm"),
        ("awq", {"bits": 3}, r"bits is 3; read is 4"),
        ("fp8", {"fmt": "e5m2"}, r"fmt is 'e5m2'; read is e4m3"),
        ("fp8", {"weight_block_size": [128]}, r"weight_block_size is \[128\]; two positive integers are needed"),
        ("fp8", {"expert_dtype": "fp4"}, r"expert_dtype is 'fp4'; read is fp8"),
        ("modelopt", {"quant_algo": "W4A8_AWQ"}, r"quant_algo is 'W4A8_AWQ'; read is FP8 or "),
        ("modelopt", {"group_size": 32}, r"group_size is 32; groups of 16 are read"),
        ("bitsandbytes", {"llm_int8_has_fp16_weight": True}, r"llm_int8_has_fp16_weight is True; read is False"),
        ("compressed-tensors", {"format": "marlin-24"}, r"format is 'marlin-24'; read is pack-quantized or "),
        ("compressed-tensors", {"transform_config": {"R1": {}}}, r"transform_config .* weights that were rotated"),
        ("compressed-tensors", {"sparsity_config": {"format": "sparse-bitmask"}}, r"only dense weights are read"),
        ("compressed-tensors", {"config_groups": {}}, r"config_groups is \{\}; an object of groups is needed"),
    ],
)
def test_a_value_that_is_not_understood_is_named(tmp_path: Path, method: str, change: dict, message: str) -> None:
    tensors, _, config = BUILT[method]()
    with pytest.raises(UnsupportedModelError, match=message):
        _ = edgekit.open(write(tmp_path / "m", with_plain(tensors), config | change)).model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_bits": 16}, r"config_groups.group_0.weights.num_bits is 16"),
        ({"strategy": "attn_head"}, r"weights.strategy is 'attn_head'; integers by group, channel or tensor are read"),
        ({"curve": 3}, r"config_groups.group_0.weights has the field 'curve' \(3\)"),
        ({"dynamic": True}, r"weights.dynamic is True; read is False"),
    ],
)
def test_an_argument_that_is_not_understood_is_named(tmp_path: Path, change: dict, message: str) -> None:
    tensors, _, config = compressed(4, 32, True)
    config["config_groups"]["group_0"]["weights"] |= change
    with pytest.raises(UnsupportedModelError, match=message):
        _ = edgekit.open(write(tmp_path / "m", with_plain(tensors), config)).model


PARTS = [(method, name.rpartition(Q)[2]) for method, make in BUILT.items() for name in make()[0] if Q in name]


@pytest.mark.parametrize(
    ("method", "part"), [each for each in PARTS if not each[1].endswith((".g_idx", ".weight_shape"))]
)
def test_a_part_of_the_wrong_shape_is_refused(tmp_path: Path, method: str, part: str) -> None:
    """One row more than the others are for. The matrix itself then disagrees with its scales."""
    tensors, _, config = BUILT[method]()
    wrong = tensors[Q + part]
    tensors[Q + part] = np.concatenate([wrong, wrong[:1]])
    with pytest.raises((InvalidFileError, UnsupportedModelError), match=r"needed|is not JSON|belong"):
        _ = edgekit.open(write(tmp_path / "m", with_plain(tensors), config)).model


@pytest.mark.parametrize(("method", "part"), [each for each in PARTS if not each[1].endswith((".g_idx", "_packed"))])
def test_a_missing_part_is_named(tmp_path: Path, method: str, part: str) -> None:
    tensors, _, config = BUILT[method]()
    del tensors[Q + part]
    with pytest.raises(
        (InvalidFileError, UnsupportedModelError), match=r"missing|without a scale|not one that|zero_point"
    ):
        _ = edgekit.open(write(tmp_path / "m", with_plain(tensors), config)).model


def test_scales_of_another_type_are_refused(tmp_path: Path) -> None:
    tensors, _, config = gptq(4, 32)
    tensors[f"{Q}.scales"] = tensors[f"{Q}.scales"].astype(np.int32)
    with pytest.raises(InvalidFileError, match=r"q_proj.scales is int32, float16 or bfloat16 or float32 is needed"):
        edgekit.open(write(tmp_path / "m", with_plain(tensors), config))


def test_a_column_of_no_group_is_refused(tmp_path: Path) -> None:
    tensors, _, config = gptq(4, 32, order=True)
    tensors[f"{Q}.g_idx"][7] = 2
    with pytest.raises(InvalidFileError, match=r"q_proj.g_idx .* groups of 0 … 1 as its values"):
        edgekit.open(write(tmp_path / "m", with_plain(tensors), config))


def test_levels_that_are_not_the_known_ones_are_refused(tmp_path: Path) -> None:
    tensors, _, config = bitsandbytes("nf4", 32, False)
    tensors[f"{Q}.weight.quant_map"] = NF4 * np.float32(1.5)
    with pytest.raises(InvalidFileError, match=r"quant_map are not the levels of nf4"):
        edgekit.open(write(tmp_path / "m", with_plain(tensors), config))


def test_a_quantized_tensor_beside_the_unquantized_one_is_refused(tmp_path: Path) -> None:
    tensors, _, config = gptq(4, 32)
    tensors[f"{Q}.weight"] = np.ones((64, 64), np.float32)
    with pytest.raises(InvalidFileError, match=r"q_proj.weight is there quantized and unquantized"):
        edgekit.open(write(tmp_path / "m", with_plain(tensors), config))


def test_8_bit_floats_without_a_scale_are_refused(tmp_path: Path) -> None:
    tensors, _, config = compressed(4, 32, True)
    tensors = {name: values for name, values in tensors.items() if Q not in name}
    tensors[f"{Q}.weight"] = float8(finite_codes((64, 64)))
    with pytest.raises(UnsupportedModelError, match=r"q_proj.weight' is float8_e4m3fn without a scale"):
        _ = edgekit.open(write(tmp_path / "m", with_plain(tensors), config)).model


# --- what becomes of them ---


def test_a_directory_of_floats_is_one_that_transformers_reads(tmp_path: Path) -> None:
    """Decoded, with neither parts nor a quantization_config left."""
    tensors, expected, config = fp8((32, 32))
    source = write(tmp_path / "m", with_plain(tensors), config)
    written = edgekit.convert(source, tmp_path / "plain")
    assert "quantization_config" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    assert not [name for name in written.tensors if "scale" in name]
    for name, values in expected.items():
        np.testing.assert_array_equal(written.tensors[f"{name}.weight"].float32(), values)
    assert written.notes["decoded"] == "7 matrices quantized already (7 packed:fp8-g32) were decoded to floats"


def test_quantizing_again_is_said(tmp_path: Path) -> None:
    tensors, _, config = bitsandbytes("nf4", 32, False)
    source = write(tmp_path / "m", with_plain(tensors), config)
    written = edgekit.quantize(source, "affine:int4-sym-g32", to=tmp_path / "again")
    assert "7 matrices quantized already (7 packed:nf4-g32) were quantized again" in written.notes["requantized"]


def test_integers_stay_as_they_are(tmp_path: Path) -> None:
    tensors, expected, config = gptq(4, 32)
    written = edgekit.convert(write(tmp_path / "m", with_plain(tensors), config), tmp_path / "same")
    for name, values in expected.items():
        tensor = written.tensors[f"{name}.weight"]
        assert tensor.precision.name == "affine:int4-asym-g32"
        np.testing.assert_array_equal(tensor.float32(), values)
    assert "requantized" not in written.notes


def test_an_adapter_is_merged_into_them(tmp_path: Path) -> None:
    """What it changes becomes float32: all of the matrices here, so that nothing quantized is left."""
    tensors, expected, config = gptq(4, 32)
    source, adapter = write(tmp_path / "m", with_plain(tensors), config), tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 2}')
    parts = {}
    for name, (out, cols) in MATRICES.items():
        a, b = (rng.normal(0, 0.1, shape).astype(np.float32) for shape in ((2, cols), (out, 2)))
        parts |= {f"base_model.model.{name}.lora_A.weight": a, f"base_model.model.{name}.lora_B.weight": b}
        expected[name] = expected[name] + b @ a
    safetensors.write(adapter / "adapter_model.safetensors", parts)
    written = edgekit.merge(source, adapter, to=tmp_path / "merged")
    for name, values in expected.items():
        np.testing.assert_allclose(written.tensors[f"{name}.weight"].float32(), values, rtol=1e-5, atol=1e-6)
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())
    assert written.model.config.layers == 1


def test_the_forward_pass_runs_on_them(tmp_path: Path) -> None:
    tensors, expected, config = awq(32)
    both = with_plain(tensors)
    plain = {name: values for name, values in both.items() if not name.endswith(("qweight", "qzeros", "scales"))}
    plain |= {f"{name}.weight": values for name, values in expected.items()}
    logits = []
    for directory in (write(tmp_path / "q", both, config), write(tmp_path / "f", plain, None)):
        with edgekit.load(directory, runtime="numpy") as model:
            logits.append(model.logits([1, 2, 3]))
    np.testing.assert_array_equal(*logits)


def test_every_scheme_has_a_module_and_says_its_source() -> None:
    import importlib

    for method, module in SCHEMES.items():
        found = importlib.import_module(f"edgekit.formats._packed.{module}")
        assert "\nSource: " in (found.__doc__ or ""), method
        assert "quant_method" in found.KNOWN
