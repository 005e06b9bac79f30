"""Recipes on families whose layers are not all alike: whole files, byte for byte as ``llama_model_quantize`` writes them.

A family's tests (`families/NAME.py`) have a configuration ``QUANTIZED``, wide enough for every block.
"""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path

import encoders
import family_oracles as oracles
import llama_cpp
import pytest
import transformers

import edgekit
from edgekit_gguf.types import FILE_TYPES

RECIPES = ("Q8_0", "Q4_0", "Q2_K", "Q3_K_M", "Q4_K_M")


def quantized_configurations():
    """By family."""
    found = {}
    for path in sorted(Path(__file__).with_name("families").glob("*.py")):
        spec = importlib.util.spec_from_file_location(f"recipes_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if hasattr(module, "QUANTIZED"):
            found[path.stem] = module.QUANTIZED
    return found


CONFIGURATIONS = quantized_configurations() | encoders.QUANTIZED


@pytest.fixture(scope="module")
def quiet():
    callback = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    yield
    llama_cpp.llama_log_set(llama_cpp.llama_log_callback(0), ctypes.c_void_p(0))


def llama_quantize(source: Path, target: Path, recipe: str) -> bytes:
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = FILE_TYPES[recipe], 1
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(parameters)) == 0
    return target.read_bytes()


@pytest.mark.parametrize("family", CONFIGURATIONS)
def test_whole_files_are_llama_cpps(family, quiet, tmp_path):
    kind = transformers.AutoModel if family in encoders.QUANTIZED else transformers.AutoModelForCausalLM
    oracles.saved_model(CONFIGURATIONS[family], tmp_path / "hf", kind=kind)
    source = edgekit.convert(tmp_path / "hf", tmp_path / "source.gguf", dtype="F32")
    for recipe in RECIPES:
        theirs = llama_quantize(source.path, tmp_path / "theirs.gguf", recipe)
        edgekit.quantize(source, recipe, to=tmp_path / f"{recipe}.gguf")
        assert (tmp_path / f"{recipe}.gguf").read_bytes() == theirs, recipe
