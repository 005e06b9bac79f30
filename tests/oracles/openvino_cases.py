"""What the tests of the OpenVINO plugin share: small models, and a step of a compiled graph."""

import importlib.util
import os
import sys
from pathlib import Path

os.environ["NNCF_CI"] = "1"  # no telemetry

import attrs
import numpy as np

import edgekit
from edgekit.architectures import Model
from edgekit.architectures.hf import config_from_hf
from edgekit.testing.models import artifact_of, random_model

_SPEC = importlib.util.spec_from_file_location(
    "make_forward_vectors", Path(__file__).with_name("make_forward_vectors.py")
)
vectors = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = vectors
_SPEC.loader.exec_module(vectors)

TOKENS = np.array(vectors.TOKENS)
#: FORMATS: what makes the CPU plugin compute in float32 throughout.
EXACT = {
    "INFERENCE_PRECISION_HINT": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    "KV_CACHE_PRECISION": "f32",
    "INFERENCE_NUM_THREADS": "1",
}


def model_of(name: str, **changes) -> Model:
    """A small random model of one of the configurations that the forward pass is proved on."""
    config = config_from_hf(vectors.CONFIGS[name], "test")
    return random_model(attrs.evolve(config, **changes))


def written(model: Model, folder: Path, name: str = "model", precision: str | None = None, **options):
    """The model as an IR; its source stands in memory."""
    source = artifact_of(model, folder / "source")
    target = folder / name
    if precision is None:
        return edgekit.convert(source, target, format="openvino")
    return edgekit.quantize(source, precision, to=target, format="openvino", **options)


class Compiled:
    """A compiled graph that is fed by hand."""

    def __init__(self, xml: Path, options=None) -> None:
        import openvino

        self.request = openvino.compile_model(xml, "CPU", EXACT if options is None else options).create_infer_request()

    def __call__(self, ids, mask=None, positions=None):
        """Logits [batch, n, vocab] of ids [batch, n] after `start` tokens; mask [batch, m] covers all of them."""
        mask = np.ones(ids.shape, np.int64) if mask is None else mask
        if positions is None:
            positions = np.maximum(mask.cumsum(1) - 1, 0)[:, -ids.shape[1] :]
        inputs = {
            "input_ids": ids.astype(np.int64),
            "attention_mask": mask,
            "position_ids": positions,
            "beam_idx": np.arange(len(ids), dtype=np.int32),
        }
        return self.request.infer(inputs)["logits"].copy()


def relative(a, b):
    """Largest difference over the largest magnitude."""
    assert a.shape == b.shape
    return np.abs(a - b).max() / np.abs(b).max()
