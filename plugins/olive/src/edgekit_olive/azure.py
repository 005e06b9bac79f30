"""Writes the files with which Azure Machine Learning runs a workflow of Olive's; not run there.

    job.yml            a command job (CLI v2): the workflow on the model, its best model as the output
    environment.yml    the image, with the packages of conda.yml
    conda.yml          Python and edgekit-olive[olive]
    code/              the workflow file
    model/             the model, which the job mounts
    README.md          the commands that register the environment and start the job

The files are JSON, which is YAML too. Compute, workspace and credentials are those of the `az` command.

Sources: learn.microsoft.com, "CLI (v2) command job YAML schema" and "CLI (v2) environment YAML schema"; azure-ai-ml
1.35.2, whose `load_job` and `load_environment` check what is written, in the tests.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from edgekit.artifact import Artifact
from edgekit.errors import UsageError
from edgekit.pipeline.packaging import Package, write_files
from edgekit_olive.workflow import read_workflow

IMAGE = "mcr.microsoft.com/azureml/openmpi4.1.0-ubuntu22.04"
NOT_RUN = "not run here: written by the documentation of Azure Machine Learning, and read by azure-ai-ml in the tests"
_SCHEMAS = "https://azuremlschemas.azureedge.net/latest"
#: Names of environments and of computes, and those of images.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,31}")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.:/_@-]*")


class AzureMl:
    """A command job that runs a workflow of Olive's; see `edgekit.pipeline.packaging.Packager`."""

    name = "azureml"

    def package(
        self,
        source: Artifact,
        to: Path,
        *,
        workflow: str | Path | None = None,
        name: str = "edgekit-olive",
        compute: str = "cpu-cluster",
        image: str = IMAGE,
    ) -> Package:
        """Write the directory from which `az ml job create` starts the job.

        Args:
            source: the model, in a format that the workflow's passes take.
            to: the directory.
            workflow: Olive's JSON; its ``input_model`` is replaced by the source.
            name: of the environment and of the experiment.
            compute: name of the compute in the workspace.
            image: on which the environment is built.

        Raises:
            UsageError: there is no workflow, or a name is malformed.
            InvalidFileError: the file is no workflow.
        """
        if workflow is None:
            raise UsageError("the packager 'azureml' needs workflow=, a workflow file of Olive's")
        for key, value, allowed in (("name", name, _NAME), ("compute", compute, _NAME), ("image", image, _IMAGE)):
            if not isinstance(value, str) or not allowed.fullmatch(value):
                raise UsageError(f"{key} {value!r:.80}; choose letters, digits and dashes, such as cpu-cluster")
        config = read_workflow(Path(workflow))
        root = source.path if source.path.is_dir() else source.path.parent
        model = "" if source.path.is_dir() else f"/{source.path.name}"
        contents: dict[str, object] = {
            "job.yml": job(name, compute, model),
            "environment.yml": environment(name, image),
            "conda.yml": conda(name),
            "code/workflow.json": config,
        }
        copies = {f"model/{file.relative_to(root).as_posix()}": file for file in source.files}
        return _write(to, copies, contents)


def job(name: str, compute: str, model: str) -> dict[str, object]:
    """Return a command job.

    Args:
        name: of the environment and of the experiment.
        compute: name of the compute.
        model: path of the model below the mounted directory, with a slash in front; empty for the directory.
    """
    run = f"edgekit olive-run workflow.json --model ${{{{inputs.model}}}}{model} --to best"
    return {
        "$schema": f"{_SCHEMAS}/commandJob.schema.json",
        "type": "command",
        "display_name": f"{name}-workflow",
        "experiment_name": name,
        "description": "A workflow of Olive's, run by edgekit without telemetry.",
        "code": "code",
        "command": f"{run} && cp -r best/. ${{{{outputs.best}}}}",  # a mounted directory cannot be replaced as a whole
        "inputs": {"model": {"type": "uri_folder", "path": "model", "mode": "ro_mount"}},
        "outputs": {"best": {"type": "uri_folder", "mode": "rw_mount"}},
        "environment": f"azureml:{name}@latest",
        "compute": f"azureml:{compute}",
    }


def environment(name: str, image: str) -> dict[str, object]:
    """Return an environment: an image with the packages of ``conda.yml``."""
    return {
        "$schema": f"{_SCHEMAS}/environment.schema.json",
        "name": name,
        "description": "edgekit with Olive.",
        "image": image,
        "conda_file": "conda.yml",
    }


def conda(name: str) -> dict[str, object]:
    """Return conda's file of packages."""
    packages: list[object] = ["python=3.11", "pip", {"pip": ["edgekit-olive[olive]"]}]
    return {"name": name, "channels": ["conda-forge"], "dependencies": packages}


def _write(to: Path, copies: Mapping[str, Path], contents: Mapping[str, object]) -> Package:
    command = "az ml environment create -f environment.yml && az ml job create -f job.yml"
    texts = {name: json.dumps(record, indent=2) + "\n" for name, record in contents.items()}
    texts["README.md"] = f"# Azure Machine Learning\n\n{NOT_RUN}.\n\n    {command}\n"
    return Package(to, write_files(to, AzureMl.name, texts, copies), command, (NOT_RUN,))


__all__ = ["IMAGE", "NOT_RUN", "AzureMl", "conda", "environment", "job"]
