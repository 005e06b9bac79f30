"""Measures the effect of a pass: a model's outputs before and after it, on the same samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from edgekit.errors import UnsupportedModelError
from edgekit.evaluation.outputs import difference
from edgekit.evaluation.samples import Feed
from edgekit.files.memory import refuse_shortage
from edgekit.typing import F64
from edgekit_openvino.library import core, last_line

#: Properties for the most exact results on the CPU: float32, without rounding activations or cached keys and values.
EXACT = {
    "INFERENCE_PRECISION_HINT": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    "KV_CACHE_PRECISION": "f32",
}
#: Largest number of samples to compare.
COMPARED = 16


def outputs(model: Any, feeds: Iterable[Mapping[str, Any]]) -> Iterator[F64]:
    """Yield a model's first output for each sample, float64; the states of a stateful model are reset each time.

    Raises:
        UnsupportedModelError: the model does not compile, or cannot compute a sample.
    """
    try:
        compiled = core().compile_model(model, "CPU", EXACT)
        for feed in feeds:
            request = compiled.create_infer_request()
            yield np.array(request.infer(dict(feed))[0], np.float64)
    except RuntimeError as error:
        refuse_shortage(error, "running the model on a sample with OpenVINO")
        raise UnsupportedModelError(
            f"OpenVINO cannot run the model on a sample ({last_line(error)}); "
            "check that the samples are what the model takes"
        ) from error


def compare(before: Any, after: Any, feeds: Sequence[Feed]) -> dict[str, float]:
    """Return `edgekit.evaluation.outputs.difference` of two models' first outputs on at most `COMPARED` samples."""
    chosen = feeds[:COMPARED]
    return difference(list(outputs(before, chosen)), list(outputs(after, chosen)))


__all__ = ["COMPARED", "EXACT", "compare", "outputs"]
