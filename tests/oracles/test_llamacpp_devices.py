"""Devices, how many layers go to them, and llama.cpp's log: with ggml's own C functions."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

import edgekit as ek
from edgekit import sample
from edgekit.errors import UsageError

pytest.importorskip("llama_cpp", reason="the C functions are llama-cpp-python's")

from edgekit_llamacpp import devices as dev
from edgekit_llamacpp.devices import MARGIN, Device, Weight, accelerators, fitting_layers
from edgekit_llamacpp.library import llama


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    path = tmp_path_factory.mktemp("devices") / "sample.gguf"
    return ek.quantize(sample.path(), "Q8_0", to=path)


def gpu(number, free, total=80 << 30, kind="gpu"):
    return Device(f"CUDA{number}", "a card", kind, free, total)


CPU = Device("CPU", "a processor", "cpu", 1 << 40, 1 << 40)


def test_the_library_lists_its_devices():
    found = dev.list_devices()
    (cpu,) = (device for device in found if device.kind == "cpu")
    assert cpu.name == "CPU"
    assert cpu.description
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < cpu.total <= pages
    assert bool(accelerators(found)) <= llama().llama_supports_gpu_offload()


def test_doctor_names_every_device_and_what_auto_means():
    first, *others, last = dev.devices()
    assert first.startswith("CPU: llama-cpp-python ")
    assert first.endswith(" GB")
    there = [device for device in dev.list_devices() if device.kind != "cpu"]
    assert others == [str(device) for device in there]
    assert last.startswith("acceleration: ")
    assert "gpu_layers=auto" in last


def test_a_device_shows_its_memory():
    assert str(gpu(0, 79_000_000_000, 85_000_000_000)) == "CUDA0: a card, 79.0 of 85.0 GB free"
    assert str(Device("BLAS", "OpenBLAS", "accel", 0, 0)) == "BLAS: OpenBLAS"


@pytest.mark.parametrize(
    ("there", "used"),
    [
        ([CPU], []),
        ([gpu(0, 1), CPU], ["CUDA0"]),
        ([gpu(0, 1), gpu(1, 1), gpu(2, 1, kind="igpu"), CPU], ["CUDA0", "CUDA1"]),
        ([gpu(0, 1, kind="igpu"), gpu(1, 1, kind="igpu"), CPU], ["CUDA0"]),
        ([gpu(0, 0, kind="accel"), CPU], []),
    ],
)
def test_layers_go_where_llama_cpp_puts_them(there, used):
    assert [device.name for device in accelerators(there)] == used


#: Four layers of 100, 200, 300 and 400 bytes, the last first to move, and an output of 50.
WEIGHT = Weight((100, 200, 300, 400), 50)
FITTING = {
    "no device": ([], 0),
    "nothing is free": ([gpu(0, 0)], 0),
    "the margin is not touched": ([gpu(0, MARGIN)], 0),
    "the output fits alone": ([gpu(0, MARGIN + 449)], 0),
    "the last layer": ([gpu(0, MARGIN + 450)], 1),
    "not quite two": ([gpu(0, MARGIN + 749)], 1),
    "two": ([gpu(0, MARGIN + 750)], 2),
    "all but the first": ([gpu(0, MARGIN + 1049)], 3),
    "everything, with the output": ([gpu(0, MARGIN + 1050)], 5),
    "two devices share": ([gpu(0, MARGIN + 450), gpu(1, MARGIN + 300)], 2),
    "a full device takes nothing from the other": ([gpu(0, 10), gpu(1, MARGIN + 450)], 1),
    "a device that does not say": ([gpu(0, 0, 0)], 5),
}


@pytest.mark.parametrize("what", FITTING)
def test_what_fits_is_moved(what):
    there, count = FITTING[what]
    assert fitting_layers(there, WEIGHT) == count


def test_a_model_weighs_its_tensors_its_cache_and_its_logits(gguf):
    weight, config = Weight.of(gguf, 100, 2.0), gguf.model.config
    blocks = sum(tensor.nbytes for name, tensor in gguf.tensors.items() if name.startswith("blk."))
    cache = 2 * config.kv_heads * config.head_dim * 100 * 2
    assert len(weight.layers) == config.layers
    assert sum(weight.layers) == blocks + cache * config.layers
    embeddings = gguf.tensors["token_embd.weight"].nbytes
    others = sum(t.nbytes for name, t in gguf.tensors.items() if not name.startswith(("blk.", "token_embd")))
    tied = 0 if "output.weight" in gguf.tensors else embeddings
    assert weight.output == others + tied + 4 * 512 * config.vocab


@pytest.mark.parametrize("isolate", [False, True])
def test_what_was_chosen_is_told(gguf, isolate):
    if llama().llama_supports_gpu_offload():
        pytest.skip("this build has an accelerator; without one auto is 0")
    with ek.load(gguf, "llamacpp", context=128, threads=1, isolate=isolate) as model:
        assert model.description() == {
            "device": "CPU",
            "gpu_layers": 0,
            "layers": gguf.model.config.layers,
            "output_on_gpu": False,
            "context": 128,
            "sequences": 1,
            "threads": 1,
        }


@pytest.mark.parametrize("value", ["all", -2, 1.5])
def test_gpu_layers_that_are_no_number_are_refused(gguf, value):
    with pytest.raises(UsageError, match=r"^gpu_layers is .*; choose an integer of at least -1, or auto$"):
        ek.load(gguf, "llamacpp", gpu_layers=value)


LOG = """
    import ctypes, logging, sys
    import edgekit as ek
    from edgekit_llamacpp.devices import _libraries
    from edgekit_llamacpp.library import llama

    BEFORE
    said = []

    class Handler(logging.Handler):
        def emit(self, record):
            said.append((record.levelname, record.getMessage()))

    logging.getLogger("edgekit_llamacpp.native").addHandler(Handler())
    logging.getLogger("edgekit_llamacpp.native").setLevel(logging.DEBUG)
    with ek.load(sys.argv[1], "llamacpp", context=64) as model:
        for number, piece in enumerate(model.stream("Once upon a time", max_tokens=3)):
            log = next(l for l in _libraries() if hasattr(l, "ggml_log_internal")).ggml_log_internal
            log(ctypes.c_int(2), b"CUDA Graph id %d reused\\n", ctypes.c_int(number))
    print(said)
"""


def logged(gguf, before="", **environment):
    script = textwrap.dedent(LOG).replace("BEFORE", before)
    command = [sys.executable, "-c", script, str(gguf.path)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=True)
    return done.stdout.strip(), done.stderr


def test_nothing_of_the_log_is_shown_while_text_is_generated(gguf):
    said, shown = logged(gguf)
    assert shown == ""
    assert "('INFO', 'CUDA Graph id 0 reused')" in said


def test_the_log_is_shown_when_it_is_asked_for(gguf):
    said, shown = logged(gguf, EDGEKIT_LLAMACPP_LOG="1")
    assert "CUDA Graph id 0 reused\n" in shown
    assert said == "[]"


def test_a_listener_of_somebody_else_stays(gguf):
    before = (
        "import llama_cpp; heard = []; keep = llama_cpp.llama_log_callback(lambda level, text, _: heard.append(text)); "
        "llama_cpp.llama_log_set(keep, ctypes.c_void_p(0)); import atexit; atexit.register(lambda: print(heard[-1]))"
    )
    said, shown = logged(gguf, before)
    assert shown == ""
    assert said.splitlines()[0] == "[]"
    assert b"CUDA Graph id".decode() in said
