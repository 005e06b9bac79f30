"""The pass ``openvino-compress``: `nncf.compress_weights` on a whole IR, with all its options.

The combination of options is checked before anything is read. The change of the model's outputs is measured on the
calibration samples, or on seeded noise if there are none, and recorded in the manifest.

Source: nncf 3.4.0, `quantize_model.py` and `check_user_compression_configuration`. A test compares the refused
combinations with the library's (tests/oracles/test_openvino_compress.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from edgekit.artifact import Artifact
from edgekit.errors import UnsupportedModelError, UsageError
from edgekit.evaluation.samples import CONTEXT, Feed, Samples, read
from edgekit.precision import find_precision
from edgekit_openvino.library import nncf
from edgekit_openvino.measure import compare
from edgekit_openvino.models import low_bit, op_names, read_file, read_ir, rename_new, write_ir
from edgekit_openvino.modes import BACKUPS, FALLBACKS, INT8, MODES, SENSITIVITIES, group_size, mode_name
from edgekit_openvino.quiet import quiet
from edgekit_openvino.refusals import ignored_scope, known, one_of, translated
from edgekit_openvino.samples import inputs_of, probes

#: Options that need samples, and those of them that floating-point modes do not support.
_DATA_AWARE = ("awq", "scale_estimation", "gptq", "lora_correction")
_FLOATS = frozenset({"MXFP4", "MXFP8_E4M3", "FP8_E4M3", "FP4", "NVFP4"})
_CODEBOOKS = frozenset({"CB4", "CODEBOOK", "ADAPTIVE_CODEBOOK"})
_FIXED_GROUPS = {"MXFP4": 32, "MXFP8_E4M3": 32, "NVFP4": 16}


@attrs.frozen(kw_only=True)
class Options:
    """The options of `nncf.compress_weights`; None leaves the choice to NNCF.

    Attributes:
        mode: name of NNCF's mode.
        ratio: share of the weights that get `mode`; the others get `backup_mode`.
        group_size: number of weights that share a scale; -1 for one scale per row.
        fallback: treatment of rows that the group size does not divide: ``error``, ``ignore`` or ``adjust``.
        all_layers: whether embeddings and the last layer get `mode` too.
        ignored: operations to leave unchanged: names, or a mapping with ``names``, ``patterns`` or ``types``.
        backup_mode: ``none``, ``int8_sym``, ``int8_asym``, ``mxfp8_e4m3`` or ``fp8_e4m3``.
        sensitivity: the metric by which the layers that get `backup_mode` are chosen.
        awq: whether to scale channels by their activations, or, without samples, by the weights.
        scale_estimation: whether to fit the scales to the samples.
        gptq: whether to round with error feedback (GPTQ).
        lora_correction: whether to add a low-rank product of matrices that compensates the error.
        lora_rank: rank of that product.
        codebook: the levels of mode ``CODEBOOK``, ascending.
        subset_size: number of samples to use.
    """

    mode: str
    ratio: float | None = None
    group_size: int | None = None
    fallback: str = "error"
    all_layers: bool | None = None
    ignored: Any = ()
    backup_mode: str | None = None
    sensitivity: str | None = None
    awq: bool | None = None
    scale_estimation: bool | None = None
    gptq: bool | None = None
    lora_correction: bool | None = None
    lora_rank: int | None = None
    codebook: Sequence[float] | None = None
    subset_size: int = 128

    @classmethod
    def of(cls, mode: str, sampled: bool = False, **given: Any) -> Options:
        """Return the checked options.

        Args:
            mode: a mode of NNCF, in upper or lower case, or a precision of such a mode (``openvino:int4-sym-g64``).
            sampled: whether there are samples of the input.
            given: the other attributes.

        Raises:
            UsageError: NNCF does not support the combination; the message names the cure.
        """
        known(given, cls, "openvino-compress", "calibration", "context")
        for name in ("backup_mode", "sensitivity", "fallback"):
            if isinstance(given.get(name), str):
                given[name] = given[name].lower()
        if ":" in mode:
            precision = find_precision(mode)
            mode, given["group_size"] = mode_name(precision), _agreed(given.get("group_size"), group_size(precision))
            given["group_size"] = None if mode in INT8 else given["group_size"]
        options = cls(mode=one_of("mode", mode.upper(), MODES), **given)
        options._check(sampled)
        return options

    def _check(self, sampled: bool) -> None:
        one_of("backup_mode", self.backup_mode, BACKUPS)
        one_of("sensitivity", self.sensitivity, SENSITIVITIES)
        one_of("fallback", self.fallback, FALLBACKS)
        if self.ratio is not None and not 0 <= self.ratio <= 1:
            raise UsageError(f"ratio={self.ratio}; choose a share of the weights between 0 and 1")
        for name, value in (("subset_size", self.subset_size), ("lora_rank", self.lora_rank)):
            if value is not None and value < 1:
                raise UsageError(f"{name}={value}; choose 1 or more")
        if self.mode in INT8:
            self._check_int8(sampled)
        else:
            self._check_groups()
        if self.sensitivity is not None and self.ratio in (None, 1):
            raise UsageError("sensitivity chooses which layers get the backup mode; give a ratio below 1 as well")
        self._check_samples(sampled)
        self._check_codebook()

    def _check_int8(self, sampled: bool) -> None:
        """Raise `UsageError` for options that INT8 modes lack: they quantize every layer, per row, without data."""
        wrong = [name for name in ("all_layers", "backup_mode", "sensitivity", *_DATA_AWARE) if self._given(name)]
        wrong += ["ratio"] if self.ratio not in (None, 0, 1) else []
        wrong += ["group_size"] if self.group_size not in (None, 0, -1) else []
        wrong += ["calibration"] if sampled else []
        if wrong:
            raise UsageError(
                f"{self.mode} compresses all layers with one scale a row, without data: it takes no "
                f"{', '.join(wrong)}; leave it out, or choose INT4_SYM or INT4_ASYM"
            )

    def _check_groups(self) -> None:
        size, fixed = self.group_size, _FIXED_GROUPS.get(self.mode)
        if fixed and size not in (None, fixed):
            raise UsageError(f"{self.mode} has groups of {fixed}, not of {size}; leave group_size out")
        if size is not None and size != -1 and size < 1:
            raise UsageError(f"group_size={size}; choose -1 for one scale a row, or a size that divides the rows")
        if fixed and self.fallback == "adjust":
            raise UsageError(f"{self.mode} has groups of {fixed} only; choose fallback=error or fallback=ignore")

    def _check_samples(self, sampled: bool) -> None:
        asked = [name for name in _DATA_AWARE if getattr(self, name)]
        if asked and self.mode in _FLOATS:
            raise UsageError(f"{', '.join(asked)} cannot be had with {self.mode}; choose an integer mode, NF4 or CB4")
        if self.gptq and self.lora_correction:
            raise UsageError("gptq and lora_correction exclude each other; choose one of them")
        if self.lora_correction and self.mode in _CODEBOOKS:
            raise UsageError(f"lora_correction cannot be had with {self.mode}; choose INT4_SYM, INT4_ASYM or NF4")
        # AWQ alone has a variant without data.
        needed = [name for name in asked if name != "awq"]
        needed += ["sensitivity"] if self.sensitivity not in (None, "weight_quantization_error") else []
        needed += ["mode=ADAPTIVE_CODEBOOK"] if self.mode == "ADAPTIVE_CODEBOOK" else []
        if needed and not sampled:
            raise UsageError(f"{', '.join(needed)}: this needs samples of the model's input; give calibration=")

    def _check_codebook(self) -> None:
        if (self.mode == "CODEBOOK") != (self.codebook is not None):
            raise UsageError(f"mode={self.mode}: CODEBOOK takes a codebook, and no other mode does")
        if self.codebook is not None:
            levels = np.asarray(self.codebook, np.float32)
            if levels.ndim != 1 or levels.size < 2 or not (np.diff(levels) > 0).all():
                raise UsageError("codebook: at least two levels are needed, each larger than the one before")

    def _given(self, name: str) -> bool:
        return getattr(self, name) is not None

    def recipe(self) -> str:
        """The options in words, for the manifest."""
        chosen = attrs.asdict(self, filter=lambda field, value: field.name != "mode" and value != field.default)
        return " ".join(["openvino-compress", f"mode={self.mode}", *(f"{k}={v}" for k, v in sorted(chosen.items()))])

    def arguments(self, feeds: Sequence[Feed] | None) -> dict[str, Any]:
        """Return the keyword arguments of `nncf.compress_weights`."""
        n = nncf()
        named = {
            "mode": n.CompressWeightsMode[self.mode],
            "backup_mode": n.BackupMode[self.backup_mode.upper()] if self.backup_mode else None,
            "sensitivity_metric": n.SensitivityMetric[self.sensitivity.upper()] if self.sensitivity else None,
            "ignored_scope": ignored_scope(self.ignored),
            "dataset": n.Dataset(feeds) if feeds is not None else None,
            "advanced_parameters": self._advanced(),
        }
        plain = ("ratio", "group_size", "all_layers", "subset_size", *_DATA_AWARE)
        return named | {name: getattr(self, name) for name in plain}

    def _advanced(self) -> Any:
        n = nncf()
        given: dict[str, Any] = {"group_size_fallback_mode": n.GroupSizeFallbackMode[self.fallback.upper()]}
        if self.codebook is not None:
            given["codebook"] = np.asarray(self.codebook, np.float32)
        if self.lora_rank is not None:
            given["lora_correction_params"] = n.AdvancedLoraCorrectionParameters(adapter_rank=self.lora_rank)
        return n.AdvancedCompressionParameters(**given)


class Compress:
    """Compresses the weights of an IR; see `edgekit.pipeline.passes.Pass`."""

    name = "openvino-compress"

    def run(
        self,
        source: Artifact,
        to: Path,
        *,
        mode: str = "INT8_ASYM",
        calibration: Samples | None = None,
        subset_size: int = 128,
        context: int = CONTEXT,
        **options: Any,
    ) -> Artifact:
        """Write the compressed model as a directory.

        Args:
            source: an IR.
            to: the directory to write.
            mode: a mode of NNCF (``INT4_SYM``), or a precision of such a mode (``openvino:int4-sym-g64``).
            calibration: samples of the input; see `edgekit.evaluation.samples`.
            subset_size: number of samples to use.
            context: number of tokens in a sample, if `calibration` is a text.
            options: the attributes of `Options`.

        Returns:
            The result, whose ``manifest.quality`` has ``output_error``, ``cosine``, ``top1`` (see
            `edgekit.evaluation.outputs`), ``size_ratio`` and ``layers``, the number of constants by element type.

        Raises:
            UsageError: NNCF does not support the combination of options (raised before anything is read), or the
                calibration set is empty or has other inputs.
            ShapeError: a sample has a shape that the model does not take.
            NonFiniteError: a sample holds a NaN or an infinity.
            UnsupportedModelError: the model has no layer to compress.
            ResourceError: the target cannot be written; it is left as it was.
            LockedError: another process writes the target.
        """
        chosen = Options.of(mode, calibration is not None, subset_size=subset_size, **options)
        model = read_ir(source)
        feeds = None
        if calibration is not None:
            feeds = read(calibration, inputs_of(model), most=subset_size, source=source, context=context)
        done = compressed(model, chosen, feeds)
        return write_ir(done, source, to, chosen.recipe(), lambda xml: _quality(source, xml, feeds))


def compressed(model: Any, options: Options, feeds: Sequence[Feed] | None) -> Any:
    """Return the model with compressed weights.

    Raises:
        UnsupportedModelError: no weight was compressed.
        UsageError: NNCF refuses the options.
        PluginError: NNCF fails.
    """
    names, before = op_names(model), low_bit(model)
    with quiet(), translated(f"mode {options.mode}"):
        done = nncf().compress_weights(model, **options.arguments(feeds))
    if low_bit(done) == before:
        already = f"; it has {', '.join(f'{n} in {kind}' for kind, n in before.items())} already" if before else ""
        raise UnsupportedModelError(
            f"the model has no layer that {options.mode} compresses (matrix products, convolutions and tables with "
            f"constant float weights, outside the ignored scope{already})"
        )
    rename_new(done, names)
    return done


def _quality(source: Artifact, xml: Path, feeds: Sequence[Feed] | None) -> dict[str, Any]:
    before, after = read_ir(source), read_file(xml)
    return {
        **compare(before, after, feeds if feeds is not None else probes(before)),
        "measured_on": "calibration" if feeds is not None else "noise",
        "size_ratio": weights_ratio(source, xml),
        "layers": low_bit(after),
    }


def weights_ratio(source: Artifact, xml: Path) -> float:
    """Return the size of the new .bin relative to the source's weights."""
    old = source.files[0].stat().st_size
    return xml.with_suffix(".bin").stat().st_size / max(old, 1)


def _agreed(given: int | None, default: int) -> int:
    if given not in (None, default):
        raise UsageError(f"group_size={given} contradicts the precision's {default}; leave it out")
    return default


__all__ = ["Compress", "Options", "compressed", "weights_ratio"]
