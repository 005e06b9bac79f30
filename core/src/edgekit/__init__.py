"""edgekit: put trained models on edge devices, and prove the result right.

    import edgekit as ek

    source = ek.open("models/qwen2.5-0.5b")                # any format that an installed plugin reads
    small = ek.quantize(source, "Q4_K_M", to="qwen.gguf")  # streams, resumes, writes atomically
    print(ek.compare(source, small))                       # size, error per tensor

Names are imported when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgekit.artifact import Artifact as Artifact
    from edgekit.bridges import transcode as transcode
    from edgekit.encoding._codecs import decode as decode
    from edgekit.encoding._codecs import encode as encode
    from edgekit.errors import EdgekitError as EdgekitError
    from edgekit.evaluation import compare as compare
    from edgekit.evaluation import evaluate as evaluate
    from edgekit.evaluation.fitting import fit as fit
    from edgekit.evaluation.fitting import sensitivity as sensitivity
    from edgekit.evaluation.moments import calibrate as calibrate
    from edgekit.pipeline._conversion import convert as convert
    from edgekit.pipeline._conversion import open_artifact
    from edgekit.pipeline._conversion import quantize as quantize
    from edgekit.pipeline.merging import merge as merge
    from edgekit.pipeline.rounding import Calibration as Calibration
    from edgekit.plugin._registry import installed
    from edgekit.plugin.hookspecs import hookimpl as hookimpl
    from edgekit.precision import Precision as Precision
    from edgekit.precision import Tier as Tier
    from edgekit.recipe import Recipe as Recipe
    from edgekit.runtime.protocols import load as load
    from edgekit.tensor import QuantizedTensor as QuantizedTensor
    from edgekit.tensor import Tensor as Tensor

    # Under another name than their own: an import does not export these to type checkers.
    open = open_artifact
    plugins = installed
    __version__: str

_WHERE = {
    "Artifact": "edgekit.artifact:Artifact",
    "Calibration": "edgekit.pipeline.rounding:Calibration",
    "EdgekitError": "edgekit.errors:EdgekitError",
    "Precision": "edgekit.precision:Precision",
    "QuantizedTensor": "edgekit.tensor:QuantizedTensor",
    "Recipe": "edgekit.recipe:Recipe",
    "Tensor": "edgekit.tensor:Tensor",
    "Tier": "edgekit.precision:Tier",
    "calibrate": "edgekit.evaluation.moments:calibrate",
    "compare": "edgekit.evaluation:compare",
    "convert": "edgekit.pipeline._conversion:convert",
    "decode": "edgekit.encoding._codecs:decode",
    "encode": "edgekit.encoding._codecs:encode",
    "evaluate": "edgekit.evaluation:evaluate",
    "fit": "edgekit.evaluation.fitting:fit",
    "hookimpl": "edgekit.plugin.hookspecs:hookimpl",
    "load": "edgekit.runtime.protocols:load",
    "merge": "edgekit.pipeline.merging:merge",
    "open": "edgekit.pipeline._conversion:open_artifact",
    "plugins": "edgekit.plugin._registry:installed",
    "quantize": "edgekit.pipeline._conversion:quantize",
    "sensitivity": "edgekit.evaluation.fitting:sensitivity",
    "transcode": "edgekit.bridges:transcode",
}
__all__ = [
    "Artifact",
    "Calibration",
    "EdgekitError",
    "Precision",
    "QuantizedTensor",
    "Recipe",
    "Tensor",
    "Tier",
    "__version__",
    "calibrate",
    "compare",
    "convert",
    "decode",
    "encode",
    "evaluate",
    "fit",
    "hookimpl",
    "load",
    "merge",
    "open",
    "plugins",
    "quantize",
    "sensitivity",
    "transcode",
]


if not TYPE_CHECKING:  # a type checker knows the names above, and no others

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            from importlib.metadata import version

            return version("edgekit-core")
        if name in _WHERE:
            module, _, attribute = _WHERE[name].partition(":")
            attribute_value = getattr(importlib.import_module(module), attribute)
            globals()[name] = attribute_value
            return attribute_value
        try:
            return importlib.import_module(f"edgekit.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"edgekit.{name}":
                raise
        raise AttributeError(f"module 'edgekit' has no attribute {name!r}; it has {', '.join(sorted(_WHERE))}")


def __dir__() -> list[str]:
    return sorted(__all__)
