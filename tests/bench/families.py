"""The numpy forward pass of every family beside transformers' eager one: a prompt of 512 tokens.

python tests/bench/bench.py --only families

Models are those of the oracles' whole-file tests (`tests/oracles/families/NAME.py`, ``QUANTIZED``), random, in float32. Both
compute on one thread, in interleaved rounds; times are processor times. Of encoders the states are compared.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

import numpy as np
from case import timed

import edgekit
from edgekit.architectures.forward import Transformer

TOKENS, ROUNDS = 512, 7
#: transformers' time that numpy may take.
ALLOWED = 1.5
ORACLES = Path(__file__).parents[1] / "oracles"


def report(quick: bool = False) -> Iterator[str]:
    """A table with a row a family, and the largest ratio."""
    import torch

    torch.set_num_threads(1)
    yield f"A prompt of {TOKENS} tokens through small random models, one thread, medians of interleaved rounds:"
    yield ""
    yield "| family | numpy | transformers | numpy's time | logits differ by |"
    yield "|---|---|---|---|---|"
    ratios = {}
    for family, config in configurations().items():
        own, peer, apart = compared(config, 2 if quick else ROUNDS)
        ratios[family] = own / peer
        yield f"| `{family}` | {own * 1e3:.0f} ms | {peer * 1e3:.0f} ms | **{own / peer:.2f}×** | {apart:.0e} |"
    most = max(ratios, key=lambda family: ratios[family])
    over = [family for family, ratio in ratios.items() if ratio > ALLOWED]
    yield ""
    yield (
        f"The largest is {most}'s, {ratios[most]:.2f}×; {ALLOWED}× is allowed: "
        f"{'**exceeded** by ' + ', '.join(over) if over else 'kept'}."
    )


def configurations() -> dict[str, dict[str, Any]]:
    """By family, with room for the prompt."""
    modules = {path.stem: loaded(path) for path in sorted((ORACLES / "families").glob("*.py"))}
    found = {name: getattr(module, "QUANTIZED", module.BASE) for name, module in modules.items()}
    found |= loaded(ORACLES / "encoders.py").QUANTIZED
    return {name: config | {"max_position_embeddings": 2 * TOKENS} for name, config in found.items()}


def loaded(path: Path) -> ModuleType:
    """A module of the tests."""
    spec = importlib.util.spec_from_file_location(f"bench_{path.stem}", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compared(config: dict[str, Any], rounds: int) -> tuple[float, float, float]:
    """Median seconds of numpy and of transformers, and the largest difference by the largest value."""
    import torch

    oracles = loaded(ORACLES / "family_oracles.py")
    encoder = "attention" if config.get("use_bidirectional_attention") or config["model_type"] == "bert" else None
    kind = oracles.transformers.AutoModel if encoder else oracles.transformers.AutoModelForCausalLM
    ids = np.random.default_rng(0).integers(1, config["vocab_size"], TOKENS)
    given = torch.from_numpy(ids)[None]
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        theirs = oracles.saved_model(config, Path(folder), kind=kind)
        ours = Transformer(edgekit.open(folder).model, cache=True)
        peer = (lambda: theirs(given).last_hidden_state) if encoder else (lambda: theirs(given, use_cache=False).logits)
        own = (lambda: ours.hidden(ids)) if encoder else (lambda: ours.logits(ids))
        expected, found = peer()[0].numpy(), own()
        seconds = np.array([(timed(own), timed(peer)) for _ in range(rounds)])
    apart = float(np.abs(found - expected).max() / np.abs(expected).max())
    return median(seconds[:, 0].tolist()), median(seconds[:, 1].tolist()), apart


__all__ = ["configurations", "report"]
