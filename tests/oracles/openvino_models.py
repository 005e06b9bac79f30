"""Small models for the tests of OpenVINO's passes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from edgekit_openvino.library import openvino

WIDTH, VOCAB = 128, 96


def weights(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Like a trained layer's: heavy tails, a magnitude for each row."""
    rng = np.random.default_rng([0x0E6, seed])
    x = rng.standard_t(5, shape) * np.exp(rng.normal(0, 0.3, (*shape[:-1], 1)))
    return (x / np.sqrt(shape[-1])).astype(np.float32)


def tokens_model(layers: int = 3, vocab: int = VOCAB) -> tuple[object, dict[str, np.ndarray]]:
    """A table, gated layers with a residual, and logits; its weights by name."""
    ov = openvino()
    ops = ov.opset13
    ids = ops.parameter([-1, -1], np.int64, name="input_ids")
    ids.get_output_tensor(0).set_names({"input_ids"})
    values = {"embed": weights((vocab, WIDTH), 0)}
    x = ops.gather(ops.constant(values["embed"], name="embed"), ids, ops.constant(np.int64(0)))
    for layer in range(layers):
        names = {which: f"layer{layer}.{which}" for which in ("gate", "up", "down")}
        for number, (which, name) in enumerate(names.items()):
            shape = (WIDTH, 2 * WIDTH) if which == "down" else (2 * WIDTH, WIDTH)
            values[name] = weights(shape, 3 * layer + number + 1)
        gate, up = (_product(x, names[which], values) for which in ("gate", "up"))
        hidden = ops.multiply(ops.swish(gate), up, name=f"layer{layer}.hidden")
        x = ops.add(x, _product(hidden, names["down"], values), name=f"layer{layer}.sum")
    values["head"] = weights((vocab, WIDTH), 99)
    result = ops.result(_product(x, "head", values))
    result.get_output_tensor(0).set_names({"logits"})
    return ov.Model([result], [ids], "tokens"), values


def _product(x: object, name: str, values: dict[str, np.ndarray]) -> object:
    ops = openvino().opset13
    return ops.matmul(x, ops.constant(values[name], name=name), False, True, name=f"{name}/product")


def save(model: object, folder: Path) -> Path:
    """An IR's directory, with something beside the IR."""
    folder.mkdir()
    openvino().save_model(model, str(folder / "openvino_model.xml"), compress_to_fp16=False)
    (folder / "generation_config.json").write_text(json.dumps({"max_length": 7}))
    return folder


def token_samples(count: int = 12, length: int = 16, vocab: int = VOCAB) -> list[dict[str, np.ndarray]]:
    """Token ids, some of them much more frequent than others."""
    rng = np.random.default_rng(5)
    return [{"input_ids": rng.geometric(0.1, (1, length)).clip(1, vocab) - 1} for _ in range(count)]
