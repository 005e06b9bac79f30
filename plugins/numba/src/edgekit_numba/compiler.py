"""Compiles vector code to functions for this processor with LLVM, once; the machine code is cached.

The compiler is llvmlite, which numba is built on; numba itself would take a second to import and adds nothing that
vector code needs. ``NUMBA_CPU_NAME`` and ``NUMBA_CPU_FEATURES`` choose another processor, as they do for numba.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import attrs

from edgekit.errors import MissingPluginError
from edgekit.files.memory import refuse_shortage

Kernel = Callable[..., Any]

_LOG = logging.getLogger("edgekit.numba")
_LOCK = threading.RLock()
_SLOW = 1.0  # seconds of compiling after which it is logged
_FOLDER = Path(__file__).parent


@attrs.frozen
class Processor:
    """The processor for which code is compiled.

    Attributes:
        name: LLVM's name of the processor.
        features: LLVM's list, ``+avx2,-avx512f,...``.
        lanes: blocks that are processed together.
    """

    name: str
    features: str
    lanes: int

    @property
    def instruction_set(self) -> str:
        """The widest instruction set that kernels use."""
        narrow = "NEON" if platform.machine().lower() in ("aarch64", "arm64") else "SSE2"
        return {16: "AVX-512", 8: "AVX2", 4: narrow}[self.lanes]


@functools.cache
def llvm() -> Any:
    """Return llvmlite's binding, initialized.

    Raises:
        MissingPluginError: llvmlite cannot be imported; names the cure.
        MemoryShortageError: memory does not suffice for the import.
    """
    try:
        import llvmlite.binding as binding
    except (ImportError, OSError, MemoryError) as error:
        refuse_shortage(error, "importing llvmlite, with which edgekit-numba compiles its kernels,")
        raise MissingPluginError(
            f"edgekit-numba cannot compile its kernels: llvmlite does not import ({error}); "
            "reinstall it with: pip install --force-reinstall llvmlite"
        ) from error
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    return binding


@functools.cache
def processor() -> Processor:
    """Return the processor for which code is compiled."""
    name = os.environ.get("NUMBA_CPU_NAME") or llvm().get_host_cpu_name()
    features = os.environ.get("NUMBA_CPU_FEATURES")
    if features is None:
        features = "" if "NUMBA_CPU_NAME" in os.environ else llvm().get_host_cpu_features().flatten()
    return Processor(name, features, lanes(name, features))


def lanes(name: str, features: str) -> int:
    """Return the number of float32 values in a register of a processor."""
    listed = features.split(",")
    if {"+avx512f", "-avx512f"}.isdisjoint(listed) or {"+avx", "-avx"}.isdisjoint(listed):
        return _lanes_in_use(name, features)
    return 16 if "+avx512f" in listed else 8 if "+avx" in listed else 4


def _lanes_in_use(name: str, features: str) -> int:
    """Return that number as LLVM would choose it, which takes 15 MB of memory."""
    machine = target_machine(name, features)
    probe = "define <16 x float> @f(<16 x float> %a) { %b = fadd <16 x float> %a, %a ret <16 x float> %b }"
    assembly = machine.emit_assembly(llvm().parse_assembly(_wide(probe)))
    return 16 if "zmm" in assembly else 8 if "ymm" in assembly else 4


def target_machine(name: str, features: str) -> Any:
    """Return LLVM's code generator for a processor."""
    target = llvm().Target.from_default_triple()
    return target.create_target_machine(cpu=name, features=features, opt=2, reloc="pic", codemodel="jitdefault")


def _wide(assembly: str) -> str:
    """Use registers of 512 bits if there are any; LLVM avoids them on some processors."""
    head, brace, body = assembly.partition("{")
    return f'{head}"min-legal-vector-width"="512" "prefer-vector-width"="512" {brace}{body}'


def optimized(text: str, machine: Any) -> Any:
    """Parse and optimize a module; without fast-math, results do not change."""
    module = llvm().parse_assembly(text)
    module.verify()
    options = llvm().create_pipeline_tuning_options(speed_level=2)
    options.loop_vectorization = options.slp_vectorization = options.loop_unrolling = False
    llvm().create_pass_builder(machine, options).getModulePassManager().run(
        module, llvm().create_pass_builder(machine, options)
    )
    return module


def assembly(emit: Callable[[int], str], target: Processor | None = None) -> str:
    """Return the assembly of a kernel, for inspection."""
    target = target or processor()
    machine = target_machine(target.name, target.features)
    return str(machine.emit_assembly(optimized(emit(target.lanes), machine)))


@functools.cache
def _engine() -> Any:
    target = processor()
    machine = target_machine(target.name, target.features)
    return llvm().create_mcjit_compiler(llvm().parse_assembly(""), machine)


def compiled(name: str, emit: Callable[[int], str], arguments: tuple[Any, ...]) -> Kernel:
    """Return the function `name` of the module that `emit` writes for a number of lanes; a call releases the GIL."""
    with _LOCK:
        engine = _engine()
        engine.add_object_file(llvm().ObjectFileRef.from_data(_object(name, emit)))
        engine.finalize_object()
        return ctypes.CFUNCTYPE(None, *arguments)(engine.get_function_address(name))


def _object(name: str, emit: Callable[[int], str]) -> bytes:
    path = cache() / f"{name}.o"
    with suppress(OSError):
        data = path.read_bytes()
        if hashlib.sha256(data[32:]).digest() == data[:32]:
            return data[32:]
    data = _compile(name, emit)
    _keep(path, hashlib.sha256(data).digest() + data)
    return data


def _compile(name: str, emit: Callable[[int], str]) -> bytes:
    start, target = time.perf_counter(), processor()
    machine = target_machine(target.name, target.features)
    data: bytes = machine.emit_object(optimized(emit(target.lanes), machine))
    seconds = time.perf_counter() - start
    if seconds > _SLOW:
        _LOG.warning("compiled %s for %s in %.1f s, once", name, target.name, seconds)
    return data


def _keep(file: Path, data: bytes) -> None:
    """Write a file atomically; if that is impossible, the next process compiles again."""
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=file.parent)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
            os.replace(temporary, file)
        except OSError:
            os.unlink(temporary)
            raise


@functools.cache
def cache() -> Path:
    """Return the cache directory of machine code, one for each plugin version, compiler and processor."""
    root = os.environ.get("EDGEKIT_NUMBA_CACHE")
    base = Path(root) if root else _user_cache() / "edgekit" / "numba"
    target = processor()
    compiler = f"{metadata.version('llvmlite')} {llvm().llvm_version_info}"
    key = f"{_source_hash()} {compiler} {target.name} {target.features} {target.lanes} {sys.platform}"
    return base / f"{target.name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def _user_cache() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _source_hash() -> str:
    """Return a hash of the plugin's code, so that a changed installation does not use old kernels."""
    files = sorted(_FOLDER.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


__all__ = [
    "Kernel",
    "Processor",
    "assembly",
    "cache",
    "compiled",
    "lanes",
    "llvm",
    "optimized",
    "processor",
    "target_machine",
]
