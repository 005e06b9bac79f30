"""Packages for containers, clusters and Ollama: the parts of each tool's grammar that they use, and what is refused."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from xml.etree import ElementTree

import pytest

import edgekit
from edgekit import sample
from edgekit.errors import UnsupportedModelError, UsageError
from edgekit.pipeline.packaging import package
from edgekit_workflow.memory import memory_needed

#: Instructions of a Dockerfile that are used, in an order that builds (docs.docker.com, Dockerfile reference).
INSTRUCTIONS = ["FROM", "RUN", "RUN", "COPY", "USER", "EXPOSE", "HEALTHCHECK", "CMD"]
#: Ollama's grammar (docs/modelfile.md): instructions, one a line, and comments.
MODELFILE = re.compile(r"(#.*|FROM \./[\w.-]+|PARAMETER [a-z_]+ \S+)")
QUANTITY = re.compile(r"[0-9]+(Ki|Mi|Gi)?")


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    return edgekit.quantize(sample.path(), "Q8_0", to=tmp_path_factory.mktemp("model") / "Sample 8.gguf")


def instructions(text):
    return [line.split(" ", 1) for line in text.splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize("source", ["gguf", "hf"])
def test_docker(source, gguf, tmp_path):
    artifact = gguf if source == "gguf" else edgekit.open(sample.path())
    written = package(artifact, "docker", to=tmp_path / "image")
    parsed = instructions((tmp_path / "image/Dockerfile").read_text())
    assert [name for name, _ in parsed] == INSTRUCTIONS
    fields = dict(parsed)
    command = json.loads(fields["CMD"])  # the exec form: JSON, so that SIGTERM reaches the server
    assert command[:2] == ["edgekit", "serve"]
    served = tmp_path / "image" / command[2].lstrip("/")
    assert edgekit.open(served).parameters == artifact.parameters
    assert json.loads(fields["HEALTHCHECK"].partition("CMD ")[2])[0] == "python"
    install = shlex.split(parsed[1][1])
    assert "edgekit-serve" in install
    assert ("edgekit-gguf" in install) == (source == "gguf")
    assert "docker build" in written.command
    assert set(written.files) >= {"Dockerfile", "README.md"}


def test_kubernetes(gguf, tmp_path):
    package(gguf, "kubernetes", to=tmp_path / "k", options={"name": "small", "replicas": 2, "context": 256})
    deployment, service = (
        json.loads((tmp_path / "k" / f"{name}.yaml").read_text()) for name in ("deployment", "service")
    )
    template = deployment["spec"]["template"]
    (container,) = template["spec"]["containers"]
    assert (deployment["apiVersion"], deployment["kind"], deployment["spec"]["replicas"]) == (
        "apps/v1",
        "Deployment",
        2,
    )
    assert deployment["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
    assert service["spec"]["ports"][0]["targetPort"] in {port["name"] for port in container["ports"]}
    assert container["image"] == "registry.example.com/small:1"
    limit = container["resources"]["limits"]["memory"]
    assert QUANTITY.fullmatch(limit)
    assert int(limit.removesuffix("Mi")) << 20 > memory_needed(gguf, 256, "llamacpp").total
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["port"] in {port["containerPort"] for port in container["ports"]}
    assert container["env"][0]["valueFrom"]["secretKeyRef"] == {"name": "small", "key": "key"}


def test_ollama(gguf, tmp_path):
    package(gguf, "ollama", to=tmp_path / "o", options={"context": 512})
    lines = (tmp_path / "o/Modelfile").read_text().splitlines()
    assert all(MODELFILE.fullmatch(line) for line in lines)
    assert "PARAMETER num_ctx 512" in lines
    model = next(line.split(" ")[1] for line in lines if line.startswith("FROM"))
    assert edgekit.open(tmp_path / "o" / model).parameters == gguf.parameters


def test_the_same_bytes_every_time(gguf, tmp_path):
    for name in ("a", "b"):
        package(gguf, "kubernetes", to=tmp_path / name)
    files = sorted(file.relative_to(tmp_path / "a") for file in (tmp_path / "a").rglob("*") if file.is_file())
    assert len(files) >= 6
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)


def test_ios(gguf, tmp_path):
    written = package(gguf, "ios", to=tmp_path / "i")
    manifest = (tmp_path / "i/Package.swift").read_text()
    targets = re.findall(r'\.target\(name: "(\w+)"', manifest)
    assert targets == ["CEdgekitModel", "EdgekitModel"]
    assert all((tmp_path / "i/Sources" / target).is_dir() for target in targets)
    (resource,) = re.findall(r'\.copy\("([\w.]+)"\)', manifest)
    assert edgekit.open(tmp_path / "i/Sources/EdgekitModel" / resource).parameters == gguf.parameters
    header = (tmp_path / "i/Sources/CEdgekitModel/include/edgekit_model.h").read_text()
    swift = (tmp_path / "i/Sources/EdgekitModel/EdgekitModel.swift").read_text()
    assert set(re.findall(r"\bedgekit_\w+(?=\()", swift)) == set(re.findall(r"\bedgekit_\w+(?=\()", header))
    assert "build-xcframework.sh" in written.command
    assert written.notes[0].startswith("not run here: Xcode, Gradle")


def test_android(gguf, tmp_path):
    package(gguf, "android", to=tmp_path / "a", options={"revision": "b6500"})
    main = tmp_path / "a/src/main"
    assert ElementTree.parse(main / "AndroidManifest.xml").getroot().tag == "manifest"
    assert edgekit.open(main / "assets/model.gguf").parameters == gguf.parameters
    cmake = (main / "cpp/CMakeLists.txt").read_text()
    assert "GIT_TAG b6500" in cmake
    (sources,) = re.findall(r"add_library\(edgekit_model SHARED (.*?)\)", cmake)
    assert all((main / "cpp" / source).exists() for source in sources.split())
    gradle = (tmp_path / "a/build.gradle.kts").read_text()
    assert (tmp_path / "a" / re.search(r'file\("(.*?)"\)', gradle)[1]).exists()
    java = main / "java/com/example/edgekit"
    native = re.findall(r"native \S+ (\w+)\(", (java / "EdgekitModel.java").read_text())
    bridge = re.findall(r"Java_com_example_edgekit_EdgekitModel_(\w+)", (main / "cpp/edgekit_jni.cpp").read_text())
    assert sorted(native) == sorted(bridge) == ["close", "generate", "open"]
    digest = hashlib.sha256((main / "assets/model.gguf").read_bytes()).hexdigest()[:12]
    assert f'"model-{digest}.gguf"' in (java / "Assets.java").read_text()


@pytest.mark.parametrize(
    ("server", "options", "message"),
    [
        ("docker", {"name": "Not Valid"}, "name 'Not Valid'; choose lower-case letters"),
        ("docker", {"image": "x; rm -rf /"}, "image 'x; rm -rf /'; write a name and a tag"),
        ("kubernetes", {"replicas": 0}, "replicas 0; choose 1 or more"),
        ("kubernetes", {"registry": "a b"}, "registry 'a b'; write a host"),
        ("ollama", {"context": 0}, "context 0; choose 1 or more"),
        ("android", {"revision": "x)\nexecute_process("}, "revision 'x)\\nexecute_process('; give a tag"),
    ],
)
def test_what_is_refused(server, options, message, gguf, tmp_path):
    with pytest.raises(UsageError, match=re.escape(message)):
        package(gguf, server, to=tmp_path / "x", options=options)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("server", "who"), [("ollama", "Ollama"), ("ios", "the Swift package"), ("android", "the Android module")]
)
def test_what_takes_gguf_only(server, who, tmp_path):
    with pytest.raises(
        UnsupportedModelError, match=f"{who} runs one GGUF file, this is hf; write one: edgekit quantize"
    ):
        package(sample.path(), server, to=tmp_path / "x")
