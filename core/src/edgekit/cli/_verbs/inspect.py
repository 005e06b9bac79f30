"""`edgekit inspect`: show the contents of a model."""

from __future__ import annotations

from collections import Counter
from typing import Any

import attrs
import click

from edgekit.artifact import Artifact
from edgekit.cli.output import json_option, print_json, size, table
from edgekit.errors import UnsupportedModelError, counted
from edgekit.manifest import stale_manifest
from edgekit.pipeline._conversion import open_artifact
from edgekit.tensor import AnyTensor, EncodedTensor

_SHOWN = ("path", "format", "family", "parameters", "size", "bits_per_weight", "tokenizer", "recipe", "stale_manifest")


@click.command("inspect")
@click.argument("path")
@click.option("--tensors", is_flag=True, help="List every tensor.")
@click.option("--metadata", is_flag=True, help="List the format's own configuration.")
@json_option
def command(path: str, tensors: bool, metadata: bool, as_json: bool) -> None:
    """Show a model's format, family, sizes, precisions and tokenizer; no tensor is read."""
    report = describe(open_artifact(path))
    if as_json:
        print_json(report)
        return
    for key in (
        "path",
        "format",
        "family",
        "parameters",
        "size",
        "bits_per_weight",
        "tokenizer",
        "recipe",
        "stale_manifest",
    ):
        if report[key] is not None:
            click.echo(f"{key.replace('_', ' '):<16} {_shown(key, report[key])}")
    click.echo("\n" + table(("precision", "tensors", "parameters", "size"), _precisions(report)))
    if tensors:
        rows = [
            (t["name"], "×".join(map(str, t["shape"])), t["precision"], size(t["nbytes"])) for t in report["tensors"]
        ]
        click.echo("\n" + table(("tensor", "shape", "precision", "size"), rows))
    if metadata:
        click.echo("\n" + table(("key", "value"), [(k, _short(v)) for k, v in report["config"].items()]))


def describe(artifact: Artifact) -> dict[str, Any]:
    """Return everything that `edgekit inspect` shows, as plain data."""
    try:
        model = attrs.asdict(artifact.model.config)
    except UnsupportedModelError as error:
        model = {"family": f"unknown ({error})"}
    return {
        "path": str(artifact.path),
        "format": artifact.format,
        "family": model["family"],
        "parameters": artifact.parameters,
        "size": artifact.nbytes,
        "bits_per_weight": round(8 * artifact.tensor_nbytes / max(1, artifact.parameters), 4),
        "tokenizer": _tokenizer(artifact),
        "recipe": artifact.manifest.recipe if artifact.manifest else None,
        "stale_manifest": stale_manifest(artifact.path),
        "files": [file.name for file in artifact.files],
        "model": model,
        "config": dict(artifact.config),
        "tensors": [_tensor(name, tensor) for name, tensor in artifact.tensors.items()],
    }


def _tokenizer(artifact: Artifact) -> str | None:
    try:
        tokenizer = artifact.tokenizer
    except UnsupportedModelError as error:
        return f"unknown ({error})"
    if tokenizer is None:
        return None
    return "; ".join([f"{tokenizer.kind}, {counted(len(tokenizer.tokens), 'token')}", *tokenizer.remarks])


def _tensor(name: str, tensor: AnyTensor) -> dict[str, Any]:
    precision = tensor.precision.name if isinstance(tensor, EncodedTensor) else tensor.dtype
    return {"name": name, "shape": list(tensor.shape), "precision": precision, "nbytes": tensor.nbytes}


def _precisions(report: dict[str, Any]) -> list[tuple[object, ...]]:
    count: Counter[str] = Counter()
    elements: Counter[str] = Counter()
    nbytes: Counter[str] = Counter()
    for tensor in report["tensors"]:
        precision, elements_here = tensor["precision"], 1
        for dimension in tensor["shape"]:
            elements_here *= dimension
        count[precision] += 1
        elements[precision] += elements_here
        nbytes[precision] += tensor["nbytes"]
    return [(p, count[p], f"{elements[p]:,}", size(nbytes[p])) for p, _ in nbytes.most_common()]


def _shown(key: str, value: Any) -> str:
    return {"size": size, "parameters": "{:,}".format}.get(key, str)(value)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "…"


__all__ = ["command", "describe"]
