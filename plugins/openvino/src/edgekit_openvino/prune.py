"""Prunes torch modules with NNCF: sets the weights of least magnitude to zero.

    module = prune(module, samples, ratio=0.5).module        a plain torch module without NNCF's wrappers
    artifact = prune(module, samples, ratio=0.5).save(to)    as an IR

The pass ``openvino-prune`` prunes a Hugging Face directory that transformers can load. The written directory has the
source's tensors with some values set to zero, and can be quantized and converted like any other.

Zeros are stored like other numbers: files become smaller only if they are compressed, and models faster only if zeros
are skipped (the CPU plugin's sparse weights decompression, for INT8).

Source: nncf 3.4.0, `nncf.prune`. It changes the module that it is given, so it gets a copy; `nncf.strip` keeps the
masks unless it works in place, and imports torchao, which nncf does not declare as a dependency.
"""

from __future__ import annotations

import copy
import importlib.util
import itertools
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np

import edgekit
from edgekit.artifact import Artifact
from edgekit.errors import MissingPluginError, NonFiniteError, UnsupportedModelError, UsageError
from edgekit.evaluation.outputs import difference
from edgekit.pipeline import AsIs, find_format
from edgekit.tensor import Tensor
from edgekit_openvino.library import nncf, openvino
from edgekit_openvino.measure import COMPARED
from edgekit_openvino.models import make_manifest, write_ir
from edgekit_openvino.quiet import quiet
from edgekit_openvino.refusals import ignored_scope, one_of, translated

MODES = {"local": "UNSTRUCTURED_MAGNITUDE_LOCAL", "global": "UNSTRUCTURED_MAGNITUDE_GLOBAL"}
_INSTALL = "pip install 'edgekit-openvino[prune]'"


@attrs.frozen(eq=False)
class Pruned:
    """A pruned module.

    Attributes:
        module: a torch module of the original class.
        tensors: the share of zeros in each pruned tensor, by its name in the module.
        quality: ``sparsity`` (of the pruned tensors), ``sparsity_overall`` (of all parameters), ``output_error``,
            ``cosine`` and ``top1`` of the first output (see `edgekit.evaluation.outputs`), and with `evaluate`
            ``metric_float``, ``metric`` and ``drop``.
        recipe: the options in words.
        example: the sample with which the module is traced.
    """

    module: Any
    tensors: Mapping[str, float]
    quality: Mapping[str, float]
    recipe: str
    example: Any = attrs.field(repr=False)

    def save(self, to: str | os.PathLike[str]) -> Artifact:
        """Convert the module to an IR, and write it as a directory; `quality` is recorded in the manifest."""
        with quiet(), translated("conversion"):
            model = openvino().convert_model(self.module, example_input=self.example)
        return write_ir(model, None, Path(to), self.recipe, lambda _: self.quality)


def prune(
    module: Any,
    samples: Iterable[Any],
    *,
    ratio: float,
    mode: str = "local",
    ignored: Any = (),
    fine_tune: Callable[[Any], object] | None = None,
    evaluate: Callable[[Any], float] | None = None,
) -> Pruned:
    """Prune a copy of a torch module.

    Args:
        module: a torch module.
        samples: inputs of the module: tensors, tuples of positional or mappings of named ones. The module is traced
            with the first, and outputs are compared on at most `measure.COMPARED`.
        ratio: share of the weights to set to zero, between 0 and 1.
        mode: ``local`` prunes this share in each tensor; ``global`` prunes the least weights of all tensors, each
            relative to the tensor's norm.
        ignored: operations to leave unchanged: names, or a mapping with ``names``, ``patterns`` or ``types``.
        fine_tune: called with the masked module, to train it.
        evaluate: returns the module's metric; larger is better.

    Raises:
        UnsupportedModelError: the object is not a torch module, or has no weights to prune; the message names the cure.
        MissingPluginError: torch or torchao is not installed.
        UsageError: an option is invalid, or there are no samples; raised before any work, as is `NonFiniteError`.
        NonFiniteError: a sample or an output is not finite.

    Example:
        >>> pruned = prune(module, [torch.zeros(1, 3, 32, 32)], ratio=0.5)  # doctest: +SKIP
        >>> pruned.quality["sparsity"]  # doctest: +SKIP
        0.5
    """
    torch = _torch()
    _refuse_kind(module, torch)
    one_of("mode", mode, MODES)
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 < ratio < 1:
        raise UsageError(f"ratio={ratio}; choose a share of the weights between 0 and 1, both excluded")
    calls = _samples(samples, torch)
    before = copy.deepcopy(module).eval()
    masked, shares, overall = _masked(copy.deepcopy(module).eval(), calls[0], ratio, mode, ignored)
    if fine_tune is not None:
        fine_tune(masked)
    with quiet(), translated("strip"):
        done = nncf().strip(masked.eval(), do_copy=False, strip_format=nncf().StripFormat.IN_PLACE)
    quality = {"sparsity": shares.pop(""), "sparsity_overall": overall, **_compared(before, done, calls, torch)}
    if evaluate is not None:
        was, now = float(evaluate(before)), float(evaluate(done))
        quality |= {"metric_float": was, "metric": now, "drop": was - now}
    return Pruned(done, shares, quality, f"openvino-prune mode={mode} ratio={ratio:g}", calls[0])


def _masked(module: Any, example: Any, ratio: float, mode: str, ignored: Any) -> tuple[Any, dict[str, float], float]:
    """Return the masked module, the share of zeros by tensor (under "": in all pruned ones), and in all parameters."""
    n = nncf()
    with quiet(), translated("pruning"):
        done = n.prune(
            module, n.PruneMode[MODES[mode]], ratio=ratio, ignored_scope=ignored_scope(ignored), examples_inputs=example
        )
        statistic = n.pruning_statistic(done)
    shares = {each.tensor_name: float(each.pruned_ratio) for each in statistic.pruned_tensors}
    return (
        done,
        dict(sorted(shares.items())) | {"": float(statistic.pruning_ratio)},
        float(statistic.global_pruning_ratio),
    )


def _torch() -> Any:
    for name in ("torch", "torchao"):
        if importlib.util.find_spec(name) is None:
            raise MissingPluginError(f"pruning needs {name}, which is not installed; {_INSTALL}")
    return importlib.import_module("torch")


def _refuse_kind(module: Any, torch: Any) -> None:
    if isinstance(module, torch.nn.Module):
        if not any(parameter.ndim > 1 for parameter in module.parameters()):
            raise UnsupportedModelError(
                f"{type(module).__name__} has no weights of two dimensions; nothing can be pruned"
            )
        return
    what = f"{module.path} ({module.format})" if isinstance(module, Artifact) else type(module).__name__
    raise UnsupportedModelError(
        f"{what}: NNCF prunes torch modules only, no IR and no ONNX model; prune the module that it was converted "
        "from, and convert again (Pruned.save), or give openvino-prune the Hugging Face directory"
    )


def _samples(samples: Iterable[Any], torch: Any) -> list[Any]:
    if not isinstance(samples, Iterable) or isinstance(samples, Mapping | torch.Tensor):
        raise UsageError(f"samples of type {type(samples).__name__}; give an iterable of samples")
    calls = list(itertools.islice(iter(samples), COMPARED))
    if not calls:
        raise UsageError("there are no samples; give at least one, by which the module is traced")
    for number, call in enumerate(calls):
        for tensor in (
            call.values() if isinstance(call, Mapping) else call if isinstance(call, tuple | list) else [call]
        ):
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise NonFiniteError(f"sample {number} holds a NaN or an infinity; mend the data, or leave it out")
    return calls


def _compared(before: Any, after: Any, calls: list[Any], torch: Any) -> dict[str, float]:
    with torch.no_grad():
        return difference(
            [_output(before, call, torch) for call in calls], [_output(after, call, torch) for call in calls]
        )


def _output(module: Any, call: Any, torch: Any) -> Any:
    """Return the module's first output, float64."""
    output = module(**call) if isinstance(call, Mapping) else module(*call) if isinstance(call, tuple) else module(call)
    while not isinstance(output, torch.Tensor):
        output = next(iter(output.values() if isinstance(output, Mapping) else output))
    return output.double().cpu().numpy()


class Prune:
    """Prunes a Hugging Face directory; see `edgekit.pipeline.passes.Pass`."""

    name = "openvino-prune"

    def run(
        self,
        source: Artifact,
        to: Path,
        *,
        ratio: float = 0.3,
        mode: str = "local",
        ignored: Any = (),
        tokens: Iterable[Iterable[int]] | None = None,
    ) -> Artifact:
        """Write the directory with its least weights set to zero.

        Args:
            source: a Hugging Face directory; IR and ONNX models are refused.
            to: the directory to write.
            ratio: see `prune`.
            mode: see `prune`.
            ignored: see `prune`.
            tokens: lists of token ids on which to compare the outputs; None takes seeded random ones.

        Raises:
            UnsupportedModelError: NNCF does not prune the source's format; raised before anything is read.
            MissingPluginError: transformers, torch or torchao is not installed.
            UsageError: an option is invalid.
            ResourceError: the target cannot be written.
            LockedError: another process writes the target.
        """
        torch = _torch()
        if source.format != "hf":
            _refuse_kind(source, torch)
        module = _transformer(source, torch)
        samples = [{"input_ids": torch.tensor([list(ids)])} for ids in tokens or _random_tokens(source)]
        pruned = prune(module, samples, ratio=ratio, mode=mode, ignored=ignored)
        return _write_hf(source, to, pruned)


def _transformer(source: Artifact, torch: Any) -> Any:
    if importlib.util.find_spec("transformers") is None:
        raise MissingPluginError("pruning a Hugging Face directory needs transformers; pip install transformers")
    transformers = importlib.import_module("transformers")
    causal = any("ForCausalLM" in name for name in source.config.get("architectures") or ())
    auto = transformers.AutoModelForCausalLM if causal else transformers.AutoModel
    with quiet(), translated("transformers"):
        # NNCF can trace only eager attention without a cache.
        module = auto.from_pretrained(
            source.path, dtype=torch.float32, attn_implementation="eager", local_files_only=True, use_safetensors=True
        )
    module.config.use_cache = False
    return module.eval()


def _random_tokens(source: Artifact) -> list[list[int]]:
    vocabulary = int(source.config.get("vocab_size", 2))
    tokens: list[list[int]] = np.random.default_rng(0).integers(0, vocabulary, (4, 32)).tolist()
    return tokens


def _write_hf(source: Artifact, to: Path, pruned: Pruned) -> Artifact:
    state = pruned.module.state_dict()
    tensors = {
        name: _zeroed(tensor, (state[name] == 0).numpy()) if name in pruned.tensors and name in state else tensor
        for name, tensor in source.tensors.items()
    }
    if tensors == dict(source.tensors):
        raise UnsupportedModelError(f"{source.path}: none of its tensors has the name that transformers gives it")
    chosen = find_format("hf", to)
    layout = chosen.layout(attrs.evolve(source, tensors=tensors))
    plan = AsIs().plan(layout.slots, None)
    writer = chosen.writer(to, layout, plan, make_manifest(source, pruned.recipe, pruned.quality))
    try:
        for slot, assignment in zip(layout.slots, plan, strict=True):
            values = edgekit.encode(slot.tensor.float32().reshape(slot.shape), assignment.precision)
            writer.write(attrs.evolve(values, name=assignment.name))
        writer.commit()
    finally:
        writer.close()
    return chosen.open(to)


def _zeroed(tensor: Any, zero: Any) -> Tensor:
    """Return the tensor with the pruned values set to zero, in its own dtype."""
    values = tensor.read().copy()
    values[zero] = 0
    return Tensor.of(tensor.name, values, tensor.dtype)


__all__ = ["MODES", "Prune", "Pruned", "prune"]
