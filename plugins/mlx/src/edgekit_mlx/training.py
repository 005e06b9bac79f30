"""Fine-tuning with LoRA, DoRA or of whole layers on local examples; an interrupted run resumes to the same weights.

Training uses mlx-lm's adapter layers and MLX's Adam, compiled as in mlx-lm. The batch of a step depends only on the
seed and the number of the step. On a quantized model LoRA is QLoRA: the packed weights are not changed, and the adapter
is float32.

Source: mlx-lm 0.32.2, ``tuner``; compared with it in speed by ``nox -s bench``.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from edgekit.artifact import Artifact
from edgekit.errors import NonFiniteError, UsageError
from edgekit.files.atomic import AtomicFile, write_atomic
from edgekit.files.memory import refuse_shortage
from edgekit.formats import safetensors
from edgekit.formats.safetensors import Part
from edgekit_mlx import adapters, checkpoints
from edgekit_mlx.checkpoints import Checkpoint
from edgekit_mlx.examples import Batch, Examples, batches, files_of, order_of, padded, read_examples
from edgekit_mlx.library import chosen, core, from_mlx, lm, nn, optimizers, tree_flatten, tree_unflatten
from edgekit_mlx.module import load_decoder
from edgekit_mlx.prompt_cache import identity

REPORT = "report.json"


@attrs.frozen
class Training:
    """The options of a run.

    Attributes:
        method: ``lora``, ``dora`` or ``full``.
        steps: number of batches to train in all, including those before a run was resumed.
        batch: number of examples in a batch.
        rate: Adam's learning rate.
        layers: number of layers to train, counted from the last; None for all.
        rank, scale, dropout: rank, scale and dropout probability of LoRA and DoRA.
        length: largest number of tokens in an example; longer ones are truncated. None for 512, or the model's context
            if that is smaller.
        mask_prompts: whether only completions and last answers count in the loss.
        seed: the seed of the adapters' initial values, the order of the batches, and dropout.
        report_every, validate_every, save_every: steps between reports, validations and checkpoints.
        device: ``cpu`` or ``gpu``; None takes MLX's default.
    """

    method: str = "lora"
    steps: int = 300
    batch: int = 4
    rate: float = 1e-4
    layers: int | None = None
    rank: int = 8
    scale: float = 20.0
    dropout: float = 0.0
    length: int | None = None
    mask_prompts: bool = False
    seed: int = 0
    report_every: int = 10
    validate_every: int = 100
    save_every: int = 100
    device: str | None = None

    def __attrs_post_init__(self) -> None:
        if self.method not in adapters.METHODS:
            raise UsageError(f"method {self.method!r:.80}; choose {', '.join(adapters.METHODS)}")
        for name in ("steps", "batch", "rank", "report_every", "validate_every", "save_every"):
            _integer(name, getattr(self, name), 1)
        for name, least in (("layers", 1), ("length", 2)):
            if getattr(self, name) is not None:
                _integer(name, getattr(self, name), least)
        _integer("seed", self.seed, 0)
        if not (_number(self.rate) and 0 < self.rate < 1):
            raise UsageError(f"rate {self.rate!r:.80}; choose above 0 and below 1")
        if not (_number(self.scale) and self.scale > 0):
            raise UsageError(f"scale {self.scale!r:.80}; choose above 0")
        if not (_number(self.dropout) and 0 <= self.dropout < 1):
            raise UsageError(f"dropout {self.dropout!r:.80}; choose 0 or more, and below 1")


def _integer(name: str, value: object, least: int) -> None:
    if type(value) is not int or value < least:
        raise UsageError(f"{name} {value!r:.80}; choose an integer of at least {least}")


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value - value == 0


@attrs.frozen
class Status:
    """The progress of a run.

    Attributes:
        step, steps: number of completed steps, and of all steps.
        loss: mean training loss per token since the last report; None if only the validation loss is reported.
        validation: loss on the validation file; None if it was not measured in this step.
        tokens_per_second: training speed, without validation; 0 if nothing was trained since the last report.
    """

    step: int
    steps: int
    loss: float | None
    validation: float | None
    tokens_per_second: float


@attrs.frozen
class Report:
    """The result of a run.

    Attributes:
        path: the adapter's directory.
        method: ``lora``, ``dora`` or ``full``.
        steps: number of completed steps.
        tokens: number of tokens trained.
        trainable: number of trained parameters.
        training: (step, loss) of each report; the loss is the mean per token since the previous report.
        validation: (step, loss), first at step 0, before training; empty without a validation file.
        examples: number of examples in the training file.
        cut: number of examples that were truncated.
        resumed: the step from which this run was resumed; 0 if it started anew.
    """

    path: Path
    method: str
    steps: int
    tokens: int
    trainable: int
    training: tuple[tuple[int, float], ...]
    validation: tuple[tuple[int, float], ...]
    examples: int
    cut: int
    resumed: int = 0

    @property
    def gain(self) -> float | None:
        """The relative decrease of the validation loss; None without a validation file."""
        if not self.validation:
            return None
        return 1 - self.validation[-1][1] / self.validation[0][1]

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain data for JSON; resuming a run does not change it."""
        data = attrs.asdict(self)
        for run_alone in ("path", "resumed"):
            del data[run_alone]
        return {**data, "gain": self.gain}


def finetune(
    source: Artifact,
    data: Path,
    to: Path,
    options: Training | None = None,
    *,
    restart: bool = False,
    progress: Callable[[Status], None] | None = None,
) -> Report:
    """Train an adapter, or resume an interrupted run from its checkpoint.

    Args:
        source: the model; its weights are not changed.
        data: a folder with ``train.jsonl`` and, for the validation loss, ``valid.jsonl``; or a training file.
        to: the adapter's directory.
        options: the options of the run; None for the defaults.
        restart: whether to ignore a checkpoint and start anew.
        progress: called with each report of losses and speed.

    Returns:
        The result of the run; it is also written beside the adapter, as JSON and as a page with a chart of the losses.

    Raises:
        UsageError: an option is out of range, or the checkpoint belongs to another run.
        MissingFileError: a file of examples does not exist; raised before the model is loaded.
        InvalidFileError: a line of examples is malformed; names it; raised before the model is loaded.
        MemoryShortageError: the model is larger than the free memory.
        NonFiniteError: the loss is no longer finite.
        LockedError: another run uses the same directory.
    """
    asked = options or Training()
    length = min(asked.length or 512, source.model.config.context)
    train_file, valid_file = files_of(data)
    read = partial(read_examples, artifact=source, length=length, mask_prompts=asked.mask_prompts)
    train, valid = read(train_file), read(valid_file) if valid_file else None
    run = _run_of(source, asked, length, train, valid)
    _refuse_directory(to)
    with _locked(to) as final, _on(chosen(asked.device)):
        before = None if restart else checkpoints.load(to / checkpoints.NAME, run)
        session = _Session.begin(source, asked, train, valid, before)
        session.train(to / checkpoints.NAME, run, progress or (lambda _: None))
        report = session.report(to, before.step if before else 0)
        _write(to, final, session, report, str(run["model"]))
    return report


def _run_of(
    source: Artifact, options: Training, length: int, train: Examples, valid: Examples | None
) -> dict[str, Any]:
    """Return everything that a run's weights depend on, except the number of steps, for its checkpoints."""
    counts = ("steps", "report_every", "save_every", "device")
    asked = attrs.asdict(options, filter=lambda field, _: field.name not in counts)
    digests = {"training data": train.digest, "validation data": valid.digest if valid else None}
    return {**asked, "length": length, "model": identity(source)["model"], **digests}


def _refuse_directory(to: Path) -> None:
    """Raise an error if the target is a file, or a directory with files that no run wrote."""
    if to.exists() and not to.is_dir():
        raise UsageError(f"{to} is a file; name a directory for the adapter")
    known = (adapters.WEIGHTS, adapters.CONFIG, checkpoints.NAME, REPORT, "report.html")
    odd = [e.name for e in to.iterdir() if e.name not in known and not e.name.startswith(".")] if to.is_dir() else []
    if odd:
        raise UsageError(f"{to} holds {odd[0]}, which is no part of an adapter; choose another directory")


@contextlib.contextmanager
def _locked(to: Path) -> Iterator[AtomicFile]:
    """Open the adapter's file before training; its lock excludes other runs."""
    to.mkdir(parents=True, exist_ok=True)
    final = AtomicFile(to / adapters.WEIGHTS)
    try:
        yield final
    finally:
        final.close(keep=False)


@contextlib.contextmanager
def _on(device: str) -> Iterator[None]:
    mx = core()
    with mx.stream(getattr(mx, device)):
        yield


@attrs.define(eq=False)
class _Session:
    """The state of a run: the model, the optimizer, the data and the losses."""

    options: Training
    module: Any
    optimizer: Any
    examples: Examples
    train_batches: list[Any]
    valid_batches: list[Any]
    layers: int
    step: int = 0
    tokens: int = 0
    pending: tuple[float, int] = (0.0, 0)
    training: list[tuple[int, float]] = attrs.field(factory=list)
    validation: list[tuple[int, float]] = attrs.field(factory=list)

    @classmethod
    def begin(
        cls, source: Artifact, options: Training, train: Examples, valid: Examples | None, before: Checkpoint | None
    ) -> _Session:
        mx = core()
        loaded = load_decoder(source)
        mx.random.seed(options.seed)
        layers = _adapt(loaded.module, loaded.quantized, options, source)
        optimizer = optimizers().Adam(learning_rate=options.rate)
        optimizer.init(loaded.module.trainable_parameters())
        self = cls(
            options,
            loaded.module,
            optimizer,
            train,
            batches(train, options.batch),
            batches(valid, options.batch) if valid else [],
            layers,
        )
        if before is not None:
            self._restore(before)
        mx.eval(self.module.parameters(), optimizer.state)
        return self

    def _restore(self, before: Checkpoint) -> None:
        self.module.load_weights(list(before.weights.items()), strict=False)
        self.optimizer.state = tree_unflatten()(list(before.optimizer.items()))
        self.optimizer.init(self.module.trainable_parameters())
        self.step, self.tokens, self.pending = before.step, before.tokens, before.pending
        self.training, self.validation = list(before.training), list(before.validation)

    def train(self, checkpoint: Path, run: Mapping[str, Any], progress: Callable[[Status], None]) -> None:
        """Train up to the last step, writing checkpoints."""
        options = self.options
        order, step = order_of(len(self.train_batches), options.seed), self._compiled()
        seconds, counted = 0.0, 0
        if not self.validation and self.valid_batches:
            self.validation.append((0, self._validate()))
            progress(Status(self.step, options.steps, None, self.validation[-1][1], 0.0))
        self.module.train()
        while self.step < options.steps:
            begun = time.perf_counter()
            loss, count = self._one(step, self.train_batches[order(self.step)])
            seconds, counted = seconds + time.perf_counter() - begun, counted + count
            self.step, self.tokens = self.step + 1, self.tokens + count
            self.pending = (self.pending[0] + loss * count, self.pending[1] + count)
            last = self.step == options.steps
            if self.step % options.report_every == 0 or last:
                self.training.append((self.step, self.pending[0] / self.pending[1]))
                self.pending = (0.0, 0)
            validated = self.valid_batches and (self.step % options.validate_every == 0 or last)
            if validated:
                self.validation.append((self.step, self._validate()))
                self.module.train()
            if self.training and self.training[-1][0] == self.step:
                valid = self.validation[-1][1] if validated else None
                progress(Status(self.step, options.steps, self.training[-1][1], valid, counted / seconds))
                seconds, counted = 0.0, 0
            if self.step % options.save_every == 0 or last:
                checkpoints.save(checkpoint, self._checkpoint(), run)

    def _one(self, step: Callable[[Any, Any], Any], examples: Any) -> tuple[float, int]:
        """Train one batch; return its mean loss and the number of tokens that count."""
        mx = core()
        batch: Batch = padded(examples)
        mx.random.seed(self.options.seed + 1_000_003 * (self.step + 1))  # a resumed run must use the same dropout masks
        try:
            loss = step(mx.array(batch.ids), mx.array(batch.weights))
            mx.eval(loss, self.module.trainable_parameters(), self.optimizer.state, mx.random.state)
        except RuntimeError as error:
            refuse_shortage(error, "training")
            raise
        value = float(loss.item())
        if value - value != 0:
            raise NonFiniteError(
                f"step {self.step + 1}: the loss is {value}; begin anew with a smaller rate than {self.options.rate:g}"
            )
        return value, int(batch.weights.sum())

    def _compiled(self) -> Callable[[Any, Any], Any]:
        mx = core()
        gradient = nn().value_and_grad(self.module, _loss)
        state = [self.module.state, self.optimizer.state, mx.random.state]

        def step(ids: Any, weights: Any) -> Any:
            loss, grad = gradient(self.module, ids, weights)
            self.optimizer.update(self.module, grad)
            return loss

        compiled: Callable[[Any, Any], Any] = mx.compile(step, inputs=state, outputs=state)
        return compiled

    def _validate(self) -> float:
        """Return the mean loss per token on the validation file."""
        mx = core()
        self.module.eval()
        total, count = 0.0, 0
        for examples in self.valid_batches:
            batch = padded(examples)
            tokens = int(batch.weights.sum())
            total += float(_loss(self.module, mx.array(batch.ids), mx.array(batch.weights)).item()) * tokens
            count += tokens
        return total / count

    def _checkpoint(self) -> Checkpoint:
        flat = tree_flatten()
        return Checkpoint(
            step=self.step,
            training=self.training,
            validation=self.validation,
            tokens=self.tokens,
            pending=self.pending,
            weights=dict(flat(self.module.trainable_parameters())),
            optimizer=dict(flat(self.optimizer.state)),
        )

    def report(self, to: Path, resumed: int) -> Report:
        """Return the result of the run."""
        trainable = sum(value.size for _, value in tree_flatten()(self.module.trainable_parameters()))
        return Report(
            path=to,
            method=self.options.method,
            steps=self.step,
            tokens=self.tokens,
            trainable=trainable,
            training=tuple(self.training),
            validation=tuple(self.validation),
            examples=len(self.examples.items),
            cut=self.examples.cut,
            resumed=resumed,
        )


def _loss(module: Any, ids: Any, weights: Any) -> Any:
    """Return the mean cross entropy of the ids that count, in float32."""
    mx = core()
    losses = nn().losses.cross_entropy(module(ids[:, :-1]), ids[:, 1:])
    return (losses.astype(mx.float32) * weights).sum() / weights.sum()


def _adapt(module: Any, quantized: int, options: Training, source: Artifact) -> int:
    """Freeze the model and add adapters to its last layers, or unfreeze those; return the number of layers."""
    count = len(module.layers)
    layers = count if options.layers is None else options.layers
    if layers > count:
        raise UsageError(f"layers {layers}; {source.path} has {count}")
    module.freeze()
    if options.method == "full":
        if quantized:
            raise UsageError(
                f"{source.path}: its weights are quantized, and method full trains them; choose lora or dora, or train "
                "the unquantized model"
            )
        for layer in module.layers[-layers:]:
            layer.unfreeze()
        return layers
    parameters = {"rank": options.rank, "scale": options.scale, "dropout": options.dropout}
    try:
        lm("tuner.utils").linear_to_lora_layers(module, layers, parameters, use_dora=options.method == "dora")
    except ValueError as error:
        raise UsageError(
            f"{source.path}: mlx-lm has no {options.method} for one of its layers ({error!s:.100}); choose lora"
        ) from error
    return layers


def _write(to: Path, final: AtomicFile, session: _Session, report: Report, model: str) -> None:
    """Write the adapter's files: configuration and report first, the weights last."""
    from edgekit_mlx.curve import page

    config = adapters.config_of(session.options, session.layers, model, report.steps)
    write_atomic(to / adapters.CONFIG, adapters.to_json(config))
    write_atomic(to / REPORT, adapters.to_json(report.to_dict()))
    write_atomic(to / "report.html", page(report).encode())
    weights = {name: from_mlx(value) for name, value in sorted(tree_flatten()(session.module.trainable_parameters()))}
    parts = [Part(name, np.dtype(array.dtype).name, array.shape) for name, array in weights.items()]
    final.write(safetensors.build_header(parts, {"format": "mlx"}))
    for array in weights.values():
        final.write(safetensors.to_bytes(array))
    final.commit()


__all__ = ["REPORT", "Report", "Status", "Training", "finetune"]
