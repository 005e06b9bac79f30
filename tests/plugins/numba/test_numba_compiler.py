"""How kernels come to be: compiled once, kept, for the processor asked for; and what happens where they cannot."""

import importlib
import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from click.testing import CliRunner

from edgekit import sample
from edgekit.errors import MissingPluginError
from edgekit_numba import compiler, encoders, library, warm

CONTRACTED = re.compile(r"^\s+v?fn?m(add|sub|la|ls)", re.MULTILINE)
SKIPPED = (
    "numba is skipped: edgekit-numba cannot compile its kernels: llvmlite does not import "
    "(libLLVM is missing); reinstall it with: pip install --force-reinstall llvmlite\n"
)
CHECK = """
import sys, numpy as np, edgekit
from edgekit.precision import Precision
x = np.random.default_rng(1).standard_t(3, (5, 1280)).astype(np.float32)
weights = np.random.default_rng(2).standard_normal(1280).astype(np.float32) ** 2
for kind in sys.argv[1].split(","):
    for importance in (None, weights):
        a, b = (edgekit.encode(x, "ggml:" + kind, importance=importance, backend=name) for name in (None, "reference"))
        assert (a.parts["blocks"] == b.parts["blocks"]).all(), kind
        print(kind, a.backend)
"""


def run(code, *arguments, path=None, **environment):
    environment = {**os.environ, **environment}
    if path:
        environment["PYTHONPATH"] = os.pathsep.join([str(path), environment.get("PYTHONPATH", "")])
    command = [sys.executable, *code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize(("name", "lanes"), [("haswell", 8), ("x86-64", 4), ("skylake-avx512", 16), ("znver4", 16)])
def test_lanes_follow_the_instruction_set(name, lanes):
    assert compiler.lanes(name, "") == lanes


def test_what_the_features_say_is_what_the_compiler_uses():
    host = (compiler.llvm().get_host_cpu_name(), compiler.llvm().get_host_cpu_features().flatten())
    for name, features in (
        host,
        ("x86-64", "+avx512f,+avx2,+avx"),
        ("x86-64", "+avx,-avx512f"),
        ("x86-64", "-avx,-avx512f"),
    ):
        assert compiler.lanes(name, features) == compiler._lanes_in_use(name, features)


@pytest.mark.parametrize("cpu", ["haswell", "x86-64"])
def test_other_instruction_sets_give_the_same_bytes(cpu):
    done = run(["-c", CHECK], "Q8_0,Q4_0,Q4_K", NUMBA_CPU_NAME=cpu)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [word for kind in ("Q8_0", "Q4_0", "Q4_K") for word in (kind, "numba") * 2]


@pytest.mark.parametrize("name", ["Q8_0", "Q4_K", "Q3_K", "Q4_1_weighted"])
def test_nothing_is_contracted(name):
    for target in (compiler.processor(), compiler.Processor("haswell", "", 8)):
        assembly = compiler.assembly(library.emitter(name), target)
        assert "mulps" in assembly
        assert not CONTRACTED.search(assembly)


@pytest.mark.parametrize("name", ["IQ1_S_weighted", "IQ1_M"])
def test_kernels_call_no_function(name):
    """Such as memcpy, which LLVM makes of loops: beside a second kernel, its address would be wrong."""
    assert "@GOT\n" not in (assembly := compiler.assembly(library.emitter(name)))
    assert "mem" not in assembly


def test_contraction_would_be_seen():
    machine = compiler.target_machine("haswell", "")
    text = "define float @f(float %a) { %b = fmul contract float %a, %a %c = fadd contract float %b, %a ret float %c }"
    assert CONTRACTED.search(machine.emit_assembly(compiler.optimized(text, machine)))


def test_machine_code_is_kept_and_damage_is_noticed():
    library.kernel("TQ2_0")
    kept = compiler.cache() / "TQ2_0.o"
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert compiler._object("TQ2_0", library.emitter("TQ2_0")) == whole[32:]
    assert kept.read_bytes() == whole

    def never(lanes):
        raise AssertionError("compiled again")

    assert compiler._object("TQ2_0", never) == whole[32:]


def test_a_cache_that_cannot_be_written_does_no_harm(tmp_path):
    (tmp_path / "file").write_text("")
    done = run(["-c", CHECK], "Q8_0", EDGEKIT_NUMBA_CACHE=str(tmp_path / "file"))
    assert done.returncode == 0, done.stderr


@pytest.fixture
def broken(tmp_path):
    """A folder whose llvmlite does not import."""
    (tmp_path / "llvmlite").mkdir()
    (tmp_path / "llvmlite" / "__init__.py").write_text("raise ImportError('libLLVM is missing')")
    return tmp_path


def test_without_the_compiler_the_reference_does_the_work_and_one_line_says_so(broken):
    done = run(["-c", CHECK], "Q8_0,Q4_0", path=broken, EDGEKIT_NO_PLUGINS="llamacpp")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [word for kind in ("Q8_0", "Q4_0") for word in (kind, "reference") * 2]
    assert done.stderr == SKIPPED  # Python's own handler of warnings that nobody else handles


def test_without_the_compiler_the_command_line_says_so_in_one_line(broken, tmp_path):
    command = [
        "-m",
        "edgekit",
        "quantize",
        str(sample.path()),
        "Q8_0",
        "--format",
        "hf",
        "--to",
        str(tmp_path / "made"),
    ]
    done = run(command, path=broken, EDGEKIT_NO_PLUGINS="llamacpp")
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines(True) if "skipped" in line] == [f"edgekit: {SKIPPED}"]


def test_without_the_compiler_the_doctor_says_so(broken):
    done = run(["-m", "edgekit", "doctor", "--json"], path=broken)
    assert done.returncode == 4
    assert any("llvmlite does not import" in problem for problem in json.loads(done.stdout)["problems"])


LIMIT = """
import numpy, edgekit, edgekit.encoding._codecs, resource
edgekit.plugins()
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (64 << 20),) * 2)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_where_memory_is_short_for_the_compiler_that_is_what_is_said():
    """LLVM's library takes more than 100 MB of address space."""
    done = run(["-c", LIMIT + CHECK], "Q8_0", EDGEKIT_NO_PLUGINS="llamacpp", OPENBLAS_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["Q8_0", "reference"] * 2
    (line,) = done.stderr.splitlines()
    needs = (
        "numba is skipped: importing llvmlite, with which edgekit-numba compiles its kernels, needs more memory than "
    )
    assert line.startswith(needs)
    assert "reinstall" not in line


def test_asked_for_by_name_it_is_an_error(broken):
    code = "import edgekit, numpy as np; edgekit.encode(np.ones((1, 32), np.float32), 'ggml:Q8_0', backend='numba')"
    done = run(["-c", code], path=broken)
    assert "MissingPluginError: edgekit-numba cannot compile its kernels" in done.stderr


def test_warm_compiles_what_it_is_asked_for_and_the_doctor_counts():
    done = CliRunner().invoke(warm.command, ["Q8_0", "TQ"])
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("6 kernels for ")
    kept = {file.stem for file in compiler.cache().glob("*.o")}
    assert kept >= {"Q8_0", "Q8_0_decode", "TQ1_0", "TQ1_0_decode", "TQ2_0", "TQ2_0_decode"}
    target, known = compiler.processor(), kept & set(library.MODULES)
    assert warm.devices()[0].startswith(
        f"{target.instruction_set}, {target.name}: {len(known)} of {len(library.MODULES)} kernels compiled"
    )


def test_threads_that_come_first_together_compile_once(monkeypatch):
    asked = []

    def slow(name, emit, arguments):
        asked.append(name)
        time.sleep(0.05)
        return len(asked)

    monkeypatch.setattr(library, "compiled", slow)
    monkeypatch.setattr(library, "_KERNELS", {})
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(library.kernel, ["Q4_0"] * 8)) == {1}
    assert asked == ["Q4_0"]


def test_every_kernel_is_listed():
    modules = {name: importlib.import_module(f"edgekit_numba.{name}") for name in set(library.MODULES.values())}
    written = {emitter.name: name for name, module in modules.items() for emitter in module.emitters()}
    assert written == library.MODULES


def test_on_a_processor_without_proof_it_stays_out_of_the_way(monkeypatch):
    monkeypatch.setattr(encoders.platform, "machine", lambda: "riscv64")
    monkeypatch.delenv("EDGEKIT_NUMBA_UNPROVED", raising=False)
    for asked in (encoders.require, lambda: encoders.Q8_0, warm.devices):
        with pytest.raises(MissingPluginError) as found:
            asked()
        assert str(found.value) == (
            "edgekit-numba's kernels are proved on x86-64 and ARM64 only, this is riscv64; "
            "EDGEKIT_NUMBA_UNPROVED=1 uses them all the same"
        )
    monkeypatch.setenv("EDGEKIT_NUMBA_UNPROVED", "1")
    encoders.require()


@pytest.mark.parametrize(
    ("machine", "lanes", "expected"),
    [
        ("aarch64", 4, "NEON"),
        ("arm64", 4, "NEON"),
        ("x86_64", 4, "SSE2"),
        ("AMD64", 8, "AVX2"),
        ("x86_64", 16, "AVX-512"),
    ],
)
def test_the_instruction_set_that_doctor_names(machine, lanes, expected, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert compiler.Processor("generic", "", lanes).instruction_set == expected
