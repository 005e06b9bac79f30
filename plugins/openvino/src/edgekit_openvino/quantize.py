"""The pass ``openvino-quantize``: quantizes weights and activations to 8 bits, calibrated on samples of the input.

    IR    -> IR                      .onnx -> .onnx (QDQ), or IR if the target is a directory

With a validation set the model's metric is measured before and after. With `max_drop` as well, NNCF reverts the most
sensitive layers to float until the drop is small enough; if it stays too large, nothing is written.

Source: nncf 3.4.0, `nncf.quantize` and `nncf.quantize_with_accuracy_control`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs

from edgekit.artifact import Artifact
from edgekit.errors import QualityGateError, UnsupportedModelError, UsageError
from edgekit.evaluation.samples import CONTEXT, Feed, Samples, read
from edgekit_openvino.library import nncf, openvino
from edgekit_openvino.measure import compare
from edgekit_openvino.models import (
    as_openvino,
    inputs,
    low_bit,
    op_names,
    quantizers,
    read_file,
    read_ir,
    read_onnx,
    rename_new,
    weight_bytes,
    write_ir,
    write_onnx,
)
from edgekit_openvino.quiet import quiet
from edgekit_openvino.refusals import ignored_scope, known, one_of, translated
from edgekit_openvino.validation import Metric, Validation

PRESETS = ("performance", "mixed")
DEVICES = ("ANY", "CPU", "GPU", "NPU", "CPU_SPR")
DROPS = ("absolute", "relative")


@attrs.frozen(kw_only=True)
class Options:
    """The options of `nncf.quantize`; None leaves the choice to NNCF.

    Attributes:
        preset: ``performance`` (weights and activations symmetric) or ``mixed`` (activations asymmetric).
        model_type: ``transformer`` for models with attention; their sensitive operations are then not quantized.
        target_device: ``ANY``, ``CPU``, ``GPU``, ``NPU`` or ``CPU_SPR``.
        ignored: operations to leave unchanged: names, or a mapping with ``names``, ``patterns`` or ``types``.
        fast_bias_correction: False selects a slower, more accurate method.
        smooth_quant_alpha: strength, 0 to 1, with which outliers are moved from activations to weights; -1 for none.
        subset_size: number of samples to use.
        max_drop: largest allowed drop of the metric.
        drop_type: ``absolute``, or ``relative`` to the float model's metric.
    """

    preset: str | None = None
    model_type: str | None = None
    target_device: str = "ANY"
    ignored: Any = ()
    fast_bias_correction: bool = True
    smooth_quant_alpha: float | None = None
    subset_size: int = 300
    max_drop: float | None = None
    drop_type: str = "absolute"

    @classmethod
    def of(cls, calibrated: bool, validated: bool, **given: Any) -> Options:
        """Return the checked options.

        Args:
            calibrated: whether there are samples.
            validated: whether there is a validation set.
            given: the attributes.

        Raises:
            UsageError: an option is invalid; the message names it and the cure.
        """
        known(given, cls, "openvino-quantize", "calibration", "validation", "metric", "context")
        options = cls(**given)
        options._check(calibrated, validated)
        return options

    def _check(self, calibrated: bool, validated: bool) -> None:
        if not calibrated:
            raise UsageError("quantization is calibrated on samples of the model's input; give calibration=")
        one_of("preset", self.preset, PRESETS)
        one_of("model_type", self.model_type, ("transformer",))
        one_of("target_device", self.target_device, DEVICES)
        one_of("drop_type", self.drop_type, DROPS)
        alpha = self.smooth_quant_alpha
        if alpha is not None and alpha != -1 and not 0 <= alpha <= 1:
            raise UsageError(f"smooth_quant_alpha={alpha}; choose a number between 0 and 1, or -1 for none")
        if self.max_drop is not None and not validated:
            raise UsageError("max_drop needs a validation set to measure the drop on; give validation=")
        if self.max_drop is not None and not (math.isfinite(self.max_drop) and self.max_drop >= 0):
            raise UsageError(f"max_drop={self.max_drop}; choose a number from 0 on, such as 0.01")

    def recipe(self) -> str:
        """The options in words, for the manifest."""
        chosen = attrs.asdict(self, filter=lambda field, value: value != field.default)
        return " ".join(["openvino-quantize", *(f"{key}={value}" for key, value in sorted(chosen.items()))])

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments that both functions of NNCF take."""
        n = nncf()
        return {
            "preset": n.QuantizationPreset(self.preset) if self.preset else None,
            "model_type": n.ModelType(self.model_type) if self.model_type else None,
            "target_device": n.TargetDevice(self.target_device),
            "ignored_scope": ignored_scope(self.ignored),
            "fast_bias_correction": self.fast_bias_correction,
            "subset_size": self.subset_size,
        }

    def advanced(self) -> Any:
        """Return NNCF's advanced parameters."""
        n = nncf()
        if self.smooth_quant_alpha is None:
            return n.AdvancedQuantizationParameters()
        alphas = n.AdvancedSmoothQuantParameters(matmul=self.smooth_quant_alpha, convolution=-1)
        return n.AdvancedQuantizationParameters(smooth_quant_alphas=alphas)


class Quantize:
    """Quantizes weights and activations to 8 bits; see `edgekit.pipeline.passes.Pass`."""

    name = "openvino-quantize"

    def run(
        self,
        source: Artifact,
        to: Path,
        *,
        calibration: Samples | None = None,
        validation: Any = None,
        metric: str | Metric = "accuracy",
        context: int = CONTEXT,
        **options: Any,
    ) -> Artifact:
        """Write the quantized model.

        Args:
            source: an IR or an ONNX file.
            to: a directory for an IR; for an ONNX file also an ``.onnx`` file.
            calibration: samples of the input; see `edgekit.evaluation.samples`.
            validation: samples with labels; see `edgekit_openvino.validation`.
            metric: the metric of outputs and labels: ``accuracy``, ``cosine``, or a function.
            context: number of tokens in a sample, if `calibration` is a text.
            options: the attributes of `Options`.

        Returns:
            The result, whose ``manifest.quality`` has ``output_error``, ``cosine`` and ``top1`` (see
            `edgekit.evaluation.outputs`), ``size_ratio``, ``quantizers``, and with a validation set ``metric_float``,
            ``metric`` and ``drop``.

        Raises:
            UsageError: an option or a sample is invalid; raised before any work, as are the next two.
            ShapeError: a sample has a shape that the model does not take.
            NonFiniteError: a sample holds a NaN or an infinity.
            UnsupportedModelError: the model has nothing to quantize.
            QualityGateError: the drop of the metric stays above `max_drop`.
            ResourceError: the target cannot be written; it is left as it was.
            LockedError: another process writes the target.
        """
        chosen = Options.of(calibration is not None, validation is not None, **options)
        job = _Job.of(source, to, chosen, calibration, validation, metric, context)
        return job.write(to)


@attrs.frozen(eq=False)
class _Job:
    """A model with its checked options and samples."""

    source: Artifact
    options: Options
    model: Any
    feeds: Sequence[Feed]
    validation: Validation | None

    @classmethod
    def of(
        cls, source: Artifact, to: Path, options: Options, calibration: Any, validation: Any, metric: Any, context: int
    ) -> _Job:
        model = _load(source, to)
        model_inputs = inputs(model)
        checked = None
        if validation is not None:
            checked = Validation.of(validation, metric, model_inputs).labelled(_again(source))
        feeds = read(calibration, model_inputs, most=options.subset_size, source=source, context=context)
        return cls(source, options, model, feeds, checked)

    def write(self, to: Path) -> Artifact:
        done = self.quantized()
        write = write_ir if isinstance(done, openvino().Model) else write_onnx
        return write(done, self.source, to, self.options.recipe(), lambda _: self.quality(done))

    def quantized(self) -> Any:
        names = op_names(self.model)
        before = quantizers(self.model)
        with quiet(), translated("quantization"):
            done = self._controlled() if self.options.max_drop is not None else self._plain()
        if quantizers(done) == before and self.options.max_drop is not None:
            raise self._beyond("NNCF put every layer back to float")
        if quantizers(done) == before:
            raise UnsupportedModelError(
                "the model has nothing to quantize (matrix products and convolutions with constant weights, outside "
                f"the ignored scope); it has {before} quantizers already"
            )
        rename_new(done, names)
        return done

    def _plain(self) -> Any:
        n = nncf()
        return n.quantize(
            self.model, n.Dataset(self.feeds), advanced_parameters=self.options.advanced(), **self.options.arguments()
        )

    def _controlled(self) -> Any:
        n = nncf()
        assert self.validation is not None
        return n.quantize_with_accuracy_control(
            self.model,
            n.Dataset(self.feeds),
            n.Dataset(self.validation.items, lambda item: item[0]),
            self.validation.for_nncf(),
            max_drop=self.options.max_drop,
            drop_type=n.DropType(self.options.drop_type),
            advanced_quantization_parameters=self.options.advanced(),
            **self.options.arguments(),
        )

    def quality(self, done: Any) -> dict[str, Any]:
        before, after = _again(self.source), as_openvino(done)
        return {
            **compare(before, after, self.feeds),
            **self._drop(before, after),
            "measured_on": "calibration",
            "size_ratio": weight_bytes(done) / max(weight_bytes(before), 1),
            "quantizers": quantizers(done),
            "layers": low_bit(after),
        }

    def _drop(self, before: Any, after: Any) -> dict[str, float]:
        if self.validation is None:
            return {}
        was, now = self.validation.mean(before), self.validation.mean(after)
        drop = was - now if self.options.drop_type == "absolute" else (was - now) / abs(was) if was else 0.0
        if self.options.max_drop is not None and drop > self.options.max_drop:
            raise self._beyond(f"from {was:.6g} to {now:.6g}")
        return {"metric_float": was, "metric": now, "drop": drop}

    def _beyond(self, how: str) -> QualityGateError:
        assert self.validation is not None
        return QualityGateError(
            f"{self.validation.name} falls by more than max_drop={self.options.max_drop} ({how}); calibrate on more or "
            "better samples, or allow more"
        )


def _load(source: Artifact, to: Path) -> Any:
    """Return the model for NNCF; an ONNX file stays ONNX if the target is an ONNX file."""
    if to.suffix == ".onnx":
        if source.format != "onnx":
            raise UsageError(f"{to}: an IR is quantized to an IR; name a directory")
        return read_onnx(source.path)
    return _again(source)


def _again(source: Artifact) -> Any:
    """Return the float model, loaded again as an `openvino.Model`."""
    return read_file(source.path) if source.format == "onnx" else read_ir(source)


__all__ = ["DEVICES", "DROPS", "PRESETS", "Options", "Quantize"]
