"""Names of precisions: parsed from and printed as the same string."""

import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgekit
from edgekit import sample
from edgekit.errors import UnknownPrecisionError, UnknownRecipeError
from edgekit.precision import Tier, catalogue, find_precision


@pytest.mark.parametrize("precision", catalogue(), ids=str)
def test_every_precision_is_found_under_its_name(precision):
    assert find_precision(str(precision)) == precision
    assert find_precision(precision) is precision


@given(st.integers(1, 8), st.booleans(), st.sampled_from(["channel", "tensor"]) | st.integers(1, 4096))
def test_affine_names_round_trip(bits, symmetric, where):
    name = f"affine:int{bits}-{'sym' if symmetric else 'asym'}-{where if isinstance(where, str) else f'g{where}'}"
    precision = find_precision(name)
    assert precision.name == name
    assert precision.bits == bits
    assert precision.symmetric is symmetric


@pytest.mark.parametrize(
    ("name", "bits_per_weight", "tier"),
    [
        ("Q4_0", Fraction(9, 2), Tier.LOW),
        ("Q5_1", Fraction(6), Tier.MEDIUM),
        ("Q8_0", Fraction(17, 2), Tier.MEDIUM),
        ("ggml:Q4_K", Fraction(9, 2), Tier.LOW),
        ("ggml:Q6_K", Fraction(105, 16), Tier.MEDIUM),
        ("Q2_K", Fraction(21, 8), Tier.ULTRA_LOW),
        ("F16", Fraction(16), Tier.FULL),
        ("affine:int3-asym-g32", Fraction(3) + Fraction(40, 32), Tier.LOW),
        ("affine:int1-sym-tensor", Fraction(1), Tier.ULTRA_LOW),
    ],
)
def test_costs(name, bits_per_weight, tier):
    precision = find_precision(name)
    assert precision.bits_per_weight == bits_per_weight
    assert precision.tier is tier


@pytest.mark.parametrize("precision", [p for p in catalogue() if p.convention == "ggml"], ids=str)
def test_a_bare_ggml_name_is_enough(precision):
    assert find_precision(precision.kind) == precision


@pytest.mark.parametrize(
    "name",
    [
        "",
        "Q4",
        "ggml:Q4_K-g32",
        "affine:int9-sym-g32",
        "affine:int4",
        "affine:int4-sym",
        "nope:int4",
        "affine:int4-sym-g0",
        ":",
        "a:b:c",
    ],
)
def test_unknown_names_are_refused(name):
    with pytest.raises(UnknownPrecisionError, match="precision"):
        find_precision(name)


@pytest.mark.parametrize("name", [None, 4, b"ggml:Q4_K"])
def test_what_is_no_name_is_refused(name):
    message = f"a precision is a Precision or its name, such as 'ggml:Q4_K'; not {name!r}"
    with pytest.raises(UnknownPrecisionError, match=f"^{re.escape(message)}$"):
        find_precision(name)


def test_a_near_miss_is_told():
    with pytest.raises(UnknownPrecisionError, match=r"unknown precision 'Q4K'; did you mean .*ggml:Q4_K"):
        find_precision("Q4K")


def test_an_ambiguous_name_lists_the_candidates():
    with pytest.raises(UnknownPrecisionError, match=r"ambiguous: choose one of .*affine:int4-sym-g32"):
        find_precision("int4-sym-g32")


@pytest.fixture
def plugin_precision(monkeypatch):
    """A plugin that brings a precision, registered and not yet loaded."""
    import sys
    import types

    import attrs

    from edgekit.plugin import Manager, Registration
    from edgekit.precision import _registry, find_precision
    from edgekit.reference import reference

    holder = types.ModuleType("edgekit_test_precision")
    record = attrs.evolve(find_precision("float:F32"), convention="mine", kind="P1", name="mine:P1")
    plain = reference(find_precision("float:F32"))
    methods = {name: staticmethod(getattr(plain, name)) for name in ("encode", "decode", "bound")}
    holder.P1 = type("P1", (), {"precision": record, "traits": plain.traits, **methods})
    monkeypatch.setitem(sys.modules, holder.__name__, holder)
    monkeypatch.setattr(_registry, "_REGISTERED", {})
    monkeypatch.setattr(_registry, "_IMPLEMENTATIONS", {})
    found = [
        Registration("precisions", "mine:broken", "edgekit_test_precision:Nothing", "p", "edgekit-p"),
        Registration("precisions", "mine:other", "edgekit_test_precision:P1", "p", "edgekit-p"),
        Registration("precisions", "mine:P1", "edgekit_test_precision:P1", "p", "edgekit-p"),
    ]
    monkeypatch.setattr("edgekit.plugin._registry.manager", lambda: Manager(registrations=found))
    return record


@pytest.mark.parametrize("name", ["mine:P1", "P1"])
def test_a_plugin_s_precision_is_found_by_its_name(plugin_precision, name, caplog):
    assert find_precision(name) == plugin_precision
    said = caplog.text  # what does not load, or has another name, keeps nobody from using the rest
    assert not said or "p is skipped: precision 'mine:broken' of edgekit-p cannot be loaded" in said


def test_a_name_near_a_plugin_s_precision_is_told(plugin_precision):
    with pytest.raises(UnknownPrecisionError, match=r"unknown precision 'mine:P2'; did you mean mine:P1\?"):
        find_precision("mine:P2")


@pytest.mark.parametrize("name", ["onnx:int3-sym-g32", "onnx:int4-sym-g8", "onnx:int2-asym-g512"])
def test_what_the_cpu_provider_refuses_is_said_with_what_it_takes(name, tmp_path):
    message = (
        r"MatMulNBits takes 2, 4 or 8 bits in blocks of 16, 32, 64, 128, 256, and 4 or 8 bits in blocks of 512; did you"
    )
    with pytest.raises(UnknownPrecisionError, match=message):
        find_precision(name)
    with pytest.raises(UnknownRecipeError, match=message.partition(";")[0]):
        edgekit.quantize(sample.path(), name, to=tmp_path / "never", format="hf")
    assert not (tmp_path / "never").exists()
