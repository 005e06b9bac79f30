"""Fitted files in the runtimes that they are for."""

from __future__ import annotations

import numpy as np
import pytest

import edgekit
from edgekit import sample
from edgekit.architectures.forward import Transformer
from edgekit.pipeline import find_format, find_recipe, make_plan

#: Some precisions of each format, from small to large.
ALLOWED = {
    "gguf": ("Q2_K", "IQ4_XS", "Q6_K"),
    "openvino": ("int2-sym-g32", "int4-asym-g32", "int8-asym-channel"),
}


@pytest.fixture(scope="module")
def source():
    return edgekit.open(sample.path())


@pytest.fixture(scope="module", params=["gguf", "openvino"])
def fitted(request, source, tmp_path_factory):
    to = tmp_path_factory.mktemp("fit") / ("model.gguf" if request.param == "gguf" else "model")
    text = sample.heldout_text()[:4000]
    allow = ALLOWED[request.param]
    return edgekit.fit(source, text, to=to, format=request.param, bits=4.2, context=128, allow=allow)


def test_it_has_the_size(fitted):
    assert 0.995 * fitted.budget <= fitted.nbytes <= fitted.budget
    assert len(set(fitted.precisions.values())) > 1


def test_its_runtime_loads_it_and_computes_the_same(fitted):
    tokens = np.array(fitted.artifact.tokenizer.encode(sample.heldout_text()[4000:4200]))
    expected = Transformer(fitted.artifact.model).logits(tokens)[-1]
    runtime = "llamacpp" if fitted.artifact.format == "gguf" else "openvino"
    options = {} if runtime == "llamacpp" else {"exact": True}
    with edgekit.load(fitted.artifact, runtime, **options) as model:
        logits = np.asarray(model.logits(tokens))
    # llama.cpp rounds activations to 8 bits, as for every other file of such types.
    tolerance = 0.1 if runtime == "llamacpp" else 1e-3
    assert np.abs(logits.reshape(-1, len(expected))[-1] - expected).max() <= tolerance * expected.std()


@pytest.mark.parametrize("name", ["INT4_ASYM_G64", "INT3_SYM_G64"])
def test_the_size_of_an_ir_is_known_before_it_is_written(source, tmp_path, name):
    form = find_format("openvino", tmp_path)
    layout = form.layout(source)
    plan = make_plan(find_recipe(name, "openvino"), layout)
    written = edgekit.quantize(source, name, to=tmp_path / "model", format="openvino", allow_unquantized=True)
    assert form.sizes(layout).whole(plan) == written.nbytes
