"""The conformance kit on the format and the whole of edgekit-olive, and on encoders of every width."""

import pytest

from edgekit.plugin import manager
from edgekit.testing import plugin_checks, run_format_checks, run_quantizer_checks

KINDS = ("int2-sym-g32", "int2-asym-g16", "int4-sym-g32", "int4-asym-g128", "int8-sym-g256", "int8-asym-g64")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_encoder_conforms(kind):
    (own,) = [r for r in manager().all("quantizers") if (r.plugin, r.name) == ("olive", f"onnx:{kind}")]
    assert [result.message for result in run_quantizer_checks(own, profile="quick") if not result.ok] == []


@pytest.mark.parametrize("name", ["onnx", "onnx-portable"])
def test_the_formats_conform(name):
    assert [result.message for result in run_format_checks(name, profile="quick") if not result.ok] == []


@plugin_checks("olive", profile="quick")
def test_the_plugin_conforms(check):
    check()
