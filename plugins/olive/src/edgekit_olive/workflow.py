"""Runs Olive's workflow files: passes in order, or a search over them with goals on accuracy, latency and size.

The file is Olive's own JSON. Olive's engine does the work, in a process without telemetry and network
(`edgekit_olive.isolation`), with a fresh cache, on a copy of the model. Its footprint becomes a list of candidates; the
best one is written as an artifact, and compared with the source as the result of a pass is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from edgekit.artifact import Artifact
from edgekit.errors import InvalidFileError, MissingPluginError, UnsupportedModelError, UsageError
from edgekit.files.foreign import strict_json
from edgekit.files.guard import stamps, working
from edgekit.files.reader import Reader
from edgekit.pipeline import open_artifact
from edgekit_olive.catalogue import entries
from edgekit_olive.passes import apply

_LIMIT = 4 << 20
#: Settings that say where Olive writes; edgekit sets them.
_PLACES = ("output_dir", "cache_dir", "clean_cache", "log_to_file", "cache_config")


@attrs.frozen
class Candidate:
    """A model that the engine made.

    Attributes:
        passes: the passes that made it, in their order.
        provider: the execution provider that it was evaluated with.
        metrics: what the workflow's evaluator measured, by name.
        meets_goals: whether it meets every goal of the evaluator; true where there is none.
        frontier: whether it meets them, and no other model that does is better in every metric.
        chosen: whether it was written.
    """

    passes: tuple[str, ...]
    provider: str
    metrics: Mapping[str, float]
    meets_goals: bool
    frontier: bool
    chosen: bool


@attrs.frozen
class Outcome:
    """What a workflow made.

    Attributes:
        artifact: the chosen model, written.
        before: the metrics of the source.
        candidates: all models, those on the frontier first, the best before others.
    """

    artifact: Artifact
    before: Mapping[str, float]
    candidates: tuple[Candidate, ...]


def run_workflow(
    file: str | os.PathLike[str],
    to: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    least_cosine: float = 0.5,
    notes: list[str] | None = None,
) -> Outcome:
    """Run a workflow file, and write the best model.

    Args:
        file: Olive's JSON. Paths in it are relative to its directory; ``input_model`` must be a local model that
            edgekit reads. Where Olive writes is not the file's choice: ``output_dir``, ``cache_dir`` and the like are
            replaced, and a remote ``host`` is refused.
        to: the directory to write.
        model: path of a model in place of the file's ``input_model``.
        overwrite: replace a target that edgekit did not write.
        least_cosine: a result whose outputs have a lower cosine with the source's is refused; -1 for none.
        notes: remarks for the user are appended to it.

    Raises:
        InvalidFileError: the file is not a workflow.
        UsageError: it names an unknown pass or a remote host, or its model is not on this machine.
        MissingPluginError: olive-ai, or a module that a pass needs, is not installed.
        UnsupportedModelError: a pass cannot run here, or no model came out.
        QualityGateError: no model meets the goals of the file, or the cosine is below `least_cosine`.
        PluginError: the process ended without a result.
    """
    path = Path(file)
    config = read_workflow(path)
    given, adapter = _model(config, path) if model is None else (Path(model), None)
    _refuse_passes(config, path)
    source = open_artifact(given)
    kept = {key: value for key, value in config.items() if key not in (*_PLACES, "input_model")}
    job = {"what": "workflow", "config": kept, "options": kept.get("passes", {}), "folder": str(path.parent.resolve())}
    job["adapter"] = adapter
    told: dict[str, Any] = {}
    with working(Path(to), {**source.reads, **stamps([path])}, overwrite, notes):
        artifact = apply(source, Path(to), job, None, "olive workflow", least_cosine, told)
    candidates = tuple(Candidate(**{**each, "passes": tuple(each["passes"])}) for each in told["candidates"])
    return Outcome(artifact, told["before"], candidates)


def read_workflow(path: Path) -> dict[str, Any]:
    """Return a workflow file, checked as far as edgekit depends on it.

    Raises:
        MissingFileError: the file cannot be read.
        InvalidFileError: it is not JSON, larger than 4 MiB, or has no model or no passes.
        UsageError: it would run on another machine.
    """
    config = strict_json(Reader(path).read_bytes(0, _LIMIT), path, "the workflow")
    if not isinstance(config, dict) or not isinstance(config.get("input_model"), dict):
        raise InvalidFileError(f"{path}: not a workflow of Olive's: it has no object input_model")
    if not isinstance(config.get("passes"), dict) or not config["passes"]:
        raise InvalidFileError(f"{path}: not a workflow of Olive's: it has no passes")
    remote = next((key for key in ("azureml_client", "host", "workflow_host") if config.get(key)), None)
    if remote:
        raise UsageError(f"{path}: {remote} would run it on another machine; edgekit runs workflows here, remove it")
    return config


def _model(config: Mapping[str, Any], path: Path) -> tuple[Path, str | None]:
    """Return the paths of the model and of its adapter, if there is one."""
    model = config["input_model"]
    nested = model.get("config") if isinstance(model.get("config"), dict) else {}
    found: dict[str, Path] = {}
    for key in ("model_path", "adapter_path"):
        given = model.get(key) or nested.get(key)
        if given is None and key == "adapter_path":
            return found["model_path"], None
        found[key] = path.parent / str(given)
        if not isinstance(given, str) or not _exists(found[key]):
            raise UsageError(f"{path}: its input_model has the {key} {given!r:.200}, which is not on this machine")
    return found["model_path"], str(found["adapter_path"].resolve())


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, or with a NUL
        return False


def _refuse_passes(config: Mapping[str, Any], path: Path) -> None:
    """Raise an error for passes that Olive lacks, or that cannot run here."""
    known = {name.lower(): entry for name, entry in entries().items()}
    for name, given in config["passes"].items():
        for each in given if isinstance(given, list) else [given]:
            kind = str(each.get("type", "")).rpartition(".")[2] if isinstance(each, dict) else ""
            if kind.lower() not in known:
                raise UsageError(f"{path}: pass {name!r} has the type {kind!r:.80}, which Olive does not have")
            obstacle = known[kind.lower()].obstacle()
            if obstacle:
                error = MissingPluginError if "not installed" in obstacle else UnsupportedModelError
                raise error(f"{path}: pass {name!r} ({kind}) cannot run here: {obstacle}")


def to_json(outcome: Outcome) -> dict[str, Any]:
    """Return an outcome as JSON has it."""
    quality = dict(outcome.artifact.manifest.quality) if outcome.artifact.manifest else {}
    return {
        "path": str(outcome.artifact.path),
        "quality": json.loads(json.dumps(quality)),
        "before": dict(outcome.before),
        "candidates": [attrs.asdict(candidate) for candidate in outcome.candidates],
    }


__all__ = ["Candidate", "Outcome", "read_workflow", "run_workflow", "to_json"]
