"""What the process of a pass runs: ``python -m edgekit_olive.worker JOB REPORT``; `edgekit_olive.isolation` starts it.

The job is a JSON object: ``pass`` and ``options``; ``model`` with its ``kind`` (onnx, hf or openvino), ``path``,
``attributes`` and ``adapter``; ``accelerator`` and ``provider``; ``output``; ``samples``, an .npz file with arrays
``N/name``, or null. The report has ``kind`` and ``paths`` of the result, its ``attributes`` and files of ``weights``
beside the graph, ``measured`` (see `edgekit.evaluation.outputs.difference`) or the reason why it was not, and the
``connections`` that were attempted; or an ``error`` with its ``kind`` and ``message``.
"""

from __future__ import annotations

import contextlib
import importlib
import ipaddress
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from edgekit.errors import EdgekitError, NonFiniteError, UsageError
from edgekit.files.memory import is_shortage
from edgekit_olive import computing
from edgekit_olive.catalogue import CALIBRATION
from edgekit_olive.folding import folded
from edgekit_olive.graph import DIALECT
from edgekit_olive.isolation import environment
from edgekit_olive.library import onnx, refused_operator
from edgekit_olive.naming import restore

#: Names of the components of a data set that hands over the samples.
_DATASET, _LOADER = "edgekit_samples", "edgekit_loader"
#: Names of options that take a data set for calibration or training.
DATA_OPTIONS = ("data_config", "train_data_config", "calibration_data_config")
_MESSAGE = 600
#: What the errors say of passes that need samples and got none: that they want some, or that a download is off.
_UNCALIBRATED = ("data_config is required", "OfflineModeIsEnabled", "Couldn't reach")


class FailureError(Exception):
    """A job that cannot be done: the kind of error, a key of `edgekit_olive.isolation.ERRORS`, and the message."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def main(job_file: str, report_file: str) -> None:
    """Run a job and write its report."""
    attempts = refuse_network()
    job = json.loads(Path(job_file).read_text("utf-8"))
    report: dict[str, Any]
    try:
        report = JOBS[job.get("what", "pass")](job)
    except Exception as error:
        traceback.print_exc()
        report = {"error": described(error, bool(job["samples"]))}
    report["connections"] = attempts
    unfinished = Path(f"{report_file}.partial")
    unfinished.write_text(json.dumps(report, default=str), "utf-8")
    os.replace(unfinished, report_file)


def serve() -> None:
    """Import Olive, then fork for each job that a line of the input names; answer with its exit status."""
    refuse_network()
    for name in ("olive.package_config", "olive.passes.olive_pass", "olive.model", "onnxruntime"):
        importlib.import_module(name)
    answers = os.dup(1)
    os.dup2(2, 1)  # what Olive prints is no answer
    for line in sys.stdin:
        command = json.loads(line)
        if json.loads(Path(command["job"]).read_text("utf-8"))["model"]["kind"] == "hf":
            with contextlib.suppress(ImportError):  # the job reports it
                importlib.import_module("transformers.modeling_utils")  # once, not in each child
        child = os.fork()
        if not child:
            _job(command)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.write(answers, f"{status}\n".encode())


def _job(command: Mapping[str, str]) -> NoReturn:
    """Run a job in a forked process, with a home directory and a log of its own."""
    log = os.open(command["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.environ.update(environment(Path(command["work"]) / "home"))
    os.chdir(command["work"])
    main(command["job"], command["report"])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # what is registered to run at the end belongs to the process that forked


def refuse_network() -> list[str]:
    """Refuse connections and look-ups of names from now on; return the list to which attempts are added."""
    attempts: list[str] = []

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.getaddrinfo" and not _local(arguments[0]):
            attempts.append(f"look-up of {arguments[0]}")
        elif event in ("socket.connect", "socket.sendto") and not _local(arguments[1]):
            attempts.append(f"connection to {arguments[1]}")
        else:
            return
        raise PermissionError(f"{attempts[-1]} refused: Olive runs without a network")

    sys.addaudithook(hook)
    return attempts


def _local(address: Any) -> bool:
    """Return whether an address is a socket file, or of this machine."""
    host = address[0] if isinstance(address, tuple) and address else address
    if host in (None, "", b"", "localhost") or not isinstance(address, tuple | str) or isinstance(host, int):
        return True
    try:
        return ipaddress.ip_address(str(host)).is_loopback
    except ValueError:
        return isinstance(address, str) and address.startswith("/")


def described(error: BaseException, calibrated: bool = True) -> dict[str, str]:
    """Return the kind and the message of an error, for the report.

    Args:
        error: what the job raised.
        calibrated: whether it had samples; without them some passes download a text, or fail.
    """
    message = " ".join(str(error).split())[:_MESSAGE] or type(error).__name__
    if not calibrated and (getattr(error, "name", "") == "datasets" or any(each in message for each in _UNCALIBRATED)):
        return {"kind": "usage", "message": f"it needs samples; give {CALIBRATION} ({message})"}
    custom = refused_operator(message)
    if custom:
        return {"kind": "failed", "message": custom}
    if isinstance(error, FailureError):
        return {"kind": error.kind, "message": str(error)}
    if isinstance(error, NonFiniteError):
        return {"kind": "nonfinite", "message": message}
    if isinstance(error, UsageError):
        return {"kind": "usage", "message": message}
    if isinstance(error, EdgekitError):
        return {"kind": "failed", "message": message}
    if isinstance(error, ModuleNotFoundError):
        name = str(error.name)
        return {"kind": "missing", "message": f"it needs the module {name}, which is not installed ({message})"}
    if is_shortage(error):
        return {"kind": "memory", "message": f"memory ran out ({message})"}
    last = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(last.filename).name}:{last.lineno}"
    return {"kind": "failed", "message": f"it fails with {type(error).__name__} at {where}: {message}"}


def run_pass(job: Mapping[str, Any]) -> dict[str, Any]:
    """Run one pass and compute with its result; see the module's docstring."""
    chosen = _pass(job)
    model = _handler(job["model"])
    return _reported(job, model, chosen.run(model, job["output"]))


def _reported(job: Mapping[str, Any], model: Any, made: Any) -> dict[str, Any]:
    """Return the report on a result: where it is, and how its outputs differ from the model's."""
    expected = computing.Model(job["model"]["kind"], Path(job["model"]["path"]), model)
    kind, paths = _result(made)
    if (kind, job["model"]["kind"]) == ("openvino", "onnx"):
        restore(_xml(Path(paths[0])), Path(job["model"]["path"]))
    report = {"kind": kind, "paths": paths, "attributes": _attributes(made, model), "weights": _weights(made)}
    result = computing.Model(kind, Path(paths[0]), made) if paths else None
    if result is None or kind not in ("onnx", "hf", "adapter", "openvino"):
        return {**report, "uncompared": f"the result is {'of several parts' if len(paths) > 1 else kind}"}
    return {**report, **computing.compared(expected, result)}


def _xml(path: Path) -> Path:
    """Return the XML of an IR, which Olive names by its directory."""
    return path if path.suffix == ".xml" else next(path.glob("*.xml"))


def run_workflow(job: Mapping[str, Any]) -> dict[str, Any]:
    """Run a workflow with Olive's engine, and compute with the best model.

    The report has also ``candidates``, see `edgekit_olive.workflow.Candidate`, and ``before``, the source's metrics.
    """
    model, output = _handler(job["model"]), Path(job["output"]).parent
    places = {"output_dir": str(output), "cache_dir": str(output.parent / "cache"), "log_to_file": False}
    described = model.to_json()
    given = {key: value for key, value in described["config"].items() if value is not None}  # Olive reads into some
    config = {**job["config"], "input_model": {**described, "config": given}, **places}
    _mend()
    os.chdir(job["folder"])  # the file's paths are relative to it
    try:
        made = importlib.import_module("olive.workflows").run(config)
    except importlib.import_module("pydantic").ValidationError as error:
        raise FailureError("usage", _invalid(error, {})) from error
    finally:
        os.chdir(output)
    nodes = made.footprint.nodes if made is not None else {}
    evaluated = [node.metrics for node in nodes.values() if node.parent_model_id and node.metrics]
    if evaluated and not any(metrics.if_goals_met for metrics in evaluated):
        raise FailureError("goals", "no model that Olive's engine made meets the goals of the file")
    best = made.get_best_candidate() if made is not None and made.has_output_model() else None
    if best is None:
        raise FailureError("failed", "Olive's engine gives no model; its log says which pass or goal failed")
    settings = importlib.import_module("olive.model.config.model_config").ModelConfig
    chosen = settings.model_validate(best.olive_model_config).create_model()
    if not nodes[best.model_id].parent_model_id:
        raise FailureError(
            "failed", "no model that Olive's engine made is better than the source by the goals of the file"
        )
    frontier = [each.model_id for each in made.get_output_models() if nodes[each.model_id].parent_model_id]
    others = [id for id, node in nodes.items() if node.parent_model_id and node.metrics]
    ids = dict.fromkeys([*frontier, *others])
    candidates = [_candidate(made, id, id in frontier, id == best.model_id) for id in ids]
    return {
        **_reported(job, model, chosen),
        "candidates": candidates,
        "before": _metrics(made.get_input_model_metrics()),
    }


def _mend() -> None:
    """Mend two faults of olive-ai 0.13.0.

    It cannot read evaluators, because one of its enumerations fails on None instead of refusing it; and it ignores
    goals that are thresholds, unless another goal is relative to the source.
    """
    enumeration = importlib.import_module("olive.common.config_utils").CaseInsensitiveEnum
    original = enumeration._missing_.__func__
    enumeration._missing_ = classmethod(lambda cls, value: None if value is None else original(cls, value))
    engine = importlib.import_module("olive.engine").Engine
    key, resolve = importlib.import_module("olive.evaluator.metric_result").joint_metric_key, engine.resolve_goals

    def resolved(self: Any, model: Any, model_id: str, metrics: list[Any], device: Any) -> dict[str, Any]:
        found: dict[str, Any] = resolve(self, model, model_id, metrics, device)
        goals = ((m.name, name, goal) for m in metrics for name, goal in m.get_sub_type_info("goal").items())
        return found or {key(metric, name): goal.value for metric, name, goal in goals if goal is not None}

    engine.resolve_goals = resolved


def _candidate(made: Any, model_id: str, frontier: bool, chosen: bool) -> dict[str, Any]:
    nodes, steps = made.footprint.nodes, list(made.footprint.trace_back_run_history(model_id))
    metrics = nodes[model_id].metrics
    return {
        "passes": [nodes[step].from_pass for step in reversed(steps) if nodes[step].from_pass],
        "provider": str(made.from_execution_provider()),
        "metrics": _metrics(metrics.value.to_json() if metrics else None),
        "meets_goals": metrics.if_goals_met if metrics else True,
        "frontier": frontier,
        "chosen": chosen,
    }


def _metrics(found: Mapping[str, Any] | None) -> dict[str, float]:
    """Return the values of metrics, by name."""
    return {name: float(each["value"] if isinstance(each, Mapping) else each) for name, each in (found or {}).items()}


def _pass(job: Mapping[str, Any]) -> Any:
    name, options = job["pass"], dict(job["options"])
    cls = (
        importlib.import_module("olive.package_config")
        .OlivePackageConfig.load_default_config()
        .import_pass_module(name)
    )
    spec = importlib.import_module("olive.hardware.accelerator").AcceleratorSpec(job["accelerator"], job["provider"])
    known = cls.default_config(spec)
    if job["samples"]:
        data = _data(Path(job["samples"]), job["model"]["kind"], single="train_data_config" in known)
        options |= {option: data for option in DATA_OPTIONS if option in known and option not in options}
    create = importlib.import_module("olive.passes.olive_pass").create_pass_from_dict
    try:
        made = create(cls, options, disable_search=True, accelerator_spec=spec)
    except importlib.import_module("pydantic").ValidationError as error:
        raise FailureError("usage", _invalid(error, options)) from error
    if not cls.validate_config(made.config, spec):
        raise FailureError("usage", f"these options do not go together, or not with {job['provider']}; see the log")
    return made


def _invalid(error: Any, options: Mapping[str, Any]) -> str:
    faults: dict[str, str] = {}
    for each in error.errors():
        option = str(each["loc"][0]) if each["loc"] else "the options"
        came = f"={options[option]!r:.80}" if option in options else ""
        faults.setdefault(f"{option}{came}", str(each["msg"]))
    return "; ".join(f"{option}: {fault}" for option, fault in faults.items())


def _handler(model: Mapping[str, Any]) -> Any:
    handlers = importlib.import_module("olive.model")
    path, attributes = Path(model["path"]), model["attributes"] or None
    if model["kind"] == "hf":
        task = {} if model["causal"] else {"task": "feature-extraction"}
        adapter = {"adapter_path": model["adapter"]} if model.get("adapter") else {}
        return handlers.HfModelHandler(str(path), model_attributes=attributes, **task, **adapter)
    if model["kind"] == "openvino":
        return handlers.OpenVINOModelHandler(str(path), model_attributes=attributes)
    _inline(path)
    return handlers.ONNXModelHandler(str(path.parent), onnx_file_name=path.name, model_attributes=attributes)


def _inline(graph: Path) -> None:
    """Put the weights of a graph into it, if they fit: some passes save a graph without the file of its weights.

    In edgekit's own graphs constant matrices replace their transposes, which tools would fold under names of their own.
    """
    files = {file: file.stat().st_size for file in graph.parent.iterdir() if file.is_file()}
    library = onnx()
    if sum(files.values()) < library.checker.MAXIMUM_PROTOBUF:
        proto = library.load(str(graph))
        own = any(entry.key == DIALECT for entry in proto.metadata_props)
        library.save_model(folded(proto, tables=False, products=False) if own else proto, str(graph))


def _result(made: Any) -> tuple[str, list[str]]:
    """Return the kind of a handler, and the paths of its parts."""
    name = type(made).__name__
    if hasattr(made, "model_components"):
        return "composite", [str(part.model_path) for part in made.model_components]
    kind = {"ONNXModelHandler": "onnx", "HfModelHandler": "hf", "OpenVINOModelHandler": "openvino"}.get(name, name)
    path = made.adapter_path if kind == "hf" and getattr(made, "adapter_path", None) else made.model_path
    return ("adapter" if path != made.model_path else kind), [str(path)] if path else []


def _weights(made: Any) -> list[str]:
    """Return the file of weights that a graph takes as inputs: extracted adapters."""
    path = getattr(made, "constant_inputs_path", None)
    return [str(path)] if path else []


def _attributes(made: Any, before: Any) -> dict[str, Any]:
    """Return what a pass recorded about a model beside its files: attributes that are new, and session settings."""
    old = before.model_attributes or {}
    found = {key: value for key, value in (made.model_attributes or {}).items() if old.get(key) != value}
    found.pop("additional_files", None)
    settings = getattr(made, "inference_settings", None)
    return {**({"attributes": found} if found else {}), **({"inference_settings": settings} if settings else {})}


class _Samples:
    """Samples as Olive's passes read them: a sequence of inputs and labels, and a loader of itself."""

    def __init__(self, feeds: list[dict[str, Any]]) -> None:
        self._feeds = feeds

    def __len__(self) -> int:
        return len(self._feeds)

    def __getitem__(self, index: int) -> tuple[dict[str, Any], Any]:
        feed = self._feeds[index]
        return feed, feed.get("labels", 0)

    @property
    def dataset(self) -> _Samples:
        """The samples, which some passes ask their loader for."""
        return self

    def __iter__(self) -> Iterator[tuple[dict[str, Any], Any]]:
        return (self[index] for index in range(len(self)))


def samples_of(path: Path) -> list[dict[str, Any]]:
    """Return the samples of an .npz file with arrays ``N/name``, in their order."""
    feeds: dict[int, dict[str, Any]] = {}
    with np.load(path, allow_pickle=False) as file:
        for key in file.files:
            number, _, name = key.partition("/")
            feeds.setdefault(int(number), {})[name] = file[key]
    return [feeds[number] for number in sorted(feeds)]


def _data(path: Path, kind: str, single: bool) -> dict[str, Any]:
    """Register components that hand over the samples, and return a data set's configuration of them.

    Args:
        path: the .npz file.
        kind: of the model.
        single: whether the pass makes batches of its own: fine-tuning stacks samples without a batch's dimension, and
            given one it trains on something else, without an error.
    """
    feeds, register = samples_of(path), importlib.import_module("olive.data.registry").Registry
    if kind == "hf":
        torch = importlib.import_module("torch")
        feeds = [{name: torch.from_numpy(value) for name, value in feed.items()} for feed in feeds]
        if single:
            feeds = [{name: row for name, value in feed.items() for row in value[:1]} for feed in feeds]
        feeds = [{**feed, "labels": feed["input_ids"]} for feed in feeds]

    def dataset(**_: Any) -> _Samples:
        return _Samples(feeds)

    def loader(dataset: _Samples, **_: Any) -> _Samples:
        return dataset

    register.register_dataset(_DATASET)(dataset)
    register.register_dataloader(_LOADER)(loader)
    return {
        "name": "edgekit",
        "type": "DataContainer",
        "load_dataset_config": {"type": _DATASET},
        "pre_process_data_config": {"type": "skip_pre_process"},
        "post_process_data_config": {"type": "skip_post_process"},
        "dataloader_config": {"type": _LOADER},
    }


JOBS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {"pass": run_pass, "workflow": run_workflow}

if __name__ == "__main__":
    serve() if sys.argv[1:] == ["serve"] else main(*sys.argv[1:])

__all__ = [
    "DATA_OPTIONS",
    "JOBS",
    "FailureError",
    "described",
    "main",
    "refuse_network",
    "run_pass",
    "run_workflow",
    "samples_of",
    "serve",
]
