"""The plugin registry: discovery, loading on demand, and reporting plugins that fail.

Entry points of the group ``edgekit`` are listed from metadata alone. The light modules they name are imported
at the first look-up; what those register is imported when it is first used. A plugin that fails
is reported and never breaks another. (The module is called `plugin` because `edgekit.plugins()` is the function.)
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import os
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any, Literal, cast

import attrs
import pluggy

from edgekit.errors import EdgekitError, MemoryShortageError, MissingPluginError, PluginError, near_names
from edgekit.files.memory import refuse_shortage
from edgekit.files.threads import Thread
from edgekit.plugin import hookspecs
from edgekit.plugin._options import checked
from edgekit.plugin.hookspecs import GROUP, hookimpl

if TYPE_CHECKING:
    import logging

#: Plugins of which a registration was skipped, each with the reason.
_SKIPPED: set[tuple[str, str]] = set()
#: The version of the plugin contract: plugins state theirs as ``edgekit_api``.
API = (1, 0)
ROLES = (
    "formats",
    "families",
    "quantizers",
    "precisions",
    "recipes",
    "runtimes",
    "passes",
    "devices",
    "packagers",
    "kernels",
    "commands",
)
#: Role -> the attributes of an object that plays it; ``__call__`` if it is called. `edgekit.testing` checks the same.
CONTRACTS: Mapping[str, tuple[str, ...]] = {
    "formats": ("name", "matches", "open", "layout", "writer"),
    "families": (
        "name",
        "model_types",
        "apart",
        "gguf",
        "nested",
        "alike",
        "config_from_hf",
        "config_to_hf",
        "network",
        "links",
        "ignores",
        "gguf_metadata",
        "gguf_fits",
        "gguf_config",
    ),
    "precisions": ("precision", "traits", "encode", "decode", "bound"),
    "quantizers": ("encode", "traits"),
    "recipes": ("name", "plan"),
    "packagers": ("package",),
    "passes": ("run",),
    "commands": ("main",),
    "runtimes": ("__call__",),
    "devices": ("__call__",),
    "kernels": ("__call__",),
}
#: Roles whose objects may state their name.
_NAMED = ("formats", "families", "recipes", "packagers", "passes", "commands")
#: Time limit in seconds for importing a plugin's light module, a hundred times its budget.
LOAD_SECONDS = float(os.environ.get("EDGEKIT_PLUGIN_SECONDS", "10"))
BUILT_IN = "edgekit-core"
#: The distribution to install for a format, a suffix, a backend, a runtime or a command. Messages suggest only these
#: names: a name built from the user's input could be an unrelated distribution, or none.
KNOWN_DISTRIBUTIONS = {
    "gguf": "edgekit-gguf",
    ".gguf": "edgekit-gguf",
    "llamacpp": "edgekit-llamacpp",
    "mlx": "edgekit-mlx",
    "finetune": "edgekit-mlx",
    "fuse": "edgekit-mlx",
    "numba": "edgekit-numba",
    "azureml": "edgekit-olive",
    "olive": "edgekit-olive",
    "olive-passes": "edgekit-olive",
    "olive-run": "edgekit-olive",
    "onnx": "edgekit-olive",
    ".onnx": "edgekit-olive",
    "onnx-portable": "edgekit-olive",
    "onnxruntime": "edgekit-olive",
    "openvino": "edgekit-openvino",
    "ovms": "edgekit-openvino",
    "serve": "edgekit-serve",
}
KNOWN_DISTRIBUTIONS |= dict.fromkeys(
    ("alerts", "assess", "bench", "blame", "diagnose", "gate", "optimize", "profile", "recommend", "report", "watch"),
    "edgekit-workflow",
)

#: What the names of Olive's passes begin with; they are registered where olive-ai is installed.
OLIVE = "olive:"

#: What the formats and runtimes of other libraries are called.
_ALSO_CALLED = {"safetensors": "hf", "huggingface": "hf", "transformers": "hf", "ir": "openvino", "ggml": "gguf"}

Status = Literal["loaded", "failed", "refused", "disabled"]


@attrs.frozen
class PluginInfo:
    """An installed plugin and its status, as `edgekit plugins` shows it.

    Attributes:
        name: of its entry point.
        distribution, version: the installed distribution and its version.
        status: ``loaded``, ``failed`` (it raised), ``refused`` (wrong contract version) or ``disabled``.
        error: why it is not loaded, or which rule it breaks; empty otherwise.
        provides: registered names by role.
    """

    name: str
    distribution: str
    version: str
    status: Status = "loaded"
    error: str = ""
    provides: dict[str, tuple[str, ...]] = attrs.field(factory=dict)


@attrs.frozen
class Registration:
    """One thing that one plugin registered in one role.

    Attributes:
        target: ``"package.module:attribute"``.
        plugin, distribution: the plugin that registered it, and its distribution.
        options: the keyword arguments of ``register``.
    """

    role: str
    name: str
    target: str
    plugin: str
    distribution: str
    options: dict[str, Any] = attrs.field(factory=dict)

    def load(self) -> Any:
        """Import and return the target; a class is instantiated.

        Raises:
            PluginError: it cannot be imported; names the distribution and the error.
        """
        try:
            return self._checked(_load(self.target))
        except EdgekitError:
            raise
        except Exception as error:
            refuse_shortage(error, f"loading {one(self.role)} {self.name!r} of {self.distribution}")
            raise PluginError(
                f"{one(self.role)} {self.name!r} of {self.distribution} cannot be loaded: "
                f"{type(error).__name__}: {error}; `edgekit doctor` shows more, reinstall {self.distribution}"
            ) from error

    def _checked(self, loaded: Any) -> Any:
        fault = _fault(self.role, self.name, self.target, self.options.get("claim"))
        if fault:
            raise PluginError(f"{one(self.role)} {self.name!r} of {self.distribution} {fault}")
        return loaded


def one(role: str) -> str:
    """Return a role in the singular: ``format`` for ``formats``, ``pass`` for ``passes``."""
    return {"passes": "pass", "families": "family"}.get(role, role[:-1])


@functools.cache
def _load(target: str) -> Any:
    module, _, attribute = target.partition(":")
    target_object: Any = functools.reduce(getattr, attribute.split("."), cast(Any, importlib.import_module(module)))
    return target_object() if isinstance(target_object, type) else target_object


@functools.cache  # looked up at every call of `encode`
def _fault(role: str, name: str, target: str, claim: str | None) -> str:
    """Return what a registered object lacks, or how it contradicts its registration; empty if it is valid."""
    loaded = _load(target)
    lacking = lacks(role, loaded)
    if lacking:
        what = "cannot be called" if lacking == ["__call__"] else f"lacks {', '.join(lacking)}"
        return f"{what}; the docstring of edgekit_register_{role} names what it must implement"
    other = _other_name(role, name, loaded)
    if other:
        return f"({target}) calls itself {other!r}; register it under that name"
    stated = getattr(loaded, "claim", None)
    if role == "quantizers" and stated not in (None, claim):
        contradiction = f"is registered with claim={claim!r}, and {target} has claim = {stated!r}"
        return f"{contradiction}; state one claim in both places"
    return ""


def lacks(role: str, loaded: object) -> list[str]:
    """Return the attributes of its role (`CONTRACTS`) that an object does not have."""
    return [name for name in CONTRACTS[role] if not hasattr(loaded, name)]


def _other_name(role: str, name: str, loaded: Any) -> str:
    """Return the name of an object, or of its precision, if it differs from the registered name; else empty."""
    if role in _NAMED:
        stated = getattr(loaded, "name", None)
        return "" if stated in (None, name) else str(stated)
    try:
        record = getattr(loaded, "precision", None) if role in ("precisions", "quantizers") else None
    except EdgekitError:  # a quantizer for a precision of another plugin, which is not installed
        return ""
    stated = "" if record is None else str(record)  # a record or a name
    return "" if name in (stated, stated.partition(":")[2]) or not stated else stated


@attrs.define
class Manager:
    """The plugins and registrations of one process."""

    plugins: list[PluginInfo] = attrs.field(factory=list)
    registrations: list[Registration] = attrs.field(factory=list)

    def all(self, role: str) -> list[Registration]:
        """Return all registrations of a role, built-ins first."""
        return [r for r in self.registrations if r.role == role]

    def find(self, role: str, name: str) -> Registration:
        """Return the registration of that name.

        Raises:
            MissingPluginError: it is not registered; names what is available and the cure.
            PluginError: two distributions registered it.
        """
        matching = [r for r in self.all(role) if r.name == name]
        if not matching:
            raise MissingPluginError(self._missing(role, name))
        if len(matching) > 1 and matching[0].distribution != BUILT_IN:
            raise PluginError(_twice(role, name, matching))
        return matching[0]

    def load(self, role: str, name: str) -> Any:
        """Find the registration of that name and import its target; raises as both."""
        return self.find(role, name).load()

    def _missing(self, role: str, name: str) -> str:
        registered = {r.name for r in self.all(role)}
        names = ", ".join(sorted(registered)) or "none"
        near = _meant(name, registered)
        hint = f"; did you mean {near!r}?" if near not in ("", name) else ""
        known = KNOWN_DISTRIBUTIONS.get(near or name)
        if role == "passes" and name.startswith(OLIVE) and not any(each.startswith(OLIVE) for each in registered):
            known = f"'{KNOWN_DISTRIBUTIONS['olive']}[olive]'"
        installed = known in {p.distribution for p in self.plugins}
        cure = f"{'' if hint else ';'} pip install {known}" if known and not installed else ""
        failed = [f"{p.distribution} ({p.error})" for p in self.plugins if p.status in ("failed", "refused")]
        broken = f"; not loaded: {', '.join(failed)}" if failed else ""
        return f"no {one(role)} {name!r} is installed (available: {names}){hint}{cure}{broken}"


def _meant(name: str, registered: Iterable[str]) -> str:
    """Return the name, registered or of a known plugin, that a name stands for; empty if there is none."""
    called = _ALSO_CALLED.get(name.casefold(), name)
    others = near_names(called, filter(str.isalnum, KNOWN_DISTRIBUTIONS), 1, alike=1.0)
    return (near_names(called, sorted(registered), 1) or others or [""])[0]


def skipped(registration: Registration, error: EdgekitError) -> None:
    """Warn once, in the log, that a registration cannot be used and the next one replaces it."""
    reason = "memory" if isinstance(error, MemoryError) else str(error)  # how much there is differs each time
    if (registration.plugin, reason) not in _SKIPPED:
        _SKIPPED.add((registration.plugin, reason))
        _log().warning("%s is skipped: %s", registration.plugin, error)


def _log() -> logging.Logger:
    import logging  # only here: a first `encode` need not load it

    return logging.getLogger("edgekit")


@functools.cache
def manager() -> Manager:
    """Return the process's plugin manager; the first call imports the light modules of all plugins."""
    return build(entry_points())


def entry_points() -> list[tuple[metadata.EntryPoint, str, str]]:
    """Return each installed plugin's entry point, distribution and version, from metadata alone."""
    points = {
        (point.name, point.value, point.dist.name if point.dist else "unknown"): (
            point,
            point.dist.name if point.dist else "unknown",
            point.dist.version if point.dist else "",
        )
        for point in metadata.entry_points(group=GROUP)
    }
    return [points[key] for key in sorted(points)]


def build(points: list[tuple[metadata.EntryPoint, str, str]]) -> Manager:
    """Load the built-ins, then each plugin; a plugin that fails does not affect the others."""
    self = Manager()
    _add(
        self,
        PluginInfo("core", BUILT_IN, _core_version()),
        lambda: importlib.import_module("edgekit.plugin._builtin"),
    )
    disabled = {name for name in os.environ.get("EDGEKIT_NO_PLUGINS", "").split(",") if name not in ("", "0")}
    for point, distribution, version in points:
        info = PluginInfo(point.name, distribution, version)
        if disabled & {"1", "true", "all", point.name, distribution}:
            self.plugins.append(attrs.evolve(info, status="disabled", error="EDGEKIT_NO_PLUGINS"))
        else:
            _add(self, info, functools.partial(_in_time, point.load, point.name))
    claims = _claimed_twice(self)
    self.plugins = [attrs.evolve(p, error=p.error or claims.get(p.name, "")) for p in self.plugins]
    return self


def _in_time(load: Callable[[], Any], name: str) -> Any:
    """Load in a thread, which is abandoned if it hangs.

    Raises:
        PluginError: loading exceeded the time limit. Errors of loading are raised unchanged.
    """
    outcome: list[tuple[Any, BaseException | None]] = []

    def work() -> None:
        try:
            outcome.append((load(), None))
        except BaseException as error:  # raised again below, in the caller's thread
            outcome.append((None, error))

    thread = Thread(target=work, name=f"edgekit loads {name}")
    try:
        thread.start()
    except MemoryShortageError:  # the limit on time is no reason to fail
        return load()
    thread.join(LOAD_SECONDS)
    if not outcome:
        message = f"importing it did not end within {LOAD_SECONDS:g} s; EDGEKIT_NO_PLUGINS={name} switches it off"
        _log().warning("plugin %r is skipped: %s", name, message)
        raise PluginError(message)
    module, error = outcome[0]
    if error is not None:
        raise error
    return module


def _claimed_twice(self: Manager) -> dict[str, str]:
    """Return the error of each plugin for the first name that it and another both register, or it registers twice."""
    named: dict[tuple[str, str], list[Registration]] = {}
    for registration in self.registrations:
        named.setdefault((registration.role, registration.name), []).append(registration)
    errors: dict[str, str] = {}
    for registration in self.registrations:
        same = named[registration.role, registration.name]
        if len(same) == 1:
            continue
        owners = [r for r in same if registration.role != "quantizers" or r.plugin == registration.plugin]
        if len(owners) > 1:
            errors.setdefault(registration.plugin, _twice(registration.role, registration.name, owners))
    return errors


def _twice(role: str, name: str, registrations: list[Registration]) -> str:
    owners = list(dict.fromkeys(r.distribution for r in registrations))
    if len(owners) == 1:
        return f"{one(role)} {name!r} is registered twice by {owners[0]}; ask its authors to choose one"
    return (
        f"{one(role)} {name!r} is claimed by {' and '.join(owners)}; uninstall one of them, "
        f"or switch it off with EDGEKIT_NO_PLUGINS={registrations[-1].plugin}"
    )


def _core_version() -> str:
    try:
        return metadata.version("edgekit-core")
    except metadata.PackageNotFoundError:  # a source tree on the path
        return "0"


def _add(self: Manager, info: PluginInfo, load: Callable[[], Any]) -> None:
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):  # stdout is for data
            module = load()
        refusal = refused(getattr(module, "edgekit_api", None))
        if refusal:
            self.plugins.append(attrs.evolve(info, status="refused", error=refusal))
            return
        registrations = list(_registrations(module, info))
        shadowed = [r for r in registrations if _shadows(self, r)]
        if shadowed:
            names = ", ".join(f"{one(r.role)} {r.name!r}" for r in shadowed)
            raise PluginError(f"it would replace edgekit's own {names}; built-ins cannot be shadowed, rename it")
    except (KeyboardInterrupt, MemoryError):
        raise
    except BaseException as error:  # SystemExit too: a plugin must not end its host
        refuse_shortage(error, f"importing the plugin {info.name!r}")
        self.plugins.append(attrs.evolve(info, status="failed", error=_reason(error)))
        return
    self.registrations += registrations
    provides = {role: tuple(r.name for r in registrations if r.role == role) for role in ROLES}
    noise = "it writes to stdout when it is imported; report this to its authors" if printed.getvalue() else ""
    self.plugins.append(attrs.evolve(info, error=noise, provides={k: v for k, v in provides.items() if v}))


def refused(api: object) -> str:
    """Return why a plugin with that contract version is refused, in one sentence; empty if it is accepted."""
    host = f"{API[0]}.{API[1]}"
    match api:
        case (int(major), int(minor)) if major == API[0] and minor <= API[1]:
            return ""
        case (int(major), int(minor)):
            newer = (major, minor) > API
            cure = "upgrade edgekit" if newer else "upgrade the plugin"
            return f"it is written for plugin contract {major}.{minor} and this edgekit has {host}: {cure}."
    return f"it does not state the plugin contract it is written for: set edgekit_api = {API} in its module."


def _registrations(module: Any, info: PluginInfo) -> Iterator[Registration]:
    # One pluggy manager per plugin: it checks the signatures, and a hook that raises affects no other plugin.
    hooks = pluggy.PluginManager(GROUP)
    hooks.add_hookspecs(hookspecs)
    hooks.register(module, info.name)
    hooks.check_pending()
    for role in ROLES:
        collected: list[Registration] = []
        getattr(hooks.hook, f"edgekit_register_{role}")(register=_collector(role, info, collected))
        yield from collected


def _collector(role: str, info: PluginInfo, into: list[Registration]) -> hookspecs.Register:
    def register(name: str, target: str, **options: Any) -> None:
        if not isinstance(name, str) or not name.strip():
            what = f"a {one(role)} of {info.distribution}"
            raise PluginError(f"{what}: its name is {name!r}; a name is a non-empty string")
        right = checked(role, f"{one(role)} {name!r} of {info.distribution}", target, options)
        into.append(Registration(role, name, target, info.name, info.distribution, right))

    return register


def _shadows(self: Manager, registration: Registration) -> bool:
    if registration.role == "quantizers":  # many backends may encode one precision
        return False
    return any(
        r.distribution == BUILT_IN and r.name == registration.name
        for r in self.all(registration.role)
        if registration.distribution != BUILT_IN
    )


def _reason(error: BaseException) -> str:
    if isinstance(error, PluginError):  # raised by edgekit with a message that is complete
        return str(error)
    frame = traceback.extract_tb(error.__traceback__)[-1] if error.__traceback__ else None
    where = f" ({os.path.basename(frame.filename)}:{frame.lineno})" if frame else ""
    return f"{type(error).__name__}: {error}{where}"


__all__ = [
    "API",
    "BUILT_IN",
    "CONTRACTS",
    "KNOWN_DISTRIBUTIONS",
    "ROLES",
    "Manager",
    "PluginInfo",
    "Registration",
    "build",
    "entry_points",
    "hookimpl",
    "installed",
    "lacks",
    "manager",
    "one",
    "refused",
    "skipped",
]


def installed() -> tuple[PluginInfo, ...]:
    """Return the installed plugins, the core first: what each provides, or why it is not loaded."""
    return tuple(manager().plugins)
