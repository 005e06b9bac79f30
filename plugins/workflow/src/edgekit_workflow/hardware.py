"""What a machine has that decides which model it runs, and how fast: this machine's, or a profile's.

A profile is a TOML file in ``profiles/``, named like ``raspberry-pi-5``: plans can be made for devices that are not at
hand. Sizes are in bytes, or a number with a unit (``"8GB"``, ``"8GiB"``); bandwidths are bytes a second.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import shutil
import time
import tomllib
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import attrs
import numpy as np

from edgekit.errors import EdgekitError, InvalidFileError, UsageError, near_names
from edgekit.files.sizes import parse_size
from edgekit.plugin import manager
from edgekit_workflow.pace import Pace

#: Instruction sets that kernels of quantized models are written for.
INSTRUCTIONS = (
    *("sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16"),
    *("avx512_fp16", "amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "fphp", "i8mm", "bf16", "sve", "sve2", "sme"),
)
Kind = Literal["gpu", "npu"]
#: Bytes that are read to measure the bandwidth: more than the caches of most processors.
_READ = 1 << 28
_ROUNDS = 5


@attrs.frozen
class Device:
    """An accelerator.

    Attributes:
        kind: ``gpu`` or ``npu``.
        vendor: ``intel``, ``nvidia``, ``amd``, ``apple``, ``qualcomm``, ``arm`` or another name in lower case.
        name: as its maker calls it.
        memory: bytes of its own; None where it uses the machine's.
        bandwidth: of that memory in bytes a second; None where unknown.
    """

    kind: Kind
    vendor: str
    name: str
    memory: int | None = None
    bandwidth: float | None = None


@attrs.frozen
class Machine:
    """A machine, or the profile of one.

    Attributes:
        name: of the profile, or ``this machine``.
        processor: the maker's name of it.
        vendor: ``intel``, ``amd``, ``apple``, ``arm``, ``qualcomm``, ``nvidia`` or another name in lower case.
        architecture: ``x86_64`` or ``arm64``, or as the system calls it.
        instructions: instruction sets, those of `INSTRUCTIONS`.
        cores: physical cores that programs may use.
        threads: logical processors that programs may use.
        caches: bytes of each level, ``L1d``, ``L2``, ``L3``; levels that are not known are left out.
        memory: bytes of main memory, or what a limit of the process or its container leaves of it.
        bandwidth: of main memory, read by all cores, in bytes a second; None where it was not measured.
        unified: whether accelerators use the main memory.
        devices: accelerators.
        disk: free bytes for artifacts; None where unknown.
        system: ``linux``, ``windows``, ``macos``, ``android``, ``ios``.
        form: ``server``, ``desktop``, ``laptop``, ``tablet``, ``phone``, ``board``, or empty where unknown.
        source: where a profile's numbers come from; ``measured`` for this machine.
        paces: how fast its runtimes compute, by name, where that was measured (`edgekit_workflow.calibration`).
    """

    name: str
    processor: str
    vendor: str
    architecture: str
    cores: int
    threads: int
    memory: int
    system: str
    instructions: tuple[str, ...] = ()
    caches: Mapping[str, int] = attrs.field(factory=dict)
    bandwidth: float | None = None
    unified: bool = False
    devices: tuple[Device, ...] = ()
    disk: int | None = None
    form: str = ""
    source: str = ""
    paces: Mapping[str, Pace] = attrs.field(factory=dict)

    @property
    def vendors(self) -> frozenset[str]:
        """Vendors of the processor and of the accelerators."""
        return frozenset((self.vendor, *(device.vendor for device in self.devices)))


def this_machine(*, bandwidth: bool = True, folder: Path | None = None) -> Machine:
    """Return what this machine has.

    Args:
        bandwidth: whether to measure that of the memory, which takes about half a second of processor time, once
            a process.
        folder: on whose disk artifacts will lie; None: the working directory.

    Example:
        >>> machine = this_machine(bandwidth=False)
        >>> machine.memory > 0 and machine.bandwidth is None
        True
    """
    here = _described()
    return attrs.evolve(
        here,
        bandwidth=measured_bandwidth(here.threads) if bandwidth else None,
        disk=shutil.disk_usage(folder or Path.cwd()).free,
    )


@functools.cache
def processor_flags() -> frozenset[str]:
    """This processor's features as Linux names them; py-cpuinfo, which finds them elsewhere too, takes a second."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return frozenset(_told().get("flags", ()))
    return frozenset(next((line for line in lines if line.startswith(("flags", "Features"))), "").split())


@functools.cache
def _told() -> Mapping[str, Any]:
    """What py-cpuinfo finds."""
    import cpuinfo

    found: dict[str, Any] = cpuinfo.get_cpu_info()
    return found


@functools.cache
def _described() -> Machine:
    import psutil

    told = _told()
    threads = _usable()
    architecture = {"amd64": "x86_64", "aarch64": "arm64"}.get(platform.machine().lower(), platform.machine().lower())
    devices = found_devices()
    vendor = _vendor(f"{told.get('vendor_id_raw', '')} {told.get('brand_raw', '')}", architecture)
    return Machine(
        name="this machine",
        processor=str(told.get("brand_raw") or platform.processor() or architecture),
        vendor=vendor,
        architecture=architecture,
        cores=min(threads, psutil.cpu_count(logical=False) or threads),
        threads=threads,
        memory=_memory(psutil.virtual_memory().total),
        system={"darwin": "macos"}.get(platform.system().lower(), platform.system().lower()),
        instructions=tuple(name for name in INSTRUCTIONS if name in processor_flags()),
        caches=_caches(told),
        unified=vendor == "apple",
        devices=devices,
        source="measured",
    )


def _usable() -> int:
    """The logical processors that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1


def _memory(total: int) -> int:
    """The main memory, or the limit of the control group that the process runs in."""
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(file).read_text("ascii").strip()
        except OSError:
            continue
        if text.isdigit():
            return min(total, int(text))
    return total


def _vendor(text: str, architecture: str) -> str:
    lower = text.lower()
    named = [("intel", "intel"), ("amd", "amd"), ("apple", "apple"), ("qualcomm", "qualcomm"), ("nvidia", "nvidia")]
    default = "arm" if architecture == "arm64" else "unknown"
    return next((vendor for word, vendor in named if word in lower), default)


def _caches(told: Mapping[str, Any]) -> dict[str, int]:
    """Bytes of each level, from Linux's files where they are, else as py-cpuinfo has them."""
    found: dict[str, int] = {}
    for entry in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind = (entry / "level").read_text().strip(), (entry / "type").read_text().strip()
            if kind != "Instruction":
                found[f"L{level}{'d' if kind == 'Data' else ''}"] = parse_size(
                    (entry / "size").read_text().strip().replace("K", "KiB").replace("M", "MiB")
                )
        except (OSError, EdgekitError):
            continue
    if found:
        return found
    named = {"L1d": "l1_data_cache_size", "L2": "l2_cache_size", "L3": "l3_cache_size"}
    return {level: int(told[key]) for level, key in named.items() if isinstance(told.get(key), int)}


def found_devices() -> tuple[Device, ...]:
    """The GPUs and NPUs that installed plugins report (``edgekit_register_devices``), each named once."""
    lines: list[str] = []
    for registration in manager().all("devices"):
        try:
            lines += registration.load()()
        except EdgekitError:  # `edgekit doctor` shows why a plugin's list fails
            continue
    found = [device for line in lines if (device := device_of(line)) is not None]
    return tuple({(device.kind, device.name): device for device in found}.values())


def device_of(line: str) -> Device | None:
    """Return the accelerator that a plugin's line names; None for processors and for whatever else it says.

    Args:
        line: of a plugin's list of devices, such as ``GPU: Intel(R) Arc(TM) Graphics`` or ``CUDA0: NVIDIA L4, 22 GB``.
    """
    head, _, rest = line.partition(":")
    word, name = head.strip().lower(), rest.strip() or line.strip()
    if word.startswith("npu"):
        return Device("npu", _device_vendor(name, "intel"), name)
    if word.startswith(("cuda", "gpu", "metal", "vulkan", "rocm", "hip", "dml", "sycl")):
        default = {"cuda": "nvidia", "meta": "apple", "rocm": "amd", "sycl": "intel"}.get(word[:4], "unknown")
        return Device("gpu", _device_vendor(name, default), name)
    return None


def _device_vendor(name: str, default: str) -> str:
    words = {
        "nvidia": "nvidia",
        "intel": "intel",
        "amd": "amd",
        "radeon": "amd",
        "apple": "apple",
        "adreno": "qualcomm",
    }
    return next((vendor for word, vendor in words.items() if word in name.lower()), default)


@functools.cache
def measured_bandwidth(threads: int) -> float:
    """Return the bytes a second at which that many threads together read main memory, the best of five rounds.

    Each thread reads its part of 256 MiB as a dot product, which OpenBLAS computes faster than memory delivers.
    A processor with larger caches shows those instead.
    """
    values = np.ones(_READ // 4, np.float32)
    parts = np.array_split(values, threads)
    with ThreadPoolExecutor(threads) as pool:
        return max(values.nbytes / _seconds(parts, pool) for _ in range(_ROUNDS))


def _seconds(parts: Sequence[np.ndarray[Any, Any]], pool: ThreadPoolExecutor) -> float:
    start = time.perf_counter()
    list(pool.map(lambda part: float(part @ part), parts))
    return time.perf_counter() - start


def profiles() -> tuple[str, ...]:
    """Names of the profiles, in order."""
    folder = resources.files("edgekit_workflow").joinpath("profiles")
    return tuple(sorted(file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml")))


def profile(name: str) -> Machine:
    """Return a profile by its name, or that of a TOML file by its path.

    Raises:
        UsageError: there is no such profile; names those that are near.
        InvalidFileError: a file with unknown keys, or values that no machine has.
    """
    if name.endswith(".toml"):
        file = Path(name)
        try:
            return machine_of(file.read_text("utf-8"), file.stem, name)
        except OSError as error:
            raise UsageError(f"{name}: cannot be read ({error.strerror}); give a profile's name or a file") from error
    known = profiles()
    if name not in known:
        near = near_names(name, known)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
        raise UsageError(f"no profile {name!r:.80}; {hint}, or give a file that ends in .toml, or 'this'")
    text = resources.files("edgekit_workflow").joinpath("profiles", f"{name}.toml").read_text("utf-8")
    return machine_of(text, name, f"{name}.toml")


def machine(name: str | None) -> Machine:
    """Return this machine for None or ``this``, else the profile of that name; raises as `profile`."""
    return this_machine() if name in (None, "this") else profile(str(name))


def machine_of(text: str, name: str, where: str) -> Machine:
    """Return the machine that a profile's text describes.

    Args:
        text: TOML with the attributes of `Machine`, and a table ``[[devices]]`` for each `Device`.
        name: of the profile.
        where: the file, for messages.

    Raises:
        InvalidFileError: it is no TOML, has unknown keys, lacks some, or has values that no machine has.
    """
    try:
        fields = tomllib.loads(text)
        devices = tuple(_device(dict(each), where) for each in fields.pop("devices", []))
        caches = {level: parse_size(size) for level, size in fields.pop("caches", {}).items()}
        paces = {runtime: Pace(**pace) for runtime, pace in fields.pop("paces", {}).items()}
        chosen = _fields(Machine, {"name": name, **fields}, where)
        result = Machine(**{**chosen, "devices": devices, "caches": caches, "paces": paces})
    except (tomllib.TOMLDecodeError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, InvalidFileError):
            raise
        raise InvalidFileError(f"{where}: not a device profile ({error}); see edgekit_workflow/profiles") from error
    if min(result.cores, result.threads, result.memory) < 1:
        raise InvalidFileError(f"{where}: cores, threads and memory have to be at least 1")
    return result


def profile_text(machine: Machine) -> str:
    """Return a machine as the TOML of a profile, which `machine_of` reads; its name is that of the file."""
    plain = attrs.asdict(machine)
    tables = {name: plain.pop(name) for name in ("caches", "paces", "devices")}
    lines = [*_assigned(plain, leave_out=("name",)), "", "[caches]", *_assigned(tables["caches"])]
    for device in tables["devices"]:
        lines += ["", "[[devices]]", *_assigned(device)]
    for runtime, pace in tables["paces"].items():
        rates = pace.pop("rates")
        lines += ["", f"[paces.{json.dumps(runtime)}]", *_assigned(pace), f"[paces.{json.dumps(runtime)}.rates]"]
        lines += _assigned(rates)
    return "\n".join(lines) + "\n"


def _assigned(fields: Mapping[str, Any], leave_out: Collection[str] = ()) -> list[str]:
    """Lines of TOML: its strings, numbers, truth values and arrays are written as JSON's; nothing for None."""
    return [
        f"{key} = {json.dumps(value)}" for key, value in fields.items() if value is not None and key not in leave_out
    ]


def _device(fields: dict[str, Any], where: str) -> Device:
    if fields.get("kind") not in ("gpu", "npu"):
        raise InvalidFileError(f"{where}: a device of kind {fields.get('kind')!r:.40}; choose gpu or npu")
    return Device(**_fields(Device, fields, where))


def _fields(kind: type[Any], given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Checked fields of a record, sizes as numbers of bytes."""
    known = {field.name: field for field in attrs.fields(kind)}
    if unknown := sorted(given.keys() - known.keys()):
        raise InvalidFileError(f"{where}: unknown {', '.join(unknown)}; a profile has {', '.join(known)}")
    lacking = [name for name, field in known.items() if field.default is attrs.NOTHING and name not in given]
    if lacking:
        raise InvalidFileError(f"{where}: it lacks {', '.join(lacking)}")
    converted: dict[str, Any] = {}
    for name, value in given.items():
        sized = name in ("memory", "disk", "bandwidth") and value is not None
        converted[name] = parse_size(value) if sized else tuple(value) if isinstance(value, list) else value
    return converted


__all__ = [
    "INSTRUCTIONS",
    "Device",
    "Kind",
    "Machine",
    "device_of",
    "found_devices",
    "machine",
    "machine_of",
    "measured_bandwidth",
    "processor_flags",
    "profile",
    "profile_text",
    "profiles",
    "this_machine",
]
