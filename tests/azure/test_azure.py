"""The job and the environment for Azure Machine Learning, read by azure-ai-ml, which checks them against its schemas.

The published JSON schemas are made from those of the package. Nothing is sent: reading needs no workspace.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest

import edgekit
from edgekit import sample
from edgekit.errors import InvalidFileError, UsageError
from edgekit.pipeline.packaging import package

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from azure.ai.ml import load_environment, load_job
    from marshmallow import ValidationError

pytestmark = pytest.mark.filterwarnings("ignore")  # azure-ai-ml's own, about its dependencies
WORKFLOW = {
    "input_model": {"type": "HfModel", "model_path": "elsewhere"},
    "passes": {"a": {"type": "Rtn", "bits": 4, "group_size": 32}},
}


@pytest.fixture
def workflow(tmp_path: Path) -> Path:
    """A workflow file with one pass."""
    (tmp_path / "workflow.json").write_text(json.dumps(WORKFLOW))
    return tmp_path / "workflow.json"


def test_the_job_and_the_environment_are_what_azure_reads(workflow: Path, tmp_path: Path) -> None:
    options = {"workflow": str(workflow), "compute": "gpu-box", "name": "small"}
    made = package(sample.path(), "azureml", to=tmp_path / "out", options=options)
    job = load_job(made.path / "job.yml")
    assert job.type == "command"
    assert job.compute == "gpu-box"
    assert job.environment == "small@latest"
    assert job.inputs["model"].type == "uri_folder"
    assert (made.path / job.inputs["model"].path / "model.safetensors").is_file()
    assert (made.path / job.code / "workflow.json").is_file()
    assert job.outputs["best"].mode == "rw_mount"
    assert job.command.startswith("edgekit olive-run workflow.json --model ${{inputs.model}} --to best &&")
    environment = load_environment(made.path / "environment.yml")
    assert environment.name == "small"
    assert environment.conda_file["dependencies"][-1] == {"pip": ["edgekit-olive[olive]"]}
    assert any("not run here" in note for note in made.notes)
    assert edgekit.open(made.path / "model").model.config.layers == 3


@pytest.mark.parametrize(
    "change", [{"command": None}, {"outputs": {"best": {"type": "folder"}}}, {"compute": 5}, {"x": 1}]
)
def test_azure_notices_what_its_schema_does_not_have(change: dict, workflow: Path, tmp_path: Path) -> None:
    """The check above can fail."""
    made = package(sample.path(), "azureml", to=tmp_path / "out", options={"workflow": str(workflow)})
    record = json.loads((made.path / "job.yml").read_text()) | change
    record = {key: value for key, value in record.items() if value is not None}
    (made.path / "job.yml").write_text(json.dumps(record))
    with pytest.raises(ValidationError):
        load_job(made.path / "job.yml")


def test_what_is_refused_before_anything_is_written(workflow: Path, tmp_path: Path) -> None:
    def refused(error: type[Exception], message: str, **options: str) -> None:
        with pytest.raises(error, match=message):
            package(sample.path(), "azureml", to=tmp_path / "out", options=options)

    refused(UsageError, "the packager 'azureml' needs workflow=, a workflow file of Olive's")
    refused(UsageError, "compute 'a b'; choose letters", workflow=str(workflow), compute="a b")
    workflow.write_text("[]")
    refused(InvalidFileError, "not a workflow of Olive's", workflow=str(workflow))
    assert not (tmp_path / "out").exists()
