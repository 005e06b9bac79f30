"""The conformance kit on the format and the whole of edgekit-openvino, and on encoders of every kind that NNCF has."""

import pytest

from edgekit.plugin import manager
from edgekit.testing import plugin_checks, run_format_checks, run_quantizer_checks

pytest.importorskip("nncf")

#: One of each formula; `test_openvino_native` compares the bytes of all.
KINDS = (
    "int8-sym-channel", "int8-asym-channel", "int4-sym-g64", "int4-asym-g16", "int3-sym-g64", "int2-sym-g32", "nf4-g64",
    "cb4-g64", "fp4-g64", "fp8-g64", "mxfp4", "mxfp8", "nvfp4",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_encoder_conforms(kind):
    (own,) = [r for r in manager().all("quantizers") if (r.plugin, r.name) == ("openvino", f"openvino:{kind}")]
    assert [result.message for result in run_quantizer_checks(own, profile="quick") if not result.ok] == []


def test_the_format_conforms():
    assert [result.message for result in run_format_checks("openvino", profile="quick") if not result.ok] == []


@plugin_checks("openvino", profile="quick")
def test_the_plugin_conforms(check):
    check()
