"""A few hundred damaged models; `python tests/contracts/fuzz.py` tries as many as there is time for."""

import importlib.util
import sys
from pathlib import Path

import pytest

pytest.importorskip("tokenizers", reason="text is cut with it; pip install 'edgekit-core[text]'")

_SPEC = importlib.util.spec_from_file_location("fuzz", Path(__file__).with_name("fuzz.py"))
fuzz = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = fuzz
_SPEC.loader.exec_module(fuzz)

MODELS = 200


def test_damaged_models_give_a_result_or_a_typed_error(tmp_path):
    count, seen, wrong = fuzz.fuzz(tmp_path, 2026, lambda count: count < MODELS)
    assert not wrong, "\n\n".join(wrong)
    assert count == MODELS
    # Damage that everything survived, or that nothing did, would show nothing.
    assert MODELS / 2 < seen.total() < 7 * MODELS
    assert {"InvalidFileError", "UnsupportedModelError", "NonFiniteError"} <= set(seen)
