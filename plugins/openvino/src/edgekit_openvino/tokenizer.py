"""Converts a tokenizer to OpenVINO models (tokenizer, detokenizer), which GenAI and the model server need.

openvino-tokenizers converts the Hugging Face files through transformers. It runs in a child process, since it takes
seconds and some hundred megabytes, and its output depends on what the process did before. The models are optional:
`edgekit.load` uses edgekit's tokenizer. If they are missing, a note of the conversion and the XML say why. If the
source is such a directory itself, its models are copied together with the tokenizer.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping
from pathlib import Path

import attrs

from edgekit.files import pairs
from edgekit.files.memory import refuse_shortage, shortage
from edgekit.files.temporary import temporary_directory

#: Timeout of a conversion in seconds; the largest vocabularies take about ten.
TIMEOUT = 300
_WHAT = "converting the tokenizer for OpenVINO"
_KILLED = 9  # SIGKILL; the signal module lacks it on Windows
#: Packages that are needed to convert a tokenizer.
NEEDED = ("openvino_tokenizers", "transformers")
#: File names of the models.
MODELS = tuple(f"openvino_{which}.{end}" for which in ("tokenizer", "detokenizer") for end in ("xml", "bin"))
#: Files in a directory that describe its tokenizer.
SOURCES = ("tokenizer.json", "tokenizer.model", "vocab.json")


#: The last conversion, by the SHA-256 of what it read: many artifacts of one model have the same tokenizer.
_KNOWN: dict[bytes, Converted] = {}


@attrs.frozen
class Converted:
    """The result of converting a tokenizer.

    Attributes:
        files: name -> content of the models; empty if there are none.
        note: the outcome in words.
        failed: whether there is a tokenizer that could not be converted.
    """

    files: Mapping[str, bytes]
    note: str
    failed: bool = False


def tokenizer_models(directory: Mapping[str, bytes], source: Iterable[Path] = ()) -> Converted:
    """Return the models of a directory's tokenizer: copied from the source if it has all of them, else converted.

    Args:
        directory: the small files of the directory, name -> content.
        source: the source's files; models among them must belong to the same tokenizer.

    Raises:
        ResourceError: memory or disk space is exhausted. If the tokenizer cannot be converted, the note says so.
    """
    models = {path.name: path for path in source if path.name in MODELS}
    if len(models) == len(MODELS):
        return Converted({name: models[name].read_bytes() for name in MODELS}, "the source's")
    if not any(name in directory for name in SOURCES):
        return Converted({}, "none in the source")
    lacking = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if lacking:
        return _failed(f"{' and '.join(lacking)} {'are' if len(lacking) > 1 else 'is'} not installed")
    read = {name: content for name, content in directory.items() if name != pairs.INSIDE}
    key = _key(read)
    if (known := _KNOWN.get(key)) is not None:
        return known
    with temporary_directory(_WHAT) as folder:
        for name, content in read.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
        converted = _converted(folder)
    if not converted.failed:  # what failed may work at another time
        _KNOWN.clear()
        _KNOWN[key] = converted
    return converted


def _key(files: Mapping[str, bytes]) -> bytes:
    """SHA-256 of the files' names and contents."""
    digests = [hashlib.sha256(part).digest() for name in sorted(files) for part in (name.encode(), files[name])]
    return hashlib.sha256(b"".join(digests)).digest()


def _failed(reason: str) -> Converted:
    return Converted({}, f"not converted: {reason}", failed=True)


def _converted(folder: Path) -> Converted:
    command = [sys.executable, "-W", "ignore", "-m", "edgekit_openvino.tokenizer", str(folder)]
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "USE_TORCH": "0", "CI": "1"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT, check=False, env={**os.environ, **quiet}
        )
    except subprocess.TimeoutExpired:
        return _failed(f"it took more than {TIMEOUT} seconds")
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        _refuse_outage(done.returncode, reason)
        return _failed(reason[:200])
    files = {path.name: path.read_bytes() for path in sorted(folder.glob("openvino_*"))}
    return Converted(
        {name: _renamed(data) if name.endswith(".xml") else data for name, data in files.items()}, "converted"
    )


def _refuse_outage(code: int, reason: str) -> None:
    """Raise an error if the conversion failed for lack of resources, since it would succeed on another machine.

    Raises:
        MemoryShortageError: the child process ran out of memory, or was killed, which the kernel does in that case.
        OSError: the temporary directory is full.
    """
    refuse_shortage(RuntimeError(reason), _WHAT)
    if code == -_KILLED:
        raise shortage(_WHAT)
    if os.strerror(errno.ENOSPC) in reason:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _renamed(xml: bytes) -> bytes:
    """Return the XML with node names that do not depend on the nodes created before in the process."""
    root, names = ET.fromstring(xml), dict[str, str]()
    for element in root.iter():
        for key in ("name", "names", "output_names"):
            value = element.get(key, "")
            match = re.fullmatch(r"([A-Za-z]+)_\d+", value)
            if match and element.tag in ("layer", "port"):
                element.set(key, names.setdefault(value, f"{match[1]}.{len(names)}"))
    text: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return text + b"\n"


def convert(folder: Path) -> None:
    """Write the models of a directory's tokenizer into the directory; called in the child process."""
    import openvino
    from openvino_tokenizers import convert_tokenizer
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    # The generic class follows tokenizer.json, as the other runtimes do; a specific class would import torch.
    loader = PreTrainedTokenizerFast if (folder / "tokenizer.json").is_file() else AutoTokenizer
    tokenizer = loader.from_pretrained(str(folder), local_files_only=True)
    models = convert_tokenizer(tokenizer, with_detokenizer=True)
    for name, model in zip(("openvino_tokenizer", "openvino_detokenizer"), models, strict=True):
        openvino.save_model(model, folder / f"{name}.xml")


if __name__ == "__main__":
    convert(Path(sys.argv[1]))

__all__ = ["MODELS", "NEEDED", "SOURCES", "TIMEOUT", "Converted", "convert", "tokenizer_models"]
