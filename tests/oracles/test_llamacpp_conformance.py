"""The conformance kit on all that edgekit-llamacpp brings: ggml's encoders, the runtime, and the plugin as a whole."""

from functools import partial

import pytest

from edgekit.plugin import manager
from edgekit.testing import plugin_checks, run_quantizer_checks, runtime_checks
from edgekit_llamacpp import KINDS
from edgekit_llamacpp.runtime import open_runtime

pytest.importorskip("llama_cpp")


@pytest.mark.parametrize("kind", KINDS)
def test_every_encoder_conforms(kind):
    (own,) = [r for r in manager().all("quantizers") if (r.plugin, r.name) == ("llamacpp", f"ggml:{kind}")]
    results = run_quantizer_checks(own, profile="quick")
    assert [result.message for result in results if not result.ok] == []
    assert sum(result.status == "passed" for result in results) >= 10


@runtime_checks("llamacpp", profile="quick")
def test_the_runtime_conforms(check):
    check()


@runtime_checks(
    partial(open_runtime, cache="F32"), formats=("gguf",), tolerance=1e-4, checks=["check_logits"], profile="quick"
)
def test_with_keys_and_values_in_float32_the_logits_are_edgekit_s(check):
    """Measured: 6.5e-6 standard deviations."""
    check()


@plugin_checks("llamacpp", profile="quick")
def test_the_plugin_conforms(check):
    check()
