"""Packages for containers, clusters and Ollama: the files that each needs, and the command that starts it.

    docker       Dockerfile, the model, the command
    kubernetes   the same for the image; deployment.yaml and service.yaml
    ollama       Modelfile and the GGUF file

The tests check them against the parts of each tool's grammar that are used; the tools themselves are not run.

Sources: docs.docker.com, "Dockerfile reference"; kubernetes.io, "Deployment" and "Service" (apps/v1, v1);
github.com/ollama/ollama, ``docs/modelfile.md``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from edgekit.artifact import Artifact
from edgekit.errors import UnsupportedModelError, UsageError
from edgekit.pipeline.packaging import Package, write_files
from edgekit_workflow.memory import memory_needed

PORT = 8000
IMAGE = "python:3.12-slim"
#: Distributions that run each format.
DISTRIBUTIONS = {
    "hf": (),
    "gguf": ("edgekit-gguf", "edgekit-llamacpp"),
    "openvino": ("edgekit-openvino[genai]",),
    "onnx": ("edgekit-olive",),
    "mlx": ("edgekit-mlx",),
}
NOT_RUN = "not run here: written by the tool's documentation"
#: Names of containers, of Kubernetes' objects and of Ollama's models: RFC 1123's labels.
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
#: Memory beside the prediction, for requests and their texts.
_SPARE = 1.25


class Docker:
    """A container image that serves a model with `edgekit serve`; see `edgekit.pipeline.packaging.Packager`."""

    name = "docker"

    def package(self, source: Artifact, to: Path, *, name: str | None = None, image: str = IMAGE) -> Package:
        """Write the directory to build the image in.

        Args:
            source: an artifact of a format that a runtime of edgekit runs.
            to: the directory.
            name: of the image; None takes the source's file name.
            image: to build on; it has Python 3.11 or later.

        Raises:
            UnsupportedModelError: no known distribution runs the source's format.
            UsageError: the name or the image is malformed, or the target is not empty.
        """
        chosen = _name(source, name)
        contents = {"Dockerfile": dockerfile(source, image), ".dockerignore": "README.md\n*.yaml\n"}
        command = f"docker build -t {chosen} . && docker run --rm -p {PORT}:{PORT} -e EDGEKIT_API_KEY {chosen}"
        return write_package(self.name, to, _copies(source), contents, command)


class Kubernetes:
    """A deployment and a service around the image of `Docker`; see `edgekit.pipeline.packaging.Packager`."""

    name = "kubernetes"

    def package(
        self,
        source: Artifact,
        to: Path,
        *,
        name: str | None = None,
        image: str = IMAGE,
        registry: str = "registry.example.com",
        replicas: int = 1,
        context: int = 4096,
    ) -> Package:
        """Write the manifests, and the directory to build the image in.

        Args:
            source: an artifact of a format that a runtime of edgekit runs.
            to: the directory.
            name: of the deployment; None takes the source's file name.
            image: to build on.
            registry: from which the cluster takes the image.
            replicas: of the deployment.
            context: tokens for which memory is requested.

        Raises:
            UnsupportedModelError: no known distribution runs the source's format, or its family is unknown.
            UsageError: a name, a count or the image is malformed, or the target is not empty.
        """
        if type(replicas) is not int or replicas < 1:
            raise UsageError(f"replicas {replicas!r:.40}; choose 1 or more")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.:/_-]*", registry):
            raise UsageError(f"registry {registry!r:.80}; write a host and a path, such as registry.example.com/team")
        chosen = _name(source, name)
        megabytes = -(-int(_SPARE * memory_needed(source, context, _runtime(source)).total) // (1 << 20))
        pulled = f"{registry}/{chosen}:1"
        contents = {
            "Dockerfile": dockerfile(source, image),
            ".dockerignore": "README.md\n*.yaml\n",
            "deployment.yaml": _json(deployment(chosen, pulled, megabytes, replicas)),
            "service.yaml": _json(service(chosen)),
        }
        secret = f'kubectl create secret generic {chosen} --from-literal=key="$EDGEKIT_API_KEY"'
        build = f"docker build -t {pulled} . && docker push {pulled}"
        command = f"{build} && {secret} && kubectl apply -f deployment.yaml -f service.yaml"
        return write_package(self.name, to, _copies(source), contents, command)


class Ollama:
    """A Modelfile for Ollama; see `edgekit.pipeline.packaging.Packager`."""

    name = "ollama"

    def package(self, source: Artifact, to: Path, *, name: str | None = None, context: int | None = None) -> Package:
        """Write the Modelfile and the model.

        Args:
            source: a GGUF file with a tokenizer; its own chat template is used.
            to: the directory.
            name: of the model; None takes the source's file name.
            context: tokens; None for Ollama's own default.

        Raises:
            UnsupportedModelError: the source is no single GGUF file.
            UsageError: the name or the context is malformed, or the target is not empty.
        """
        model = one_gguf(source, "Ollama")
        if context is not None and (type(context) is not int or context < 1):
            raise UsageError(f"context {context!r:.40}; choose 1 or more")
        chosen = _name(source, name)
        command = f"ollama create {chosen} -f Modelfile && ollama run {chosen}"
        return write_package(self.name, to, {"model.gguf": model}, {"Modelfile": modelfile(context)}, command)


def one_gguf(source: Artifact, who: str) -> Path:
    """Return the file of a source that is one GGUF file.

    Args:
        source: to package.
        who: runs it, for the message.

    Raises:
        UnsupportedModelError: it is of another format, or several files.
    """
    if source.format != "gguf" or len(source.files) != 1:
        raise UnsupportedModelError(
            f"{source.path}: {who} runs one GGUF file, this is {source.format}; write one: "
            f"edgekit quantize {source.path} Q4_K_M --to model.gguf"
        )
    return source.files[0]


def modelfile(context: int | None) -> str:
    """Return Ollama's Modelfile; without a TEMPLATE Ollama takes the GGUF file's own."""
    parameter = "" if context is None else f"PARAMETER num_ctx {context}\n"
    return f"# {NOT_RUN}.\nFROM ./model.gguf\n{parameter}"


def dockerfile(source: Artifact, image: str) -> str:
    """Return the Dockerfile that serves a source.

    Raises:
        UnsupportedModelError: no known distribution runs the source's format.
        UsageError: a malformed image.
    """
    if source.format not in DISTRIBUTIONS:
        known = ", ".join(DISTRIBUTIONS)
        raise UnsupportedModelError(f"{source.path}: no runtime is known for {source.format}; convert it to {known}")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.:/_@-]*", image):
        raise UsageError(f"image {image!r:.80}; write a name and a tag, such as {IMAGE}")
    installed = " ".join(
        f"'{each}'" for each in ("edgekit-core[text,chat]", "edgekit-serve", *DISTRIBUTIONS[source.format])
    )
    serve = ["edgekit", "serve", f"/model/{_target(source)}".rstrip("/"), "--host", "0.0.0.0", "--port", str(PORT)]
    probe = f"import urllib.request as r; r.urlopen('http://127.0.0.1:{PORT}/health', timeout=3)"
    return (
        f"# {NOT_RUN}.\n"
        f"FROM {image}\n"
        f"RUN pip install --no-cache-dir {installed}\n"
        "RUN useradd --create-home --uid 10001 edgekit\n"
        "COPY model /model\n"
        "USER 10001\n"
        f"EXPOSE {PORT}\n"
        f"HEALTHCHECK --interval=30s --timeout=5s --start-period=120s CMD {json.dumps(['python', '-c', probe])}\n"
        f"CMD {json.dumps(serve)}\n"
    )


def deployment(name: str, image: str, megabytes: int, replicas: int) -> dict[str, object]:
    """Return a Deployment (apps/v1); the API key comes from the secret of the same name.

    Args:
        name: of the deployment.
        image: that the cluster pulls.
        megabytes: of memory that a replica requests and is limited to, in MiB.
        replicas: how many.
    """
    health = {"httpGet": {"path": "/health", "port": PORT}}
    container = {
        "name": name,
        "image": image,
        "ports": [{"containerPort": PORT, "name": "http"}],
        "env": [{"name": "EDGEKIT_API_KEY", "valueFrom": {"secretKeyRef": {"name": name, "key": "key"}}}],
        "resources": {
            "requests": {"cpu": "1", "memory": f"{megabytes}Mi"},
            "limits": {"memory": f"{megabytes}Mi"},
        },
        "startupProbe": {**health, "failureThreshold": 60, "periodSeconds": 5},
        "readinessProbe": {**health, "periodSeconds": 5},
        "livenessProbe": {**health, "periodSeconds": 20, "timeoutSeconds": 5},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "runAsNonRoot": True,
            "runAsUser": 10001,
        },
    }
    labels = {"app": name}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": [container], "terminationGracePeriodSeconds": 45},
            },
        },
    }


def service(name: str) -> dict[str, object]:
    """Return a Service (v1) in front of a deployment of that name."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": {"app": name}, "ports": [{"name": "http", "port": 80, "targetPort": "http"}]},
    }


def _json(record: Mapping[str, object]) -> str:
    """JSON, which is YAML too."""
    return json.dumps(record, indent=2) + "\n"


def _runtime(source: Artifact) -> str:
    """The runtime that the image's distributions bring for the format."""
    runtimes = {"gguf": "llamacpp", "openvino": "openvino", "onnx": "onnxruntime", "mlx": "mlx"}
    return runtimes.get(source.format, "numpy")


def _name(source: Artifact, name: str | None) -> str:
    chosen = (
        name or re.sub(r"[^a-z0-9]+", "-", source.path.resolve().stem.lower()).strip("-")[:63].strip("-") or "model"
    )
    if not _NAME.fullmatch(chosen):
        raise UsageError(f"name {chosen!r:.80}; choose lower-case letters, digits and dashes, at most 63")
    return chosen


def _target(source: Artifact) -> str:
    """The file in the package's ``model`` directory to serve; empty for the directory itself."""
    return f"model{source.path.suffix}" if source.path.is_file() else ""


def _copies(source: Artifact) -> dict[str, Path]:
    if source.path.is_file():
        if len(source.files) != 1:
            raise UnsupportedModelError(f"{source.path}: it has {len(source.files)} files; convert it to a single one")
        return {f"model/{_target(source)}": source.files[0]}
    return {f"model/{file.relative_to(source.path)}": file for file in source.files}


def write_package(
    server: str, to: Path, copies: Mapping[str, Path], contents: Mapping[str, str], command: str, note: str = NOT_RUN
) -> Package:
    """Write a package, whole or not at all.

    Args:
        server: the packager's name.
        to: the directory.
        copies: the files that are copied, by their paths in the package.
        contents: the texts of the others.
        command: that uses it.
        note: what of it was not run; for the README and the user.

    Raises:
        UsageError, ResourceError, LockedError: about the target.
    """
    readme = f"# {server}\n\n{note}.\n\n    {command}\n"
    names = write_files(to, server, {**contents, "README.md": readme}, copies)
    return Package(to, names, command, (note,))


__all__ = [
    "DISTRIBUTIONS",
    "IMAGE",
    "NOT_RUN",
    "PORT",
    "Docker",
    "Kubernetes",
    "Ollama",
    "deployment",
    "dockerfile",
    "modelfile",
    "one_gguf",
    "service",
    "write_package",
]
