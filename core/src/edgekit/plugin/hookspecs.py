"""Every hook that a plugin may implement: a signature and a docstring, no code.

Each hook hands the plugin a ``register`` callback, so that options can be added without breaking anyone.
Targets are strings, ``"package.module:attribute"``: the attribute is imported when it is first used. An
attribute that is a class is instantiated without arguments.

Registration is strict. An unknown option, or a value of the wrong type (``suffixes=".x"`` for a
tuple, ``speed="10"``), fails the plugin with one sentence that `edgekit plugins` and `edgekit doctor` show. So does a
name that the core registers itself, commands included. An object whose name or claim differs from its registration is
refused when it is first used.
"""

from __future__ import annotations

from collections.abc import Callable

import pluggy

GROUP = "edgekit"
"""The entry point group, which is pluggy's project name too."""

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)
"""Marks a plugin's implementation of a hook."""

Register = Callable[..., None]


@hookspec
def edgekit_register_formats(register: Register) -> None:
    """Offer a file format: ``register("gguf", "edgekit_gguf.format:GgufFormat", suffixes=(".gguf",))``.

    The target implements `edgekit.artifact.Format`. ``takes=(".onnx",)`` names suffixes of files that no installed
    format reads and that it converts as a whole: the layout then has no slots, and the writer does all the work.
    ``refines=("hf",)`` names formats that recognise this one's artifacts too: where one of them does, this one is asked
    before it.
    """


@hookspec
def edgekit_register_families(register: Register) -> None:
    """Offer a model family: ``register("olmo", "edgekit_olmo.family:Olmo")``.

    The target implements `edgekit.architectures.Family`, most easily by deriving from
    `edgekit.architectures.decoder.Decoder`. It says which blocks a configuration means and what its tensors are called;
    every runtime and every format then has it. It cannot claim a ``model_type`` of the core's families.
    """


@hookspec
def edgekit_register_quantizers(register: Register) -> None:
    """Offer a native encoder: ``register("ggml:Q4_K", "edgekit_llamacpp.native:Q4_K", claim="exact", speed=4)``.

    The target implements `edgekit.encoding.Quantizer`; ``claim`` is ``"exact"`` (bytes equal the reference's)
    or a sentence stating the bound; among exact ones the highest ``speed`` is the default. The reference has 1, which
    is also the default; an encoder below 1 is used only if it is selected by name.
    """


@hookspec
def edgekit_register_precisions(register: Register) -> None:
    """Add a number format: ``register("example:log4-g32", "edgekit_example.log4:Log4")``.

    The target implements `edgekit.reference.Reference` and has an attribute ``precision``, its record.
    """


@hookspec
def edgekit_register_recipes(register: Register) -> None:
    """Offer a recipe: ``register("Q4_K_M", "edgekit_gguf.recipes:Q4_K_M", formats=("gguf",))``.

    The target implements `edgekit.recipe.Recipe`; ``formats`` names the formats that it applies to. Its plan is checked
    before a tensor is read: one assignment for each slot, in their order. If a tensor cannot have the precision that
    the recipe specifies, the assignment states that precision in ``asked``, and the conversion's notes count it. A
    method ``describe()`` returns `edgekit.recipe.Clause`s, which `edgekit recipes` shows.
    """


@hookspec
def edgekit_register_runtimes(register: Register) -> None:
    """Offer a runtime: ``register("llamacpp", "edgekit_llamacpp.runtime:open_runtime", formats=("gguf",))``.

    The target is called with an artifact and options, and returns an `edgekit.runtime.Runtime`. ``formats`` names the
    formats of the artifacts that it runs, ``("*",)`` all; the highest ``speed`` is the default (numpy has 1).
    ``tolerance`` is the largest difference of a logit from edgekit's own forward pass that it claims, in standard
    deviations of the logits. ``parallel`` names the runtime's option for how many texts it computes at the same time,
    ``adapters`` the one for adapters by name, for a runtime that is an `edgekit.runtime.AdaptingRuntime`.
    """


@hookspec
def edgekit_register_passes(register: Register) -> None:
    """Offer a whole-artifact transformation: ``register("prune", "pkg.mod:Prune", formats=("hf",))``.

    The target implements `edgekit.pipeline.passes.Pass`; ``formats`` names the formats of the artifacts that it takes,
    and suffixes of files that no installed format reads. `edgekit apply` runs it from the command line.
    """


@hookspec
def edgekit_register_devices(register: Register) -> None:
    """Offer a device report: ``register("openvino", "pkg.mod:devices")``; called without arguments by `edgekit doctor`.

    The target returns a list of strings, a line for each device.
    """


@hookspec
def edgekit_register_packagers(register: Register) -> None:
    """Offer a model server's layout: ``register("ovms", "edgekit_openvino.ovms:Ovms")``, for `edgekit package`.

    The target implements `edgekit.pipeline.packaging.Packager`: it writes the directory that the server expects, and
    returns the command that starts the server.
    """


@hookspec
def edgekit_register_kernels(register: Register) -> None:
    """Offer a faster kernel: ``register("accumulate", "edgekit_numba.accumulating:accumulate", speed=8)``.

    The target is a function with the bits of the core's own. The names are those of rounding with error feedback, each
    with a protocol in `edgekit.pipeline.rounding`: ``accumulate``, ``multiply``, ``exponential``, ``weigh``,
    ``largest``, ``narrow``, ``turn``, ``units``, ``scale``, ``totals``, ``substitute``, ``feed`` and ``descend``. Of
    several for a name, that with the highest ``speed`` is used; the core's own has 1.
    """


@hookspec
def edgekit_register_commands(register: Register) -> None:
    """Add a command to the command line: ``register("serve", "pkg.mod:command")``.

    The target is a click command of that name; the names of the core's commands are reserved.
    """


__all__ = [
    "GROUP",
    "Register",
    "edgekit_register_commands",
    "edgekit_register_devices",
    "edgekit_register_families",
    "edgekit_register_formats",
    "edgekit_register_kernels",
    "edgekit_register_packagers",
    "edgekit_register_passes",
    "edgekit_register_precisions",
    "edgekit_register_quantizers",
    "edgekit_register_recipes",
    "edgekit_register_runtimes",
    "hookimpl",
    "hookspec",
]
