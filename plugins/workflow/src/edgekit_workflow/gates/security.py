"""Gates of security and compliance: the files, hashes, the chat template, a signature, the licence."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgekit.artifact import Artifact
from edgekit.errors import EdgekitError, MissingPluginError
from edgekit.files.foreign import read_bytes
from edgekit.manifest import stale_manifest
from edgekit.runtime.chat import has_template, prompt_of
from edgekit_workflow.gates.results import GateResult
from edgekit_workflow.gates.silent import listed
from edgekit_workflow.gates.subject import Subject

#: Files that run code when other programs load the model; a .bin beside its .xml is OpenVINO's weights.
UNSAFE = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.npy", "*.py", "*.so", "*.dll", "*.sh")
#: Largest model card that is read, in bytes.
CARD_LIMIT = 1 << 20
_HUB = "https://huggingface.co/"
_CONVERSATION = [{"role": "user", "content": "Hello"}]


def security_gates(subject: Subject) -> Iterator[GateResult]:
    """Yield the results of the gates of the category ``security``."""
    gates = {"files": files, "hashes": manifest_hashes, "template": template, "signature": signature}
    yield from (gate(subject) for name, gate in gates.items() if subject.policy.runs(name))


def compliance_gates(subject: Subject) -> Iterator[GateResult]:
    """Yield the results of the gates of the category ``compliance``."""
    for name in ("licence", "base_model"):
        if subject.policy.runs(name):
            yield _carried(subject, name)


def files(subject: Subject) -> GateResult:
    """The artifact's directory holds no pickles, no code, and no links out of it."""
    path = subject.artifact.path
    odd = [f"{name} {fault}" for name, fault in _odd_files(path)] if path.is_dir() else []
    return GateResult("files", "security", not odd, detail=listed(odd))


def _odd_files(directory: Path) -> Iterator[tuple[str, str]]:
    root = directory.resolve()
    for file in sorted(directory.rglob("*")):
        name = file.relative_to(directory).as_posix()
        if not file.resolve().is_relative_to(root):
            yield name, "leads out of the directory"
        elif file.is_file() and any(map(file.match, UNSAFE)) and not file.with_suffix(".xml").is_file():
            yield name, "may run code when it is loaded"
    config = _json(directory, "config.json")
    if "auto_map" in config:
        yield "config.json", "asks for code of its own (auto_map)"


def manifest_hashes(subject: Subject) -> GateResult:
    """The manifest beside the artifact belongs to it."""
    artifact = subject.artifact
    stale = stale_manifest(artifact.path)
    if stale is not None:
        return GateResult("hashes", "security", False, detail=stale)
    if artifact.manifest is None:
        return GateResult("hashes", "security", None, detail=f"{artifact.path.name} has no manifest")
    missing = sorted(set(artifact.manifest.tensors) - set(artifact.tensors))
    detail = f"the manifest names tensors that the files lack: {listed(missing)}" if missing else ""
    return GateResult("hashes", "security", not missing, detail=detail)


def template(subject: Subject) -> GateResult:
    """The chat template renders a message in the restricted process."""
    artifact = subject.artifact
    try:
        if not has_template(artifact):
            return GateResult("template", "security", True, detail="the model has no chat template")
        prompt_of(artifact, _CONVERSATION)
    except MissingPluginError as error:
        return GateResult("template", "security", None, detail=str(error))
    except EdgekitError as error:
        return GateResult("template", "security", False, detail=f"{artifact.path.name}: {error}")
    return GateResult("template", "security", True)


def signature(subject: Subject) -> GateResult:
    """The signature that was given is one of the artifact, by that key."""
    if subject.signature is None:
        return GateResult("signature", "security", None, detail="no signature was given")
    try:
        verifying: Any = importlib.import_module("model_signing.verifying")
    except ImportError as error:  # it imports pyOpenSSL without declaring it
        cure = f"verifying a signature needs model-signing ({error}); pip install model-signing pyopenssl"
        return GateResult("signature", "security", None, detail=cure)
    signed, key = subject.signature
    try:
        verifying.Config().use_elliptic_key_verifier(public_key=key).verify(subject.artifact.path, signed)
    except Exception as error:  # the library raises what its dependencies do
        return GateResult("signature", "security", False, detail=f"{signed.name}: {str(error) or type(error).__name__}")
    return GateResult("signature", "security", True)


def _carried(subject: Subject, name: str) -> GateResult:
    """The artifact states the source's licence, or base model, or none; another one fails."""
    words = {"licence": "licence", "base_model": "base model"}
    ours, theirs = (stated(artifact).get(name) for artifact in (subject.artifact, subject.source))
    if theirs is None:
        return GateResult(name, "compliance", None, detail=f"the source states no {words[name]}")
    if ours is None:
        detail = f"{subject.artifact.path.name} does not state the source's {words[name]}, {theirs}; put it beside it"
        return GateResult(name, "compliance", None, detail=detail)
    detail = theirs if ours == theirs else f"{subject.artifact.path.name} states {ours}, the source {theirs}"
    return GateResult(name, "compliance", ours == theirs, detail=detail)


def stated(artifact: Artifact) -> dict[str, str]:
    """Return the licence and the base model that an artifact states: in its metadata, its config, or its model card."""
    keys = {
        "licence": ("license", "general.license"),
        "base_model": ("base_model", "general.base_model.0.repo_url", "general.base_model.0.name"),
    }
    card = _card(artifact.path)
    found: dict[str, str] = {}
    for name, names in keys.items():
        values = [
            source[key] for source in (artifact.config, card) for key in names if isinstance(source.get(key), str)
        ]
        if values:
            found[name] = values[0].removeprefix(_HUB)
    return found


def origin(artifact: Artifact) -> str | None:
    """Return the model's name on the Hugging Face Hub (``owner/name``), where its config states one."""
    for key in ("_name_or_path", "general.repo_url"):
        name = str(artifact.config.get(key, "")).removeprefix(_HUB)
        if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith("."):
            return name
    return None


def _card(path: Path) -> Mapping[str, str]:
    """The plain values in the front matter of a model card: ``key: value``; of a list its items, with commas."""
    content = read_bytes(path, "README.md", CARD_LIMIT) if path.is_dir() else None
    matter = re.match(r"---\n(.*?)\n---", (content or b"").decode("utf-8", "replace").replace("\r", ""), re.DOTALL)
    if not matter:
        return {}
    pairs = re.findall(r"^(\w+):(?: *(\S.*)|((?:\n *- .*)+))$", matter[1], re.MULTILINE)
    return {key: ", ".join(_items(value, listed)) for key, value, listed in pairs}


def _items(value: str, listed: str) -> list[str]:
    """The items of a YAML list, in lines or in brackets, or the value itself; without quotes and comments."""
    items = listed.split("\n") if listed else value[1:-1].split(",") if re.fullmatch(r"\[.*\]", value) else [value]
    plain = (re.sub(r"\s#.*$", "", item).strip().removeprefix("- ").strip().strip("'\"") for item in items)
    return [item for item in plain if item]


def _json(directory: Path, name: str) -> Mapping[str, object]:
    try:
        parsed = json.loads(read_bytes(directory, name, CARD_LIMIT) or b"{}")
    except (ValueError, RecursionError):
        return {}
    return parsed if isinstance(parsed, dict) else {}


__all__ = ["CARD_LIMIT", "UNSAFE", "compliance_gates", "origin", "security_gates", "stated"]
