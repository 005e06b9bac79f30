"""What other libraries quantized, against their own dequantization: equal values, without a tolerance.

transformers 5.23 loads fine-grained FP8 and MXFP4 (dequantizing), and saves bitsandbytes and torchao; compressed-tensors 0.20.0
decompresses its own formats and translates AutoAWQ's; what its libraries round to a narrower type is compared after the
same rounding. GPTQ's libraries do not install here: `tests/core/test_packed.py` builds its tensors to specification.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, FineGrainedFP8Config, LlamaConfig, LlamaForCausalLM
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

import edgekit
from edgekit.tensor import EncodedTensor

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

TOKENS = torch.arange(3, 19)[None]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama in bfloat16, as transformers saves it."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=256,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=96,
        max_position_embeddings=64,
    )
    directory = tmp_path_factory.mktemp("base")
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)
    return directory


def matrices(base: Path) -> Iterator[tuple[str, torch.Tensor]]:
    return ((name, values) for name, values in load_file(base / "model.safetensors").items() if "proj" in name)


def put(base: Path, directory: Path, tensors: dict[str, torch.Tensor], quantization: dict[str, Any]) -> Path:
    """The model with its matrices replaced by their parts."""
    shutil.copytree(base, directory)
    rest = {n: values for n, values in load_file(base / "model.safetensors").items() if "proj" not in n}
    kept = {name: values.contiguous() for name, values in tensors.items()}
    save_file(rest | kept, directory / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((base / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
    return directory


def check(directory: Path, expected: dict[str, torch.Tensor], precision: str) -> None:
    artifact = edgekit.open(directory)
    assert artifact.model.config.layers == 2
    for name, values in expected.items():
        tensor = artifact.tensors[name]
        assert isinstance(tensor, EncodedTensor)
        assert tensor.precision.name == precision
        ours = torch.from_numpy(np.array(tensor.float32()))
        assert torch.equal(ours.to(values.dtype), values), name
        np.testing.assert_array_equal(tensor.float32(5, 23), ours[5:23])


def blocks(values: torch.Tensor, size: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    grid = values.float().reshape(values.shape[0] // size, size, values.shape[1] // size, size)
    scale = grid.abs().amax((1, 3)) / 448
    codes = (grid / scale[:, None, :, None]).reshape(values.shape).to(torch.float8_e4m3fn)
    return codes, scale


def test_fine_grained_fp8_as_transformers_loads_it(base: Path, tmp_path: Path) -> None:
    """Every matrix is equal, and with them the logits."""
    tensors = {}
    for name, values in matrices(base):
        tensors[name], tensors[f"{name}_scale_inv"] = blocks(values)
    quantization = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
        "fmt": "e4m3",
    }
    directory = put(base, tmp_path / "m", tensors, quantization)
    theirs = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, quantization_config=FineGrainedFP8Config(dequantize=True)
    )
    expected = {name: values.detach() for name, values in theirs.named_parameters() if "proj" in name}
    assert {values.dtype for values in expected.values()} == {torch.float32}
    assert len(expected) == 14
    check(directory, expected, "packed:fp8-g128")
    theirs.float().eval()  # the rest comes in the file's bfloat16
    with torch.no_grad(), edgekit.load(directory, runtime="numpy") as ours:
        reference = theirs(TOKENS).logits[0].numpy()
        np.testing.assert_allclose(
            ours.logits(TOKENS[0].numpy()), reference, rtol=0, atol=1e-4 * np.abs(reference).max()
        )


ARGUMENTS: dict[str, tuple[dict[str, Any], str, str]] = {
    "int4-g32": ({"num_bits": 4, "strategy": "group", "group_size": 32}, "pack-quantized", "affine:int4-sym-g32"),
    "int4-asym": (
        {"num_bits": 4, "symmetric": False, "strategy": "group", "group_size": 128},
        "pack-quantized",
        "affine:int4-asym-g128",
    ),
    "int3-asym": (
        {"num_bits": 3, "symmetric": False, "strategy": "group", "group_size": 64},
        "pack-quantized",
        "affine:int3-asym-g64",
    ),
    "int8": ({"num_bits": 8, "strategy": "channel"}, "pack-quantized", "affine:int8-sym-channel"),
    "w8a8": ({"num_bits": 8, "strategy": "channel"}, "int-quantized", "affine:int8-sym-channel"),
    "w8a8-asym": (
        {"num_bits": 8, "symmetric": False, "strategy": "tensor"},
        "int-quantized",
        "affine:int8-asym-channel",
    ),
    "fp8-tensor": ({"num_bits": 8, "type": "float", "strategy": "tensor"}, "float-quantized", "packed:fp8-channel"),
    "fp8-channel": ({"num_bits": 8, "type": "float", "strategy": "channel"}, "float-quantized", "packed:fp8-channel"),
    "fp8-block": (
        {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [128, 128]},
        "float-quantized",
        "packed:fp8-g128",
    ),
    "nvfp4": (
        {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16},
        "nvfp4-pack-quantized",
        "packed:fp4-g16",
    ),
    "mxfp4": (
        {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"},
        "mxfp4-pack-quantized",
        "ggml:MXFP4",
    ),
    "mxfp8": (
        {"num_bits": 8, "type": "float", "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"},
        "mxfp8-quantized",
        "packed:fp8-g32",
    ),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_compressed_tensors(base: Path, tmp_path: Path, case: str) -> None:
    library = pytest.importorskip("compressed_tensors.quantization")
    compressors = pytest.importorskip("compressed_tensors.compressors")
    given, name, precision = ARGUMENTS[case]
    arguments = library.QuantizationArgs(**given)
    scheme = library.QuantizationScheme(targets=["Linear"], weights=arguments, format=name)
    compressor = compressors.BaseCompressor.get_value_from_registry(name)
    tensors, expected = {}, {}
    for matrix, values in matrices(base):
        parts = compressor.compress(observed(values.float(), arguments, name), scheme)
        tensors |= {f"{matrix.removesuffix('weight')}{part}": each for part, each in parts.items()}
        expected[matrix] = compressor.decompress(dict(parts), scheme)["weight"]
    config = library.QuantizationConfig(
        config_groups={"group_0": scheme}, format=name, quantization_status="compressed"
    )
    quantization = json.loads(json.dumps(config.to_dict(), default=str))
    check(put(base, tmp_path / "m", tensors, quantization), expected, precision)


def observed(values: torch.Tensor, arguments: Any, name: str) -> dict[str, torch.Tensor]:
    """The weight with scales and zero points, as an observer of extremes would choose them."""
    low, high = extremes(values, arguments)
    parts = {"weight": values}
    half = 1 << (arguments.num_bits - 1)
    if arguments.type == "float":
        scale = torch.maximum(high.abs(), low.abs()) / (448 if arguments.num_bits == 8 else 6)
    elif arguments.symmetric:
        scale = torch.maximum(high.abs(), low.abs()) / (half - 0.5)
    else:
        scale = (high.clamp(min=0) - low.clamp(max=0)) / (2 * half - 1)
        zero = (-half - low.clamp(max=0) / scale).round().clamp(-half, half - 1)
        parts["weight_zero_point"] = zero.to(torch.int8)
    if name.startswith("nvfp4"):
        parts["weight_global_scale"] = (448 * 6 / values.abs().max()).reshape(1)
        scale = (scale * parts["weight_global_scale"]).to(torch.float8_e4m3fn).float()
    if name.startswith("mx"):
        scale = torch.exp2(torch.ceil(torch.log2(scale)))
    return {**parts, "weight_scale": scale}


def extremes(values: torch.Tensor, arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    if arguments.strategy == "block":
        rows, columns = arguments.block_structure
        grid = values.reshape(values.shape[0] // rows, rows, values.shape[1] // columns, columns)
        return grid.amin((1, 3)), grid.amax((1, 3))
    if arguments.strategy in ("group", "tensor_group"):
        grid = values.reshape(values.shape[0], -1, arguments.group_size)
        return grid.amin(-1), grid.amax(-1)
    if arguments.strategy == "channel":
        return values.amin(1, keepdim=True), values.amax(1, keepdim=True)
    return values.amin().reshape(1), values.amax().reshape(1)


@pytest.mark.parametrize("zero_point", [True, False])
def test_awq_as_compressed_tensors_translates_it(base: Path, tmp_path: Path, zero_point: bool) -> None:
    """Random words are a valid AWQ checkpoint: every field is a code."""
    converters = pytest.importorskip("compressed_tensors.entrypoints.convert.converters.autoawq")
    library = pytest.importorskip("compressed_tensors.quantization")
    compressors = pytest.importorskip("compressed_tensors.compressors")
    rng = torch.Generator().manual_seed(0)
    tensors: dict[str, torch.Tensor] = {}
    for name, values in matrices(base):
        (out, cols), module = values.shape, name.removesuffix(".weight")
        tensors[f"{module}.qweight"] = words((cols, out // 8), rng)
        tensors[f"{module}.scales"] = (torch.rand((cols // 64, out), generator=rng) / 100).half()
        if zero_point:
            tensors[f"{module}.qzeros"] = words((cols // 64, out // 8), rng)
    quantization = {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm", "zero_point": zero_point}
    theirs = converters.AutoAWQConverter(group_size=64, zero_point=zero_point).process(dict(tensors))
    arguments = library.QuantizationArgs(num_bits=4, symmetric=not zero_point, strategy="group", group_size=64)
    scheme = library.QuantizationScheme(targets=["Linear"], weights=arguments, format="pack-quantized")
    compressor, expected = compressors.BaseCompressor.get_value_from_registry("pack-quantized"), {}
    for name, _ in matrices(base):
        start = name.removesuffix("weight")
        parts = {key.removeprefix(start): value for key, value in theirs.items() if key.startswith(start)}
        wide = {key: value.float() if key == "weight_scale" else value for key, value in parts.items()}
        expected[name] = compressor.decompress(wide, scheme)["weight"]
    precision = f"affine:int4-{'asym' if zero_point else 'sym'}-g64"
    check(put(base, tmp_path / "m", tensors, quantization), expected, precision)


def words(shape: tuple[int, ...], rng: torch.Generator) -> torch.Tensor:
    return torch.randint(-(1 << 31), 1 << 31, shape, generator=rng, dtype=torch.int64).to(torch.int32)


@pytest.mark.parametrize(
    ("options", "precision"),
    [
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "packed:nf4-g64"),
        (
            {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
            "packed:nf4-g64",
        ),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}, "packed:bnb_fp4-g64"),
        ({"load_in_8bit": True}, "packed:int8-channel"),
    ],
    ids=["nf4", "nf4-nested", "fp4", "int8"],
)
def test_bitsandbytes_as_transformers_saves_it(
    base: Path, tmp_path: Path, options: dict[str, Any], precision: str
) -> None:
    functional = pytest.importorskip("bitsandbytes").functional
    theirs = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, quantization_config=BitsAndBytesConfig(**options), device_map="cpu"
    )
    theirs.save_pretrained(tmp_path / "m")
    expected = {}
    for name, module in theirs.named_modules():
        if name.endswith("proj"):
            weight = module.weight
            expected[f"{name}.weight"] = (
                functional.int8_vectorwise_dequant(weight.data, weight.SCB)
                if "load_in_8bit" in options
                else functional.dequantize_4bit(weight.data, weight.quant_state)
            )
    assert {values.dtype for values in expected.values()} == {torch.float32}
    check(tmp_path / "m", expected, precision)


@pytest.mark.parametrize(
    ("case", "precision"),
    [
        ("int8", "affine:int8-asym-channel"),
        ("int4-g32", "affine:int4-asym-g32"),
        ("int3-asym", "affine:int3-asym-g64"),
        ("fp8", "packed:fp8-channel"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_torchao_as_transformers_saves_it(base: Path, tmp_path: Path, case: str, precision: str) -> None:
    from torchao import quantization as torchao
    from torchao.quantization.granularity import PerGroup

    config = {
        "int8": lambda: torchao.Int8WeightOnlyConfig(version=2),
        "int4-g32": lambda: torchao.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32)),
        "int3-asym": lambda: torchao.IntxWeightOnlyConfig(
            weight_dtype=torch.int3,
            granularity=PerGroup(64),
            mapping_type=torchao.quant_primitives.MappingType.ASYMMETRIC,
        ),
        "fp8": torchao.Float8WeightOnlyConfig,
    }[case]()
    theirs = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, quantization_config=transformers.TorchAoConfig(config), device_map="cpu"
    )
    theirs.save_pretrained(tmp_path / "m")
    expected = {
        f"{name}.weight": module.weight.dequantize() for name, module in theirs.named_modules() if name.endswith("proj")
    }
    assert {values.dtype for values in expected.values()} == {torch.float32}
    check(tmp_path / "m", expected, precision)


def test_torchaos_int4_tensor_as_its_own_writer_lays_it_out(base: Path, tmp_path: Path) -> None:
    """torchao makes them on a GPU alone, and has no dequantization: the values are to FBGEMM's formula."""
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
    from torchao.quantization.quantize_.workflows.int4.int4_tensor import Int4Tensor

    rng, made, expected = torch.Generator().manual_seed(0), {}, {}
    for name, values in matrices(base):
        out, cols = values.shape
        codes = torch.randint(-8, 8, (out, cols), generator=rng, dtype=torch.int8)
        scale, zero = (torch.rand(cols // 64, out, generator=rng).to(torch.bfloat16) / 64 for _ in range(2))
        packed = torch.bitwise_or(codes[:, ::2] & 15, codes[:, 1::2] << 4).contiguous()
        made[name] = Int4Tensor(packed, scale, zero, [1, 64], values.shape)
        groups = codes.float().reshape(out, -1, 64)
        expected[name] = (groups * scale.float().T[..., None] + zero.float().T[..., None]).reshape(out, cols)
    tensors, metadata = flatten_tensor_state_dict(made)
    directory = put(base, tmp_path / "m", tensors, {"quant_method": "torchao", "quant_type": {"default": {}}})
    held = load_file(directory / "model.safetensors")
    save_file(held, directory / "model.safetensors", metadata=metadata)
    check(directory, expected, "packed:int4_offset-g64")


def test_mxfp4_experts_as_transformers_unpacks_them(tmp_path: Path) -> None:
    """transformers turns them to [experts, in, out]; the quantized matrices are [experts, out, in]."""
    rng = torch.Generator().manual_seed(0)
    packed = torch.randint(0, 256, (3, 64, 4, 16), generator=rng, dtype=torch.uint8)
    scales = torch.randint(100, 150, (3, 64, 4), generator=rng, dtype=torch.uint8)
    tmp_path.joinpath("config.json").write_text('{"quantization_config": {"quant_method": "mxfp4"}}')
    name = "model.layers.0.mlp.experts.gate_up_proj"
    save_file({f"{name}_blocks": packed, f"{name}_scales": scales}, tmp_path / "model.safetensors")
    theirs = convert_moe_packed_tensors(packed, scales, dtype=torch.float32)
    ours = edgekit.open(tmp_path).tensors[name].read().dequantize()
    np.testing.assert_array_equal(ours, theirs.transpose(1, 2).numpy())
