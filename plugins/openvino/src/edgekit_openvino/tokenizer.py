"""The tokenizer and the detokenizer as OpenVINO models, which GenAI and the model server want beside a model.

openvino-tokenizers makes them of the Hugging Face files, through transformers. That happens in a child process: it
takes seconds and some hundred megabytes, and what it writes depends on what the process did before. The directory is
whole without them: `edgekit.load` cuts texts with edgekit's own tokenizer. Why they are missing is a note of the
conversion, and stands in the XML.
A source that is such a directory itself has them already; they are taken over with the tokenizer that they are of.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping
from pathlib import Path

import attrs

from edgekit.files.memory import refuse_shortage, shortage
from edgekit.files.temporary import temporary_directory

#: Seconds that a conversion may take; the largest vocabularies take some ten.
TIMEOUT = 300
_WHAT = "converting the tokenizer for OpenVINO"
_KILLED = 9  # SIGKILL, which the signal module lacks on Windows
#: What there has to be to convert a tokenizer.
NEEDED = ("openvino_tokenizers", "transformers")
#: The models.
MODELS = tuple(f"openvino_{which}.{end}" for which in ("tokenizer", "detokenizer") for end in ("xml", "bin"))
#: Files of a directory that describe its tokenizer.
SOURCES = ("tokenizer.json", "tokenizer.model", "vocab.json")


@attrs.frozen
class Converted:
    """What became of a tokenizer.

    Attributes:
        files: name -> content of the models; empty where there are none.
        note: what became of it, in words.
        failed: whether there is a tokenizer that was not converted.
    """

    files: Mapping[str, bytes]
    note: str
    failed: bool = False


def tokenizer_models(directory: Mapping[str, bytes], source: Iterable[Path] = ()) -> Converted:
    """The models of a directory's tokenizer: the source's, where it has them all, else converted.

    Args:
        directory: its small files, name -> content.
        source: files of what it is made from; where there are models of a tokenizer among them, they are of this one.

    Raises:
        ResourceError: memory or disk space do not suffice; a tokenizer that cannot be converted is noted instead.
    """
    models = {path.name: path for path in source if path.name in MODELS}
    if len(models) == len(MODELS):
        return Converted({name: models[name].read_bytes() for name in MODELS}, "the source's")
    if not any(name in directory for name in SOURCES):
        return Converted({}, "none in the source")
    lacking = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if lacking:
        return _failed(f"{' and '.join(lacking)} {'are' if len(lacking) > 1 else 'is'} not installed")
    with temporary_directory(_WHAT) as folder:
        for name, content in directory.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
        return _converted(folder)


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
    """Raise an error if the machine failed and not the tokenizer: the same command would write more files elsewhere.

    Raises:
        MemoryShortageError: the child process ran out of memory, or was killed, as the kernel does in that case.
        OSError: the temporary directory is full.
    """
    refuse_shortage(RuntimeError(reason), _WHAT)
    if code == -_KILLED:
        raise shortage(_WHAT)
    if os.strerror(errno.ENOSPC) in reason:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _renamed(xml: bytes) -> bytes:
    """The XML with names that do not depend on how many nodes the process had made before."""
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
    """Write the models of a directory's tokenizer into it; what the child process does."""
    import openvino
    from openvino_tokenizers import convert_tokenizer
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    # What tokenizer.json says is what the other runtimes do; and the class of its own would bring all of torch.
    loader = PreTrainedTokenizerFast if (folder / "tokenizer.json").is_file() else AutoTokenizer
    tokenizer = loader.from_pretrained(str(folder), local_files_only=True)
    models = convert_tokenizer(tokenizer, with_detokenizer=True)
    for name, model in zip(("openvino_tokenizer", "openvino_detokenizer"), models, strict=True):
        openvino.save_model(model, folder / f"{name}.xml")


if __name__ == "__main__":
    convert(Path(sys.argv[1]))

__all__ = ["MODELS", "NEEDED", "SOURCES", "TIMEOUT", "Converted", "convert", "tokenizer_models"]
