"""SmolLM2-135M-Instruct from its GGUF file to ONNX in 4 bits, without torch; it answers as in llama.cpp.

Once with the file's own values, and once quantized again.

Tokens per second beside llama.cpp's: ``nox -s bench -- --only onnx-smollm2``.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np

import edgekit
from edgekit.tensor import EncodedTensor

QUESTION = "What is the capital of France? Answer in one short sentence."
_CONVERT = """
import sys
import edgekit
edgekit.quantize(sys.argv[1], "MATMUL_NBITS_4", to=sys.argv[2], format="onnx")
assert "torch" not in sys.modules
"""


def test_the_values_of_the_file_and_a_chat(smollm2: Path, tmp_path: Path):
    made = edgekit.convert(smollm2, tmp_path / "m", format="onnx")
    assert {"decoded", "requantized"}.isdisjoint(made.notes)
    assert "210 ggml:Q4_1 → onnx:offset4-g32" in made.notes["carried"]
    weights = edgekit.open(smollm2).model.tensors
    for role in ("token_embd.weight", "blk.0.attn_q.weight", "blk.29.ffn_down.weight"):
        assert np.array_equal(made.model.tensors[role].float32(), weights[role].float32()), role
    with edgekit.load(made, "onnxruntime") as model:
        assert "The capital of France is Paris" in model.chat(QUESTION, max_tokens=24)


def test_from_gguf_to_onnx_and_a_chat(smollm2: Path, tmp_path: Path):
    subprocess.run([sys.executable, "-W", "ignore", "-c", _CONVERT, str(smollm2), str(tmp_path / "m")], check=True)
    made = edgekit.open(tmp_path / "m")
    kinds = Counter(t.precision.name for t in made.tensors.values() if isinstance(t, EncodedTensor))
    assert kinds == {"onnx:int4-sym-g32": 210, "onnx:int8-sym-g32": 1}
    assert made.manifest is not None
    assert "210 ggml:Q4_1" in made.manifest.notes["requantized"]
    with edgekit.load(smollm2, "llamacpp") as ggml, edgekit.load(made, "onnxruntime") as onnx:
        for model in (ggml, onnx):
            assert "The capital of France is Paris" in model.chat(QUESTION, max_tokens=24)
