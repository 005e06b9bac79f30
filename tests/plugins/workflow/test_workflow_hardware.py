"""What this machine has, and what profiles may say."""

from __future__ import annotations

import os

import pytest

from edgekit.errors import InvalidFileError, UsageError
from edgekit_workflow import hardware
from edgekit_workflow.hardware import Device, device_of, machine_of, this_machine

PROFILE = """
processor = "Test"
vendor = "arm"
architecture = "arm64"
instructions = ["asimd", "asimddp"]
cores = 4
threads = 4
memory = "8GiB"
bandwidth = "17GB"
system = "linux"
[caches]
L2 = "2MiB"
[[devices]]
kind = "gpu"
vendor = "nvidia"
name = "Small"
"""


def test_this_machine():
    machine = this_machine(bandwidth=False)
    assert machine.processor
    assert 1 <= machine.cores <= machine.threads <= (os.cpu_count() or 1)
    assert machine.memory > 1 << 28
    assert machine.disk > 0
    assert machine.system in ("linux", "macos", "windows")
    assert machine.bandwidth is None
    assert set(machine.instructions) <= set(hardware.INSTRUCTIONS)


def test_the_bandwidth_is_of_the_right_order():
    assert 1e9 < this_machine().bandwidth < 2e12  # from a board's to that of a server with many channels


def test_a_profile_is_read():
    machine = machine_of(PROFILE, "test", "test.toml")
    assert machine.memory == 8 << 30
    assert machine.bandwidth == 17e9
    assert machine.caches == {"L2": 2 << 20}
    assert machine.devices == (Device("gpu", "nvidia", "Small"),)
    assert machine.vendors == {"arm", "nvidia"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("cores = 4", "cors = 4", "unknown cors"),
        ("cores = 4", "cores = 0", "at least 1"),
        ("cores = 4", "", "it lacks cores"),
        ('"gpu"', '"tpu"', "a device of kind 'tpu'; choose gpu or npu"),
        ('memory = "8GiB"', 'memory = "8 parsecs"', "size '8 parsecs'"),
        ('"Test"', "Test", "not a device profile"),
    ],
)
def test_a_wrong_profile_is_refused(old, new, message):
    with pytest.raises((InvalidFileError, UsageError), match=message):
        machine_of(PROFILE.replace(old, new, 1), "test", "test.toml")


@pytest.mark.parametrize(
    ("line", "device"),
    [
        ("CUDA0: NVIDIA L4, 22.0 GB", Device("gpu", "nvidia", "NVIDIA L4, 22.0 GB")),
        ("GPU: Intel(R) Arc(TM) Graphics", Device("gpu", "intel", "Intel(R) Arc(TM) Graphics")),
        ("NPU: Intel(R) AI Boost", Device("npu", "intel", "Intel(R) AI Boost")),
        ("gpu (Apple M4)", Device("gpu", "apple", "gpu (Apple M4)")),
        ("CPU: AMD EPYC", None),
        ("CPUExecutionProvider: ONNX Runtime 1.32.0", None),
        ("AVX-512, znver4: 67 of 67 kernels compiled", None),
    ],
)
def test_devices_of_plugins_are_understood(line, device):
    assert device_of(line) == device
