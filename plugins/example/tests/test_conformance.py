"""The conformance kit holds every part of the plugin to its contract; these few lines are all that it takes."""

from __future__ import annotations

import edgekit.testing
from edgekit_example.format import EkxFormat
from edgekit_example.q8_0 import Q8_0
from edgekit_example.runtime import ExampleRuntime


@edgekit.testing.plugin_checks("example")
def test_plugin(check):
    check()


@edgekit.testing.quantizer_checks("example:log4-g32")
def test_precision(check):
    check()


@edgekit.testing.quantizer_checks(Q8_0())
def test_quantizer(check):
    check()


@edgekit.testing.format_checks(EkxFormat(), suffix=".ekx")
def test_format(check):
    check()


@edgekit.testing.runtime_checks(ExampleRuntime.open, formats=("*",), tolerance=0.0)
def test_runtime(check):
    check()
