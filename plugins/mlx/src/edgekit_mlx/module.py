"""Loads an artifact into a module of mlx-lm; an encoder, which mlx-lm lacks, into a module for `MlxOps`.

edgekit's readers read the weights and check every length and offset, so that native code never maps or parses a file.
Artifacts of any format can be run and trained if mlx-lm supports the family: quantized weights stay quantized if MLX
has their precision, and are decoded otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeGuard, cast

import attrs
import numpy as np

from edgekit.architectures.blocks import NO_PREDICTION, Network, calls
from edgekit.architectures.ops import Ops
from edgekit.artifact import Artifact
from edgekit.errors import InvalidFileError, MemoryShortageError, UnsupportedModelError
from edgekit.files.memory import available, refuse_shortage
from edgekit.tensor import AnyTensor, EncodedTensor, Tensor
from edgekit.typing import Array
from edgekit_mlx import families
from edgekit_mlx.bridge import carried_over
from edgekit_mlx.format import MlxFormat
from edgekit_mlx.library import core, has_lm, lm, nn, to_mlx, tree_flatten
from edgekit_mlx.modes import mode_of
from edgekit_mlx.ops import MlxOps, encoder_of, leaves, modules_of

#: Dtypes in which a model can be computed.
DTYPES = ("float32", "float16", "bfloat16")


@attrs.frozen(eq=False)
class Loaded:
    """A model in memory.

    Attributes:
        module: an ``mlx_lm.models.<type>.Model``; an encoder's weights by canonical name (`modules_of`).
        context: the largest number of tokens that mlx-lm computes as the model was trained.
        quantized: number of modules with quantized weights.
        dtype: the dtype of the hidden states.
        encoder: the blocks of an encoder; None for a decoder.
    """

    module: Any
    context: int
    quantized: int
    dtype: str
    encoder: Network | None = None

    @property
    def vocab(self) -> int:
        """The number of token ids."""
        if self.encoder is not None:
            return self.encoder.vocab
        args = self.module.args
        text = getattr(args, "text_config", None)
        if isinstance(text, Mapping):
            return int(text["vocab_size"])
        return int((args if text is None else text).vocab_size)

    @property
    def body(self) -> Any:
        """The module that returns the last hidden states [batch, n, width] of token ids [batch, n]."""
        language = getattr(self.module, "language_model", self.module)
        return language.backbone if hasattr(language, "backbone") else language.model

    def states(self, ids: Any) -> Any:
        """Return the last hidden states [batch, n, width] of whole texts, of token ids [batch, n]."""
        if self.encoder is None:
            return self.body(ids)
        # The operations that `MlxOps` lacks are not needed: `encoder_of` checks that.
        return self.encoder.states(cast(Ops[Any], MlxOps(leaves(self.module), ids)))


def load(artifact: Artifact, dtype: str | None = None, *, decoded: bool = False) -> Loaded:
    """Load an artifact into a module; must be called in the thread that computes with it.

    Args:
        artifact: a model of a family that mlx-lm supports.
        dtype: ``float32``, ``float16`` or ``bfloat16``, in which to compute; None keeps the weights' dtypes.
        decoded: whether to decode quantized weights to `dtype` when they are read, as the reference does.

    Raises:
        UnsupportedModelError: edgekit or mlx-lm does not support the family.
        MemoryShortageError: the model is larger than the free memory; raised before anything is read.
    """
    refuse_too_large(artifact, dtype, decoded)
    try:
        known = artifact.model
    except UnsupportedModelError:
        if artifact.format != "mlx":
            raise
        return _foreign(artifact, dtype)
    encoder = encoder_of(known.config)
    if encoder is not None:
        module = modules_of(encoder.shapes(), calls(encoder))
        tensors = {name: carried_over(known.tensors[name]) for name, _ in encoder.shapes()}
    else:
        module = _module(families.mlx_config(known.config, str(artifact.path)), artifact)
        tensors = {slot.name: slot.tensor for slot in MlxFormat().layout(artifact).slots}
    quantized = {} if decoded else {n: t for n, t in tensors.items() if _is_mlx(t)}
    _fill(module, tensors, quantized, dtype, artifact)
    return Loaded(module, families.faithful_context(known.config), len(quantized), _dtype(module), encoder)


def load_decoder(artifact: Artifact, dtype: str | None = None, *, decoded: bool = False) -> Loaded:
    """Load a model that predicts next tokens, as `load` does.

    Raises:
        UnsupportedModelError: as `load`; or the model is an encoder, which is refused before anything is read.
    """
    try:
        encoder = encoder_of(artifact.model.config)
    except UnsupportedModelError:
        encoder = None  # of a family that only mlx-lm has, or none at all: `load` says which
    if encoder is not None:
        raise UnsupportedModelError(f"{artifact.path}: {NO_PREDICTION}")
    return load(artifact, dtype, decoded=decoded)


def _is_mlx(tensor: AnyTensor) -> TypeGuard[EncodedTensor]:
    return isinstance(tensor, EncodedTensor) and tensor.precision.convention == "mlx"


def refuse_too_large(artifact: Artifact, dtype: str | None = None, decoded: bool = False, copies: int = 1) -> None:
    """Raise an error if a model's weights, that many times, are larger than the free memory.

    Raises:
        MemoryShortageError: the weights do not fit; the message gives both sizes.
    """
    size = copies * _bytes(artifact.tensors.values(), dtype, decoded)
    free = available()
    if free is not None and size > free:
        raise MemoryShortageError(
            f"{artifact.path}: its weights take {size:,} bytes of memory, and {free:,} are left; choose a model or a "
            "quantization that is smaller"
        )


def _bytes(tensors: Iterable[AnyTensor], dtype: str | None, decoded: bool) -> int:
    width = 4 if dtype == "float32" else 2
    whole = sum(width * t.size if (decoded or (dtype and isinstance(t, Tensor))) else t.nbytes for t in tensors)
    return int(whole)


def _module(config: Mapping[str, Any], artifact: Artifact) -> Any:
    """Return a module of mlx-lm's class for a config.json, without weights."""
    model_type = {"mistral": "llama", "gemma3": "gemma3_text"}.get(config["model_type"], config["model_type"])
    if not has_lm(f"models.{model_type}"):
        raise UnsupportedModelError(
            f"{artifact.path}: the installed mlx-lm has no model of type {model_type}; upgrade it, or choose another "
            "runtime"
        )
    architecture = lm(f"models.{model_type}")
    module = architecture.Model(architecture.ModelArgs.from_dict(dict(config)))
    if hasattr(module, "sanitize"):  # gemma3's class decides by the tensors' names whether the output is tied
        tied = config.get("tie_word_embeddings", True)
        module.sanitize({} if tied else {"lm_head.weight": None})
    return module


def _fill(
    module: Any,
    tensors: Mapping[str, AnyTensor],
    quantized: Mapping[str, EncodedTensor],
    dtype: str | None,
    artifact: Artifact,
) -> None:
    """Load the weights into the module, tensor by tensor."""
    mx = core()
    if quantized:
        formats = {name.removesuffix(".weight"): mode_of(tensor.precision) for name, tensor in quantized.items()}
        nn().quantize(module, class_predicate=lambda path, _: formats.get(path, False))
    weights = []
    for name, array in _arrays(tensors, quantized, dtype):
        weights.append((name, array))
    module.eval()
    try:
        module.load_weights(weights, strict=True)
        mx.eval(module.parameters())
    except ValueError as error:
        raise InvalidFileError(
            f"{artifact.path}: its tensors are not those of mlx-lm's model ({error!s:.300}); convert it again"
        ) from error
    except (MemoryError, RuntimeError) as error:
        refuse_shortage(error, f"{artifact.path}: loading it")
        raise


def _arrays(
    tensors: Mapping[str, AnyTensor], quantized: Mapping[str, EncodedTensor], dtype: str | None
) -> Iterator[tuple[str, Any]]:
    mx = core()
    for name, tensor in tensors.items():
        if name not in quantized:
            yield name, _floats(tensor, dtype)
            continue
        module = name.removesuffix(".weight")
        for part, values in quantized[name].read().parts.items():
            array = to_mlx(_shaped(values, tensor))
            if dtype and mx.issubdtype(array.dtype, mx.floating):
                array = array.astype(getattr(mx, dtype))
            mx.eval(array)
            yield f"{module}.{part}", array


def _shaped(values: Array, tensor: AnyTensor) -> Array:
    """Return a part reshaped to the tensor's leading dimensions, which readers count as rows."""
    if values.ndim != 2:
        return np.ascontiguousarray(values)
    return np.ascontiguousarray(values).reshape(*tensor.shape[:-1], values.shape[-1])


def _floats(tensor: AnyTensor, dtype: str | None) -> Any:
    mx = core()
    if isinstance(tensor, Tensor) and tensor.dtype == "bfloat16":
        array = mx.array(np.ascontiguousarray(tensor.read())).view(mx.bfloat16)
    elif isinstance(tensor, Tensor) and tensor.dtype in ("float16", "float32"):
        array = mx.array(np.ascontiguousarray(tensor.read()))
    else:
        array = mx.array(np.ascontiguousarray(tensor.float32().reshape(tensor.shape)))
    if dtype:
        array = array.astype(getattr(mx, dtype))
    mx.eval(array)
    return array


def _dtype(module: Any) -> str:
    """Return the dtype of the hidden states: the one to which MLX promotes the dtypes of all weights."""
    mx = core()
    values = [value for _, value in tree_flatten()(module.parameters()) if mx.issubdtype(value.dtype, mx.floating)]
    kinds = {str(value.dtype).rpartition(".")[2] for value in values}
    return kinds.pop() if len(kinds) == 1 else "float32"


def _foreign(artifact: Artifact, dtype: str | None) -> Loaded:
    """Load a model of a family that edgekit does not support with mlx-lm's loader; the headers are checked already."""
    if "model_file" in artifact.config:
        raise UnsupportedModelError(
            f"{artifact.path}: its config.json names a program to run (model_file), which edgekit never does; "
            "run it with mlx-lm, where you trust it"
        )
    directory = artifact.path if artifact.path.is_dir() else artifact.path.parent
    try:
        module, config = lm("utils").load_model(directory, lazy=False, strict=True)
    except (ValueError, TypeError, KeyError) as error:
        raise UnsupportedModelError(f"{artifact.path}: mlx-lm does not load it: {error!s:.300}") from error
    if dtype:
        module.set_dtype(getattr(core(), dtype))
    inner = config.get("text_config") or config
    count = sum(f"{name.removesuffix('.weight')}.scales" in artifact.tensors for name in artifact.tensors)
    return Loaded(module, int(inner.get("max_position_embeddings") or 4096), count, _dtype(module))


__all__ = ["DTYPES", "Loaded", "load", "load_decoder", "refuse_too_large"]
