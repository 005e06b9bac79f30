"""Checks for plugins as a whole: import time, metadata, output, network and files.

A plugin is given by its entry point. It is imported and loaded in a separate process, where its actions are observed
through Python's audit events, with sockets blocked.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import attrs

from edgekit.architectures import FAMILIES, Family
from edgekit.errors import EdgekitError, UsageError
from edgekit.plugin._registry import (
    BUILT_IN,
    Manager,
    PluginInfo,
    Registration,
    build,
    entry_points,
    lacks,
    one,
    refused,
)
from edgekit.precision import find_precision
from edgekit.testing._kit import Kit, NotApplicable, Profile, Result, fail

#: Seconds that importing a plugin's registration module may take, beyond importing edgekit's hooks.
IMPORT_SECONDS = 0.1
#: Packages that a registration module must not import: frameworks and other large packages.
HEAVY = (
    "torch", "tensorflow", "jax", "transformers", "onnx", "onnxruntime", "openvino", "nncf", "mlx", "gguf", "llama_cpp",
    "olive", "numba", "scipy", "pandas", "tokenizers", "optimum", "vllm", "fastapi", "aiohttp", "requests",
)  # fmt: skip


@attrs.frozen(eq=False)
class PluginSubject:
    """An installed plugin.

    Attributes:
        point: its entry point.
        info: whether it was loaded, and if not, why.
        registrations: everything that it registers.
    """

    point: metadata.EntryPoint
    info: PluginInfo
    registrations: tuple[Registration, ...]

    @property
    def label(self) -> str:
        """The plugin's name, for messages."""
        return f"plugin {self.info.name!r} ({self.info.distribution} {self.info.version})".rstrip()

    @property
    def module(self) -> str:
        """The name of the plugin's registration module."""
        return self.point.value.partition(":")[0]


KIT: Kit[PluginSubject] = Kit("plugins")


def adapt(name: str) -> PluginSubject:
    """Return the subject for the installed plugin with the given entry point.

    Raises:
        UsageError: no such entry point is installed; the message names those that are.
    """
    points = [each for each in entry_points() if each[0].name == name]
    if not points:
        names = ", ".join(sorted({point.name for point, _, _ in entry_points()})) or "none"
        raise UsageError(f"no plugin {name!r} is installed (available: {names}); pip install it first")
    manager: Manager = build(points[:1])
    info = next(info for info in manager.plugins if info.distribution != BUILT_IN)
    return PluginSubject(points[0][0], info, tuple(r for r in manager.registrations if r.plugin == name))


def run_plugin_checks(
    name: str,
    *,
    expected_failures: Mapping[str, str] | None = None,
    checks: Iterable[str] | None = None,
    profile: str | Profile | None = None,
) -> list[Result]:
    """Run every check on an installed plugin, without pytest; arguments as `run_quantizer_checks`."""
    subject = adapt(name)
    return KIT.run(subject, subject.label, expected_failures=expected_failures, checks=checks, profile=profile)


def plugin_checks(
    name: str,
    *,
    expected_failures: Mapping[str, str] | None = None,
    checks: Iterable[str] | None = None,
    profile: str | Profile | None = None,
) -> Callable[[Callable[..., Any]], Any]:
    """Return a pytest decorator that calls the test once per check, passed as the argument ``check``."""
    subject = adapt(name)
    return KIT.parametrize(subject, subject.label, expected_failures=expected_failures, checks=checks, profile=profile)


@KIT.check
def check_api_version(subject: PluginSubject, profile: Profile) -> None:
    """The module defines ``edgekit_api``, a version that this edgekit supports."""
    if subject.info.status == "refused":
        fail(subject.info.error)
    module = sys.modules.get(subject.module)
    if subject.info.status == "loaded":
        reason = refused(getattr(module, "edgekit_api", None))
        if reason:
            fail(reason)


@KIT.check
def check_loaded(subject: PluginSubject, profile: Profile) -> None:
    """The plugin loads: its module can be imported, and its hooks have the specified signatures."""
    if subject.info.status in ("failed", "disabled"):
        fail(f"{subject.info.status}: {subject.info.error}")


@KIT.check
def check_metadata(subject: PluginSubject, profile: Profile) -> None:
    """The distribution states name, version, summary, licence and Python version, and depends on edgekit."""
    metadata = subject.point.dist.metadata if subject.point.dist else None
    if metadata is None:
        fail("the entry point belongs to no distribution")
    for field in ("Name", "Version", "Summary", "Requires-Python"):
        if not metadata[field]:
            fail(f"the metadata lacks {field}; pip and people need it")
    if not (metadata["License-Expression"] or metadata["License"] or "License" in str(metadata.get_all("Classifier"))):
        fail("the metadata says no licence; give `license` in pyproject.toml")
    requires = metadata.get_all("Requires-Dist") or []
    if not any(requirement.replace("_", "-").lower().startswith("edgekit-core") for requirement in requires):
        fail("it does not depend on edgekit: give a range, such as edgekit-core>=0.1,<1")


@KIT.check
def check_registrations(subject: PluginSubject, profile: Profile) -> None:
    """The plugin registers something, each name once, and quantizers only for known precisions."""
    if not subject.registrations:
        fail("it registers nothing")
    seen = set()
    for each in subject.registrations:
        if (each.role, each.name) in seen:
            fail(f"{one(each.role)} {each.name!r} is registered twice")
        seen.add((each.role, each.name))
        if each.role == "quantizers":
            _known(each)


def _known(each: Registration) -> None:
    try:
        find_precision(each.name)
    except EdgekitError as error:
        fail(f"quantizer {each.name!r}: {error}")


@KIT.check
def check_targets(subject: PluginSubject, profile: Profile) -> None:
    """Everything that the plugin registers can be imported, and has the methods of its role."""
    for each in subject.registrations:
        try:
            loaded = each.load()
        except EdgekitError as error:
            if _missing_optional(error):
                continue
            fail(str(error))
        missing = lacks(each.role, loaded)
        if missing:
            fail(f"{one(each.role)} {each.name!r} ({each.target}) lacks {', '.join(missing)}")


@KIT.check
def check_families(subject: PluginSubject, profile: Profile) -> None:
    """The plugin's families read the config.json that they write, and name every tensor of their blocks once."""
    families = [each for each in subject.registrations if each.role == "families"]
    if not families:
        raise NotApplicable("it brings no model family")
    for each in families:
        _family(each.name, each.load())


def _family(name: str, family: Family) -> None:
    taken = [t for t in family.model_types if (own := FAMILIES.of_model_type(t)) and own.name != name]
    if taken:
        fail(f"family {name!r} claims model_type {taken[0]!r}, which another family has")
    config = family.config_from_hf({"model_type": family.model_types[0]}, "a config.json without sizes")
    again = family.config_from_hf(json.loads(json.dumps(family.config_to_hf(config))), "what it writes")
    if again != config:
        fail(f"family {name!r} reads another configuration from the config.json that it writes itself")
    shapes = [tensor for tensor, _ in family.network(config).shapes()]
    links = family.links(config, ())
    linked = [tensor for link in links for tensor in link.canonical]
    if sorted(linked) != sorted(shapes):
        odd = sorted(set(linked) ^ set(shapes)) or [n for n in linked if linked.count(n) > 1]
        fail(f"family {name!r}: its links and its blocks disagree on the tensor {odd[0]}")
    stored = [tensor for link in links for tensor in link.hf]
    if len(set(stored)) < len(stored):
        fail(f"family {name!r}: two links name the same tensor of a checkpoint")


def _missing_optional(error: EdgekitError) -> bool:
    """Return whether the error says that an optional framework of the plugin is not installed, which is allowed."""
    cause = error.__cause__
    return isinstance(cause, ModuleNotFoundError) and (cause.name or "").partition(".")[0] in HEAVY


_WATCH = """
import json, os, sys, time
import edgekit.plugin.hookspecs, edgekit.plugin
allowed = [os.path.realpath(p) for p in json.loads(sys.argv[2])]
events, before = {"network": [], "writes": []}, set(sys.modules)
def tidy(path):
    path = os.path.realpath(os.fsdecode(path)) if isinstance(path, (str, bytes, os.PathLike)) else ""
    return not path or path.startswith("/dev/") or any(path == a or path.startswith(a + os.sep) for a in allowed)
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.bind", "socket.sendto", "urllib.Request"):
        events["network"].append(event + " " + repr(arguments[1:])[:80])
        raise PermissionError("the network is blocked while a plugin is checked")
    writes = event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if (writes or event in ("os.mkdir", "os.remove", "os.rename", "os.rmdir")) and not tidy(arguments[0]):
        events["writes"].append(event + " " + os.fsdecode(arguments[0]))
sys.addaudithook(watch)
real, sys.stdout = sys.stdout, type("Out", (), {"text": "", "write": lambda s, t: setattr(s, "text", s.text + t),
    "flush": lambda s: None, "isatty": lambda s: False, "encoding": "utf-8", "errors": "strict"})()
error, began = "", time.process_time()
try:
    import importlib
    importlib.import_module(sys.argv[1])
except BaseException as e:
    error = f"{type(e).__name__}: {e}"
seconds, modules = time.process_time() - began, sorted(set(sys.modules) - before)
for target in json.loads(sys.argv[3]):
    module, _, attribute = target.partition(":")
    try:
        found = importlib.import_module(module)
        for name in attribute.split("."):
            found = getattr(found, name)
        found() if isinstance(found, type) else None
    except BaseException:
        pass
printed, sys.stdout = sys.stdout.text, real
print("\\n" + json.dumps({**events, "seconds": seconds, "modules": modules, "error": error, "printed": printed}))
"""


def _watch(subject: PluginSubject, load: bool = True) -> dict[str, Any]:
    """Import the module in a separate process, load what it registers, and return the observations."""
    targets = [each.target for each in subject.registrations] if load else []
    with tempfile.TemporaryDirectory(prefix="edgekit-check-") as folder:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, map(str, sys.path))),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HOME": folder,
            "TMPDIR": folder,
        }
        command = [sys.executable, "-c", _WATCH, subject.module, json.dumps([folder]), json.dumps(targets)]
        try:
            done = subprocess.run(
                command, env=environment, cwd=folder, capture_output=True, text=True, timeout=60, check=False
            )
        except subprocess.TimeoutExpired:
            fail("importing it takes more than a minute; it hangs")
    try:
        seen: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        fail(f"importing it ends the process (exit {done.returncode}): {done.stderr.strip()[-200:]}")
    if seen["error"]:
        fail(f"importing it raises {seen['error']}")
    return seen


@KIT.check
def check_light_imports(subject: PluginSubject, profile: Profile) -> None:
    """Importing the registration module imports no framework, and none of the modules whose objects it registers.

    Those modules must be imported on first use. Put names and constants that both need into a third module.
    """
    modules = set(_watch(subject, load=False)["modules"])
    implementations = {each.target.partition(":")[0] for each in subject.registrations} - {subject.module}
    if modules & implementations:
        fail(
            f"importing {subject.module} imports {min(modules & implementations)}, which it registers; "
            "name it in a text only"
        )
    heavy = sorted({name.partition(".")[0] for name in modules} & set(HEAVY))
    if heavy:
        fail(f"importing {subject.module} imports {', '.join(heavy)}; import them where they are used")


@KIT.check
def check_import_time(subject: PluginSubject, profile: Profile) -> None:
    """Importing the registration module takes less than 0.1 s of a processor's time (the best of several tries)."""
    seconds = min(_watch(subject, load=False)["seconds"] for _ in range(4))
    if seconds > IMPORT_SECONDS:
        took, allowed = f"{1000 * seconds:.0f} ms of a processor", f"{1000 * IMPORT_SECONDS:.0f} ms are allowed"
        fail(f"importing {subject.module} takes {took}; {allowed}")


@KIT.check
def check_silent_import(subject: PluginSubject, profile: Profile) -> None:
    """Importing the plugin and everything that it registers writes nothing to stdout."""
    printed = _watch(subject)["printed"]
    if printed:
        fail(f"it writes to stdout when it is imported: {printed[:60]!r}")


@KIT.check
def check_no_network(subject: PluginSubject, profile: Profile) -> None:
    """Importing the plugin and everything that it registers opens no socket and resolves no host name."""
    attempts = _watch(subject)["network"]
    if attempts:
        fail(f"it uses the network: {attempts[0]}")


@KIT.check
def check_no_writes(subject: PluginSubject, profile: Profile) -> None:
    """Importing the plugin and everything that it registers writes no file outside a given temporary directory."""
    writes = _watch(subject)["writes"]
    if writes:
        fail(f"it writes outside its directory: {writes[0]}")


@KIT.check
def check_distribution(subject: PluginSubject, profile: Profile) -> None:
    """Every file of the distribution is in its own packages, none in other packages or beside them."""
    files = subject.point.dist.files if subject.point.dist else None
    if not files:
        raise NotApplicable("its list of files is not recorded")
    package = subject.module.partition(".")[0]
    for file in files:
        top = Path(str(file)).parts[0]
        allowed = (
            top == package or top.endswith((".dist-info", ".egg-info", ".pth", ".data")) or top.startswith(("..", "_"))
        )
        if not allowed and not top.startswith(package):
            fail(f"it installs {file}, outside its package {package}")


__all__ = ["KIT", "PluginSubject", "adapt", "plugin_checks", "run_plugin_checks"]
