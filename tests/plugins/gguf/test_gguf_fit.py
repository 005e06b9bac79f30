"""Fitted GGUF files: sizes known before they are written, and candidates that suit the rows."""

from __future__ import annotations

import numpy as np
import pytest

import edgekit
from edgekit import sample
from edgekit.artifact import Artifact
from edgekit.errors import UsageError
from edgekit.pipeline import find_format, find_recipe, make_plan
from edgekit.testing.models import artifact_of, random_model, small_llama
from edgekit_gguf import RECIPES

ENCODED = [name for name in RECIPES if name != "MXFP4_MOE"]


@pytest.fixture
def narrow(tmp_path) -> Artifact:
    """A model whose rows of 64 and 96 no K-quant divides."""
    config = small_llama(tie_word_embeddings=True)
    (tmp_path / "model.bin").write_bytes(b"weights")
    return artifact_of(random_model(config), tmp_path / "model.bin")


@pytest.mark.parametrize("name", ENCODED)
def test_the_size_of_a_file_is_known_before_it_is_written(tmp_path, name):
    source, form = edgekit.open(sample.path()), find_format("gguf", tmp_path)
    layout = form.layout(source)
    plan = make_plan(find_recipe(name, "gguf"), layout)
    written = edgekit.quantize(source, name, to=tmp_path / "model.gguf", allow_unquantized=True)
    assert form.sizes(layout).whole(plan) == written.nbytes


def test_candidates_fit_the_rows(narrow, tmp_path):
    form = find_format("gguf", tmp_path)
    kinds = {}
    for source in (narrow, edgekit.open(sample.path())):
        sizes = form.sizes(form.layout(source))
        for slot in form.layout(source).slots:
            if len(slot.shape) == 2:
                found = sizes.candidates(slot)
                assert all(sizes.stored(slot, precision) is not None for precision in found)
                kinds[source.path, slot.shape[-1]] = {precision.kind for precision in found}
    assert kinds[narrow.path, 64] == {"Q2_0", "Q4_0", "IQ4_NL", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16"}
    assert kinds[narrow.path, 96] == kinds[narrow.path, 64] - {"Q2_0"}
    assert kinds[sample.path(), 256] == {"Q2_K", "Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "F16"}


def test_a_model_with_narrow_rows_is_fitted(narrow, tmp_path):
    tokens = np.random.RandomState(3).randint(0, 50, 600)
    fitted = edgekit.fit(narrow, tokens, to=tmp_path / "model.gguf", bits=6, context=32)
    assert 0.995 * fitted.budget <= (tmp_path / "model.gguf").stat().st_size <= fitted.budget
    again = edgekit.quantize(narrow, fitted.recipe, to=tmp_path / "again.gguf", calibration=fitted.calibration)
    assert again.path.read_bytes() == fitted.artifact.path.read_bytes()


def test_a_file_that_is_quantized_already_may_keep_its_types(narrow, tmp_path):
    tokens = np.random.RandomState(3).randint(0, 50, 600)
    source = edgekit.quantize(narrow, "Q8_0", to=tmp_path / "source.gguf")
    fitted = edgekit.fit(source, tokens, to=tmp_path / "model.gguf", like="Q8_0", context=32)
    assert {precision.name for precision in fitted.precisions.values()} == {"ggml:Q8_0"}
    assert fitted.divergence.kl == 0
    assert fitted.nbytes == source.nbytes


def test_what_gguf_cannot_store(narrow, tmp_path):
    with pytest.raises(UsageError, match="affine:int4-sym-g32 cannot be stored in gguf for any matrix"):
        edgekit.fit(narrow, "", to=tmp_path / "model.gguf", bits=4, allow=["affine:int4-sym-g32", "Q4_0"])
    with pytest.raises(UsageError, match=r"has rows of 96, which none of the allowed precisions \(ggml:NVFP4\)"):
        edgekit.fit(narrow, "", to=tmp_path / "model.gguf", bits=4, allow=["NVFP4"])
