"""What the tests of model families share: random models of transformers, and llama.cpp's logits."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()

#: 24 token ids of a vocabulary of 96.
TOKENS = np.array([3, 17, 38, 1, 22, 9, 31, 5, 12, 27, 0, 39, 8, 14, 25, 2, 33, 19, 7, 11, 29, 4, 36, 95])
VOCAB = 96


def saved_model(
    config: dict[str, Any], folder: Path, seed: int = 0, kind: Any = transformers.AutoModelForCausalLM
) -> Any:
    """A random model of that config.json, written to a folder as transformers does; gives the model.

    Weights have a deviation of 0.08, norms are about 1, so that every part of the model shows in the logits.
    """
    torch.manual_seed(seed)
    values = {key: value for key, value in config.items() if key != "model_type"}
    parsed = transformers.AutoConfig.for_model(config["model_type"], **values)
    model = kind.from_config(parsed, attn_implementation="eager", dtype=torch.float32)
    for name, parameter in model.named_parameters():
        randomize(name, parameter)
    for name, buffer in model.named_buffers():
        if name.endswith("bias"):  # of a router's choice
            buffer.copy_(0.1 * torch.randn_like(buffer))
        if name.endswith("layer_scalar"):
            buffer.copy_(0.5 + torch.rand_like(buffer))
    model.tie_weights()
    model.save_pretrained(folder)
    return model.eval()


@torch.no_grad()
def randomize(name: str, parameter: torch.nn.Parameter) -> None:
    """Fill a parameter in place with what its name asks for."""
    random = torch.randn_like(parameter)
    if name.endswith(("norm.weight", "layernorm.weight")) or "norm" in name.rsplit(".", 2)[-2].lower():
        middle = 0.0 if parameter.abs().max() == 0 else 1.0  # zero-centred norms start at 0
        parameter.copy_(middle + 0.2 * random)
    elif name.endswith("A_log"):
        parameter.copy_(torch.rand_like(parameter) * 2 - 1)
    elif name.endswith(("router.scale", "per_expert_scale")):
        parameter.copy_(1 + 0.2 * random)
    elif name.endswith(("dt_bias", ".D")):
        parameter.copy_(0.5 + 0.5 * random)
    elif name.endswith("embed_tokens.weight"):
        parameter.copy_(random)
    else:
        parameter.copy_(random * max(0.08, 1 / math.sqrt(parameter.shape[-1])))


@torch.no_grad()
def transformers_logits(model: Any, tokens: Any = TOKENS) -> np.ndarray:
    """Logits, float32 [n, vocab]."""
    return model(torch.from_numpy(np.asarray(tokens)[None]), use_cache=False).logits[0].numpy()


def loaded_logits(folder: Path) -> np.ndarray:
    """Logits of what transformers loads from a directory, every tensor of which it has to use."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"], info
    assert not info["unexpected_keys"], info
    return transformers_logits(model.eval())


def llama_logits(paths: dict[str, Path], folder: Path) -> dict[str, np.ndarray]:
    """llama.cpp's logits [n, vocab] of several files: a prompt of 16, then 8 one by one; in a process of its own."""
    target = folder / "logits.npz"
    arguments = [f"{name}={path}" for name, path in paths.items()]
    done = subprocess.run(
        [sys.executable, __file__, str(target), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    with np.load(target) as found:
        return {name: found[name] for name in found.files}


def _llama_logits(path: str) -> np.ndarray:
    import llama_cpp as lc

    model = lc.llama_model_load_from_file(path.encode(), lc.llama_model_default_params())
    if not model:
        raise SystemExit(f"llama.cpp does not load {path}")
    vocab = lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(model))
    parameters = lc.llama_context_default_params()
    parameters.n_ctx, parameters.n_batch, parameters.n_ubatch = 64, 64, 64
    parameters.n_threads = parameters.n_threads_batch = 1
    parameters.type_k = parameters.type_v = 0  # F32
    parameters.flash_attn_type = 0
    context = lc.llama_init_from_model(model, parameters)
    rows = []
    for start, stop in [(0, 16), *((i, i + 1) for i in range(16, len(TOKENS)))]:
        batch = lc.llama_batch_init(stop - start, 0, 1)
        batch.n_tokens = stop - start
        for i, position in enumerate(range(start, stop)):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = int(TOKENS[position]), position, 1
            batch.seq_id[i][0], batch.logits[i] = 0, 1
        if lc.llama_decode(context, batch):
            raise SystemExit(f"llama.cpp does not run {path}")
        rows.append(np.ctypeslib.as_array(lc.llama_get_logits(context), (stop - start, vocab)).copy())
        lc.llama_batch_free(batch)
    return np.concatenate(rows)


def relative(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference over the largest magnitude."""
    assert a.shape == b.shape
    return float(np.abs(a - b).max() / np.abs(b).max())


def deviations(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference in standard deviations of the second."""
    assert a.shape == b.shape
    return float(np.abs(a - b).max() / b.std())


if __name__ == "__main__":
    np.savez(sys.argv[1], **{pair.partition("=")[0]: _llama_logits(pair.partition("=")[2]) for pair in sys.argv[2:]})
