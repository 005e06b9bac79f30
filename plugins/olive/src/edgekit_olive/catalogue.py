"""The passes of Olive: what each takes, needs and is set with, and whether it can run here.

The options are Olive's own, as ``catalogue.json`` has them from olive-ai 0.13.0 (written by
``tests/oracles/make_olive_catalogue.py``), so that neither the list nor a check of options imports Olive.
"""

from __future__ import annotations

import difflib
import functools
import importlib.util
import json
import os
from collections.abc import Mapping
from importlib import metadata
from importlib.resources import files
from typing import Any

import attrs

from edgekit.errors import UsageError

#: What a pass that needs samples is given.
CALIBRATION = "calibration=, an .npz file or a text"
INSTALL = "pip install 'edgekit-olive[olive]'"
_PYTHON: Mapping[str, Any] = {
    "bool": bool,
    "int": int,
    "float": (int, float),
    "str": str,
    "list": (list, tuple),
    "dict": dict,
}
_ONNX, _HF = ("onnx", "onnx-portable"), ("hf",)
#: Passes that take another format than the folder of their module says.
_TAKES = {
    **dict.fromkeys(("OnnxConversion", "ModelBuilder", "MobiusBuilder", "OptimumConversion"), _HF),
    **dict.fromkeys(("OpenVINOConversion", "OpenVINOWeightCompression"), (*_HF, *_ONNX)),
    **dict.fromkeys(("OpenVINOQuantization", "OpenVINOQuantizationWithAccuracy"), (*_ONNX, "openvino")),
    **dict.fromkeys(("OpenVINOEncapsulation", "OpenVINOIoUpdate"), ("openvino",)),
    **dict.fromkeys(("OpenVINOOptimumConversion", "QairtPipelinePass", "QairtPreparation"), _HF),
    "QuarkQuantization": (*_HF, *_ONNX),
    "QNNConversion": _ONNX,
}
#: Module -> the distribution that has it.
_DISTRIBUTIONS = {
    "aimet_onnx": "aimet-onnx", "auto_gptq": "auto-gptq", "awq": "autoawq", "bitsandbytes": "bitsandbytes",
    "datasets": "datasets", "diffusers": "diffusers", "gptqmodel": "gptqmodel", "mobius": "mobius-ai",
    "modelopt": "nvidia-modelopt[onnx]", "neural_compressor": "neural-compressor", "nncf": "nncf",
    "openvino": "openvino", "optimum": "optimum", "peft": "peft", "psutil": "psutil", "quark": "amd-quark",
    "slicegpt": "slicegpt", "accelerate": "accelerate", "sklearn": "scikit-learn",
    "onnxruntime_genai": "onnxruntime-genai", "scipy": "scipy", "qairt": "qairt-dev[onnx]", "qti": "qairt-dev[onnx]",
    "model_generate": "model_generate of AMD's Ryzen AI software",
}  # fmt: skip
_FINE_TUNING = ("peft", "accelerate", "datasets")
#: The modules that a pass imports beyond olive-ai's own dependencies and onnxruntime, whether Olive declares them or
#: not. Some that it declares are left out, because the pass runs without them (bitsandbytes for OnnxBnb4Quantization).
_NEEDS = {
    "AimetQuantization": ("aimet_onnx",),
    "AutoAWQQuantizer": ("awq",),
    **dict.fromkeys(("LoRA", "LoHa", "LoKr", "DoRA"), _FINE_TUNING),
    **dict.fromkeys(("LoftQ", "QLoRA"), (*_FINE_TUNING, "bitsandbytes")),
    "MergeAdapterWeights": ("peft",),
    "GptqQuantizer": ("auto_gptq", "optimum"),
    "GptqModel": ("gptqmodel", "optimum"),
    **dict.fromkeys(("IncDynamicQuantization", "IncQuantization", "IncStaticQuantization"), ("neural_compressor",)),
    "ModelBuilder": ("onnxruntime_genai",),
    "MobiusBuilder": ("mobius",),
    **dict.fromkeys(("NVModelOptGraphSurgery", "NVModelOptQuantization"), ("modelopt",)),
    **dict.fromkeys(("OpenVINOConversion", "OpenVINOEncapsulation", "OpenVINOIoUpdate"), ("openvino",)),
    "OpenVINOOptimumConversion": ("openvino", "nncf", "optimum"),
    **dict.fromkeys(("OpenVINOQuantization", "OpenVINOQuantizationWithAccuracy"), ("openvino", "nncf", "sklearn")),
    "OpenVINOWeightCompression": ("openvino", "nncf"),
    **dict.fromkeys(("OptimumConversion", "OptimumMerging"), ("optimum",)),
    "OrtSessionParamsTuning": ("psutil",),
    **dict.fromkeys(("QairtEncapsulation", "QairtGenAIBuilder", "QairtPipelinePass", "QairtPreparation"), ("qairt",)),
    "QairtMHA2SHA": ("qti",),
    "QuarkQuantization": ("quark",),
    "SDLoRA": ("diffusers", "peft", "accelerate"),
    "SelectiveMixedPrecision": ("accelerate",),
    "SliceGPT": ("slicegpt",),
    **dict.fromkeys(("VitisGenerateModelLLM", "VitisGenerateModelSD"), ("model_generate",)),
}
#: Passes that call programs of a vendor's kit, found by an environment variable.
_KITS = dict.fromkeys(("QNNConversion", "QNNModelLibGenerator", "QNNContextBinaryGenerator"), "QNN_SDK_ROOT")
_PARTS = "it takes a model of several parts (Olive's CompositeModel), which no format of edgekit's is"
#: Why a pass cannot run, whatever is installed.
_NEVER = {
    **dict.fromkeys(("ComposeOnnxModels", "StaticLLM", "OptimumMerging"), _PARTS),
    "EPContextBinaryGenerator": "it compiles for Qualcomm's NPU, with the provider QNNExecutionProvider",
    "SDLoRA": "it takes a diffusion pipeline, which no format of edgekit's is",
    "OpenVINOEncapsulation": "it compiles for Intel's devices, with the provider OpenVINOExecutionProvider",
    "SpinQuant": "it trains on a text that it downloads (Salesforce/wikitext), and takes no other",
    "QairtGenAIBuilder": "it takes a model that QairtPreparation made, which no format of edgekit's is",
}
#: Passes that compute on a CUDA device, and the file that Linux has where there is one.
_CUDA = ("LoftQ",)
_CUDA_FILE = "/dev/nvidiactl"
#: Passes that fail with versions of other packages that are newer than they are: distribution, the first such version,
#: and how.
_OUTDATED = {
    "ModelBuilder": (
        "onnxruntime-genai",
        (0, 18),
        "it imports onnxruntime_genai.models.quantized_model, which onnxruntime-genai 0.18 no longer has",
    ),
    "OnnxConversion": (
        "transformers",
        (5, 0),
        "both of its exporters fail on the masks and the caches of transformers 5 (edgekit convert needs neither)",
    ),
    "SparseGPT": ("transformers", (5, 0), "it calls decoder layers as transformers 4 did, without their rotations"),
}


@attrs.frozen
class Option:
    """An option of a pass, as Olive declares it.

    Attributes:
        name: its name.
        types: the types that it takes: bool, int, float, str, list, dict, or any.
        values: the values that it takes; empty for any of the types.
        default: its default; None also where the default depends on other options.
        required: whether it has no default.
        about: what it is for.
    """

    name: str
    types: tuple[str, ...]
    values: tuple[Any, ...] = ()
    default: Any = None
    required: bool = False
    about: str = ""

    @property
    def kind(self) -> str:
        """What it takes, in words."""
        return " or ".join(map(json.dumps, self.values)) if self.values else " or ".join(self.types)

    def takes(self, value: Any) -> bool:
        """Return whether the option takes a value; None stands for the default."""
        if value is None or "any" in self.types:
            return not (value is None and self.required)
        if self.values:
            return value in self.values
        return any(_is(value, kind) for kind in self.types)


def _is(value: Any, kind: str) -> bool:
    return isinstance(value, _PYTHON[kind]) and not (isinstance(value, bool) and kind in ("int", "float"))


@attrs.frozen
class Entry:
    """A pass of Olive's.

    Attributes:
        name: Olive's name of it.
        module: its module.
        summary: what it does, in Olive's words.
        providers: the execution providers that it is made for; empty for any.
        data: whether it takes samples: ``dataset_required``, ``dataset_optional`` or ``dataset_not_required``.
        options: its options by name.
        takes: the formats of the artifacts that it takes.
        needs: modules that it imports beyond olive-ai's own dependencies.
    """

    name: str
    module: str
    summary: str
    providers: tuple[str, ...]
    data: str
    options: Mapping[str, Option] = attrs.field(repr=False)
    takes: tuple[str, ...]
    needs: tuple[str, ...]

    @property
    def data_options(self) -> tuple[str, ...]:
        """The options that take a set of samples, which ``calibration`` fills."""
        return tuple(name for name in self.options if name.endswith("data_config") and name != "eval_data_config")

    def check(self, given: Mapping[str, Any], calibrated: bool) -> None:
        """Raise if an option is unknown, missing or of a wrong type.

        Args:
            given: the options by name.
            calibrated: whether there are samples.

        Raises:
            UsageError: names the option, and what is allowed.
        """
        for name, value in given.items():
            if name not in self.options:
                near = difflib.get_close_matches(name, self.options, n=1)
                hint = f", did you mean {near[0]!r}?" if near else ""
                raise UsageError(
                    f"olive:{self.name} has no option {name!r}{hint}; it has {', '.join(self.options) or 'none'}"
                )
            if not self.options[name].takes(value):
                raise UsageError(f"olive:{self.name}: {name}={value!r:.80}; it takes {self.options[name].kind}")
        for option in self.options.values():
            samples = option.name in self.data_options
            if option.required and option.name not in given and not (samples and calibrated):
                cure = CALIBRATION if samples else f"{option.name} ({option.kind})"
                raise UsageError(f"olive:{self.name} needs {cure}")

    @property
    def conditions(self) -> str:
        """What has to be there for the pass to run, or why it never runs, in words; empty for olive-ai alone."""
        if self.name in _NEVER:
            return f"does not run: {_NEVER[self.name]}"
        needs = [_DISTRIBUTIONS[name] for name in self.needs]
        needs += ["a CUDA device"] if self.name in _CUDA else []
        needs += [f"a vendor's kit at {_KITS[self.name]}"] if self.name in _KITS else []
        if self.name in _OUTDATED:
            distribution, first, how = _OUTDATED[self.name]
            needs.append(f"{distribution} before {'.'.join(map(str, first))} ({how})")
        return ", ".join(needs)

    def obstacle(self) -> str:
        """Return why the pass cannot run here; empty if nothing is in its way."""
        if importlib.util.find_spec("olive") is None:
            return f"olive-ai is not installed; {INSTALL}"
        if self.name in _NEVER:
            return _NEVER[self.name]
        missing = [name for name in self.needs if importlib.util.find_spec(name) is None]
        if missing:
            names = " ".join(_DISTRIBUTIONS[name] for name in missing)
            return (
                f"{', '.join(missing)} is not installed; pip install {names}"
                if len(missing) == 1
                else (f"{', '.join(missing)} are not installed; pip install {names}")
            )
        if self.name in _KITS and not os.environ.get(_KITS[self.name]):
            return f"it calls programs of a vendor's kit, and {_KITS[self.name]} is not set"
        if self.name in _CUDA and not os.path.exists(_CUDA_FILE):
            return "it computes on a CUDA device, and there is none"
        return _outdated(self.name)


def _outdated(name: str) -> str:
    if name not in _OUTDATED:
        return ""
    distribution, first, how = _OUTDATED[name]
    installed = tuple(int(part) for part in metadata.version(distribution).split(".")[:2] if part.isdigit())
    return how if installed >= first else ""


@functools.cache
def entries() -> Mapping[str, Entry]:
    """Return every pass by Olive's name."""
    read = json.loads(files("edgekit_olive").joinpath("catalogue.json").read_text("utf-8"))
    return {name: _entry(name, record) for name, record in read["passes"].items()}


def _entry(name: str, record: Mapping[str, Any]) -> Entry:
    options = {key: Option(key, **_tuples(value)) for key, value in record["options"].items()}
    return Entry(
        name, record["module"], record["summary"], tuple(record["providers"]), record["data"], options,
        _takes(name, record["module"]), _NEEDS.get(name, ()),
    )  # fmt: skip


def _tuples(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if key in ("types", "values") else value for key, value in record.items()}


def _takes(name: str, module: str) -> tuple[str, ...]:
    if name in _TAKES:
        return _TAKES[name]
    return _HF if ".pytorch." in module or ".diffusers." in module else _ONNX


__all__ = ["CALIBRATION", "INSTALL", "Entry", "Option", "entries"]
