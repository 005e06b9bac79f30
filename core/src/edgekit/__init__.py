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
    from edgekit.encoding import decode as decode
    from edgekit.encoding import encode as encode
    from edgekit.errors import EdgekitError as EdgekitError
    from edgekit.evaluation import compare as compare
    from edgekit.evaluation import evaluate as evaluate
    from edgekit.hookspecs import hookimpl as hookimpl
    from edgekit.pipeline import convert as convert
    from edgekit.pipeline import open_artifact as open
    from edgekit.pipeline import quantize as quantize
    from edgekit.plugin import installed as plugins
    from edgekit.precision import Precision as Precision
    from edgekit.precision import Tier as Tier
    from edgekit.recipe import Recipe as Recipe
    from edgekit.runtime import load as load
    from edgekit.tensor import QuantizedTensor as QuantizedTensor
    from edgekit.tensor import Tensor as Tensor

_WHERE = {
    "Artifact": "edgekit.artifact:Artifact",
    "EdgekitError": "edgekit.errors:EdgekitError",
    "Precision": "edgekit.precision:Precision",
    "QuantizedTensor": "edgekit.tensor:QuantizedTensor",
    "Recipe": "edgekit.recipe:Recipe",
    "Tensor": "edgekit.tensor:Tensor",
    "Tier": "edgekit.precision:Tier",
    "compare": "edgekit.evaluation:compare",
    "convert": "edgekit.pipeline:convert",
    "decode": "edgekit.encoding:decode",
    "encode": "edgekit.encoding:encode",
    "evaluate": "edgekit.evaluation:evaluate",
    "hookimpl": "edgekit.hookspecs:hookimpl",
    "load": "edgekit.runtime:load",
    "open": "edgekit.pipeline:open_artifact",
    "plugins": "edgekit.plugin:installed",
    "quantize": "edgekit.pipeline:quantize",
    "transcode": "edgekit.bridges:transcode",
}
__all__ = [*_WHERE, "__version__"]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("edgekit-core")
    if name in _WHERE:
        module, _, attribute = _WHERE[name].partition(":")
        found = getattr(importlib.import_module(module), attribute)
        globals()[name] = found
        return found
    try:
        return importlib.import_module(f"edgekit.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"edgekit.{name}":
            raise
    raise AttributeError(f"module 'edgekit' has no attribute {name!r}; it has {', '.join(sorted(_WHERE))}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
