"""edgekit-mlx beside mlx-lm: conversion file to file, tokens a second, training steps a second.

Conversions are whole processes, Python's start and all imports included, in turns; their peak memory is Linux's VmHWM.
Tokens and steps take turns in one process, by processor time: MLX computes on one thread for a model of this size.

python tests/bench/bench.py --only mlx-lm
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import whole
from llama_model import write_llama

NEEDS = ("mlx", "mlx_lm", "edgekit_mlx")
ROUNDS, TOKENS, PROMPT, STEPS = 5, 16, 16, 6
_OURS = f"""{whole._PEAK}
import edgekit
edgekit.quantize(sys.argv[1], "4bit", to=sys.argv[2], format="mlx")
finish()
"""
_THEIRS = f"""{whole._PEAK}
import contextlib, io
from mlx_lm.convert import convert
with contextlib.redirect_stdout(io.StringIO()):
    convert(sys.argv[1], sys.argv[2], quantize=True, q_group_size=64, q_bits=4)
finish()
"""


def report(quick: bool = False) -> Iterator[str]:
    """Lines of the report, as they come."""
    lacking = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if lacking:
        yield f"MLX is not compared: {', '.join(lacking)} is not installed."
        return
    import edgekit

    rounds = 1 if quick else ROUNDS
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        gguf = write_llama(folder / "model.gguf")
        source = edgekit.convert(gguf, folder / "hf", dtype="F16").path
        yield from conversion(folder, source, rounds)
        yield from generation(folder / "ours", rounds)
        yield from training(folder, rounds)


def conversion(folder: Path, source: Path, rounds: int) -> Iterator[str]:
    """The Hugging Face directory to 4 bits in groups of 64."""
    size = sum(file.stat().st_size for file in source.iterdir())
    runs: dict[str, list[whole.Run]] = {"ours": [], "theirs": []}
    for _ in range(rounds):
        for who, script in (("ours", _OURS), ("theirs", _THEIRS)):
            shutil.rmtree(folder / who, ignore_errors=True)
            runs[who].append(whole.run(script, 2, source, folder / who))
    own, peer = (whole._median(runs[who]) for who in ("ours", "theirs"))
    yield f"A random Llama of {size / 1e6:.0f} MB (F16) to 4 bits in groups of 64, two cores, {rounds} rounds in turn:"
    yield ""
    yield "| what | edgekit | mlx_lm.convert | edgekit's share |"
    yield "|---|---|---|---|"
    for what, a, b in (("seconds", own.seconds, peer.seconds), ("processor time", own.cpu, peer.cpu)):
        yield f"| {what} | {a:.2f} s | {b:.2f} s | **{a / b:.2f}×** |"
    yield f"| peak memory | {own.peak / 1e6:.0f} MB | {peer.peak / 1e6:.0f} MB | **{own.peak / peer.peak:.2f}×** |"
    yield ""
    same = packed(folder / "ours") == packed(folder / "theirs")
    yield f"The bytes of the packed weights are {'identical' if same else '**different**'}; mlx-lm casts norms to float16."
    yield ""


def packed(path: Path) -> dict[str, str]:
    """Hashes of the quantized tensors."""
    import edgekit
    from edgekit.tensor import EncodedTensor

    tensors = edgekit.open(path).tensors
    return {name: one for name, one in whole._digest(path).items() if isinstance(tensors[name], EncodedTensor)}


def generation(directory: Path, rounds: int) -> Iterator[str]:
    """Tokens a second of the model in 4 bits: through `edgekit.load`, and by mlx-lm's `generate_step`."""
    import mlx.core as mx
    from mlx_lm.generate import generate_step
    from mlx_lm.utils import load_model

    import edgekit

    prompt = np.random.default_rng(0).integers(300, 16_000, PROMPT).tolist()
    module, _ = load_model(directory)

    def theirs() -> list[int]:
        steps = generate_step(mx.array(prompt), module, max_tokens=TOKENS)
        return [int(token) for token, _ in steps]

    with edgekit.load(directory, "mlx") as model:

        def ours() -> list[int]:
            model._held.seen = []  # type: ignore[attr-defined]  # the prompt is computed anew, as theirs is
            return list(model.tokens(prompt, max_tokens=TOKENS))  # type: ignore[attr-defined]

        equal = ours() == theirs()
        own, peer = in_turns(ours, theirs, rounds)
    yield f"| tokens a second, prompt of {PROMPT}, {TOKENS} tokens | {TOKENS / own:.2f} | {TOKENS / peer:.2f} | "
    yield f"edgekit's speed **{peer / own:.3f}×**; the tokens are {'identical' if equal else '**different**'} |"
    yield ""


def training(folder: Path, rounds: int) -> Iterator[str]:
    """LoRA steps a second on the sample model: `edgekit_mlx.training` and `mlx_lm.tuner.trainer.train`."""
    import mlx.core as mx
    import mlx.optimizers as optimizers
    from mlx_lm.tuner import trainer
    from mlx_lm.tuner.utils import linear_to_lora_layers
    from mlx_lm.utils import load_model

    import edgekit
    from edgekit import sample
    from edgekit_mlx.training import Training, finetune

    source = edgekit.convert(sample.path(), folder / "sample", format="mlx", dtype="F32")
    ids = np.random.default_rng(0).integers(10, 500, (8, 32)).tolist()
    text = source.tokenizer.decode  # type: ignore[union-attr]
    (folder / "train.jsonl").write_text("".join(json.dumps({"text": text(row)}) + "\n" for row in ids))
    module, _ = load_model(source.path)
    module.freeze()
    linear_to_lora_layers(module, 3, {"rank": 8, "scale": 20.0, "dropout": 0.0})
    optimizer = optimizers.Adam(learning_rate=1e-4)
    data = trainer.CacheDataset(_Rows(ids))
    arguments = trainer.TrainingArgs(
        batch_size=4, iters=STEPS, steps_per_report=1000, steps_per_save=1000, max_seq_length=33,
        adapter_file=str(folder / "theirs.safetensors"),
    )  # fmt: skip
    mx.eval(module.parameters())

    def theirs() -> object:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return trainer.train(module, optimizer, data, args=arguments)

    def ours() -> object:
        options = Training(steps=STEPS, batch=4, length=33, report_every=1000, save_every=1000)
        return finetune(source, folder / "train.jsonl", folder / "adapter", options, restart=True)

    own, peer = in_turns(ours, theirs, rounds)
    yield f"| LoRA steps a second, 4 × 32 tokens, {STEPS} steps | {STEPS / own:.2f} | {STEPS / peer:.2f} | "
    yield f"edgekit's speed **{peer / own:.3f}×**, with its loading and tokenizing |"


class _Rows:
    """Token ids as a dataset of mlx-lm's."""

    def __init__(self, rows: list[list[int]]) -> None:
        self.rows = rows

    def process(self, row: list[int]) -> tuple[list[int], int]:
        """A row as it is, all of it trained."""
        return row, 0

    def __getitem__(self, index: int) -> list[int]:
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)


def in_turns(ours: Callable[[], object], theirs: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Median processor seconds of both, which take turns in being first."""
    spent: dict[str, list[float]] = {"ours": [], "theirs": []}
    for number in range(-1, rounds):  # the first warms up
        pair = [("ours", ours), ("theirs", theirs)]
        for who, job in pair if number % 2 else reversed(pair):
            start = time.process_time()
            job()
            if number >= 0:
                spent[who].append(time.process_time() - start)
    return statistics.median(spent["ours"]), statistics.median(spent["theirs"])


if __name__ == "__main__":
    for line in report():
        print(line, flush=True)
