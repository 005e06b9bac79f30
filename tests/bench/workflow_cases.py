"""What memory and speed are predicted for and measured of, in the benchmark and in the tests."""

from __future__ import annotations

from pathlib import Path

import edgekit
from edgekit.artifact import Artifact

#: Format, recipe (None: as it is) and runtime.
CASES: tuple[tuple[str, str | None, str], ...] = (
    ("gguf", "Q8_0", "numpy"),
    ("gguf", "Q4_0", "llamacpp"),
    ("gguf", "Q4_K_M", "llamacpp"),
    ("gguf", "Q8_0", "llamacpp"),
    ("gguf", "F16", "llamacpp"),
    ("openvino", "INT4_SYM_G64", "openvino"),
    ("openvino", "INT8_ASYM", "openvino"),
    ("openvino", None, "openvino"),
    ("onnx", "MATMUL_NBITS_4", "onnxruntime"),
    ("onnx", "INT8_CHANNEL", "onnxruntime"),
    ("onnx", None, "onnxruntime"),
    ("mlx", "4bit", "mlx"),
    ("mlx", "8bit", "mlx"),
    ("mlx", None, "mlx"),
)


def written(source: Path | Artifact, format_name: str, recipe: str | None, folder: Path) -> Artifact:
    """Write the artifact of a case into a folder, once."""
    to = folder / (f"{recipe}.gguf" if format_name == "gguf" else f"{format_name}-{recipe}")
    if to.exists():
        return edgekit.open(to)
    if recipe is None:
        return edgekit.convert(source, to, format=format_name)
    return edgekit.quantize(source, recipe, to=to, format=format_name)


def options(runtime: str) -> dict[str, int]:
    """Options of one thread, of runtimes that have any."""
    return {} if runtime in ("numpy", "mlx") else {"threads": 1}
