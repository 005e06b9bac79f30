"""Damage every kind of file that edgekit reads, and hold its reader to its limits.

python tests/contracts/fuzz_readers.py [--seed N] [--count N] [--kind KIND] [--jobs N]

Whatever a file holds, the answer is a result or an `EdgekitError` of a reasonable length, within a second of processor
time and 64 MB more than the file has. A safetensors file that edgekit accepts the safetensors library accepts too. Inputs
that gave anything else are printed, and kept. Exits with 1 where there were any.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import attrs
import numpy as np
from damage import damaged

import edgekit
from edgekit import sample
from edgekit.cli._verbs.inspect import describe
from edgekit.errors import EdgekitError, MemoryShortageError
from edgekit.formats import safetensors
from edgekit.manifest import Manifest, read_manifest
from edgekit.tensor import EncodedTensor

SECONDS, MEMORY = 1.0, 64 << 20
#: By the clock: what waits for ever takes no processor time.
WAITED = 120.0
LONGEST_MESSAGE = 3000


@attrs.frozen
class Kind:
    """One kind of file.

    Attributes:
        files: the whole input, name to content; a name with ``/`` lies in a directory.
        damaged: names of those that are damaged, the more often the more they stand there.
        use: opens and reads all, given the folder.
    """

    files: Mapping[str, bytes]
    damaged: tuple[str, ...]
    use: Callable[[Path], None]


def kinds() -> dict[str, Kind]:
    """All kinds for which a reader is installed."""
    with tempfile.TemporaryDirectory() as folder:
        directory, single = _directory(), _safetensors()
        found = {
            "safetensors": Kind({"m.safetensors": single}, ("m.safetensors",), _use_safetensors),
            "hf": Kind(directory, tuple(directory), _use_directory),
            "sentencepiece": Kind(_sentencepiece(directory), ("d/tokenizer.model",) * 4 + _SPM, _use_directory),
            "vocab": Kind(_vocabulary(directory), ("d/vocab.json", "d/merges.txt", *_SPM), _use_directory),
            "manifest": Kind({"m.bin.edgekit.json": _manifest()}, ("m.bin.edgekit.json",), _use_manifest),
        }
        found |= _gguf(Path(folder)) | _ir() | _onnx()
    return found


_SPM = ("d/tokenizer_config.json", "d/special_tokens_map.json", "d/added_tokens.json")


# --- What is damaged --------------------------------------------------------------------------------------------


def _safetensors() -> bytes:
    parts = [safetensors.Part("a", "float32", (2, 3)), safetensors.Part("b.weight", "bfloat16", (4,))]
    parts += [safetensors.Part("c", "uint8", ()), safetensors.Part("d", "int64", (0, 5))]
    return safetensors.build_header(parts, {"format": "pt"}) + bytes(33)


def _directory() -> dict[str, bytes]:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 20,
        "max_position_embeddings": 32,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        "tie_word_embeddings": True,
        "eos_token_id": [1, 2],
        "torch_dtype": "float32",
    }
    shapes = {
        "model.embed_tokens.weight": (20, 8),
        "model.norm.weight": (8,),
        **{f"model.layers.0.{name}_layernorm.weight": (8,) for name in ("input", "post_attention")},
        **{f"model.layers.0.self_attn.{name}_proj.weight": (8, 8) for name in "qo"},
        **{f"model.layers.0.self_attn.{name}_proj.weight": (4, 8) for name in "kv"},
        **{f"model.layers.0.mlp.{name}_proj.weight": (8, 8) for name in ("gate", "up", "down")},
    }
    parts = [safetensors.Part(name, "float32", shape) for name, shape in shapes.items()]
    shards = {f"model-0000{n + 1}-of-00002.safetensors": parts[n::2] for n in (0, 1)}
    index = {"weight_map": {part.name: shard for shard, held in shards.items() for part in held}}
    tokenizer = json.loads((sample.path() / "tokenizer.json").read_text("utf-8"))
    tokens = ["<s>", "</s>", *(chr(97 + n) for n in range(16)), "ab", "abc"]
    tokenizer["model"] |= {"vocab": {t: n for n, t in enumerate(tokens)}, "merges": [["a", "b"], ["ab", "c"]]}
    tokenizer["added_tokens"] = tokenizer["added_tokens"][:2]
    special = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "additional_special_tokens": ["a"]}
    chosen = {**special, "added_tokens_decoder": {"1": {"content": "</s>", "special": True}}, "add_bos_token": True}
    chosen["chat_template"] = [{"name": "default", "template": "{{ messages }}"}]
    plain = {
        "config.json": config,
        "model.safetensors.index.json": index,
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": {**chosen, "tokenizer_class": "GPT2Tokenizer"},
        "special_tokens_map.json": special,
        "added_tokens.json": {"ab": 18},
        "generation_config.json": {"eos_token_id": [1, 2]},
        "chat_template.json": {"chat_template": "{{ messages }}"},
        "edgekit.manifest.json": json.loads(_manifest()),
    }
    files = {name: json.dumps(value).encode() for name, value in plain.items()}
    for shard, held in shards.items():
        files[shard] = safetensors.build_header(held, {}) + bytes(sum(part.nbytes for part in held))
    return {f"d/{name}": content for name, content in files.items()}


def _without_json(directory: Mapping[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in directory.items() if name != "d/tokenizer.json"}


def _sentencepiece(directory: Mapping[str, bytes]) -> dict[str, bytes]:
    def field(number: int, data: bytes) -> bytes:
        return bytes([number << 3 | 2, len(data)]) + data

    def piece(text: str, score: float, kind: int) -> bytes:
        return field(1, field(1, text.encode()) + b"\x15" + struct.pack("<f", score) + bytes([3 << 3, kind]))

    special = [("<s>", 0.0, 3), ("</s>", 0.0, 3), ("<unk>", 0.0, 2), ("▁", -1.0, 1)]
    pieces = [*special, *((chr(97 + n), -2.0, 1) for n in range(14))]  # "ab" comes 18th in added_tokens.json
    model = b"".join(piece(*each) for each in pieces) + field(2, b"\x18\x02") + field(3, b"\x18\x01")
    return _without_json(directory) | {"d/tokenizer.model": model}


def _vocabulary(directory: Mapping[str, bytes]) -> dict[str, bytes]:
    tokens = ["<s>", "</s>", *(chr(97 + n) for n in range(16)), "ab", "abc"]
    vocab = json.dumps({token: number for number, token in enumerate(tokens)}).encode()
    return _without_json(directory) | {"d/vocab.json": vocab, "d/merges.txt": b"#version: 0.2\na b\nab c\n"}


def _manifest() -> bytes:
    tensors = {"a": {"precision": "ggml:Q4_0", "reason": "", "backend": "core"}}
    given = Manifest(sources={"x": "00"}, recipe="Q4_0", tensors=tensors, versions={"numpy": "2"}, quality={"kl": 0.5})
    return given.to_json().encode()


def _gguf(folder: Path) -> dict[str, Kind]:
    try:
        from edgekit_gguf.imatrix import read_imatrix
    except ImportError:
        return {}
    for name, content in _directory().items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "d/edgekit.manifest.json").unlink()
    made = edgekit.convert(folder / "d", folder / "m.gguf").path
    from edgekit_gguf import imatrix

    activations = imatrix.Activations({"blk.0.ffn_up.weight": np.ones(8), "blk.0.attn_q.weight": np.ones(8)}, 8, 4)
    imatrix.write_imatrix(folder / "i.gguf", activations, "text")
    beside = "m.gguf.edgekit.json"
    model = {"m.gguf": made.read_bytes(), beside: (folder / beside).read_bytes()}
    return {
        "gguf": Kind(model, ("m.gguf",) * 9 + (beside,), lambda where: _use(where / "m.gguf")),
        "imatrix": Kind(
            {"i.gguf": (folder / "i.gguf").read_bytes()}, ("i.gguf",), lambda w: read_imatrix(w / "i.gguf")
        ),
    }


IR = b"""<?xml version="1.0"?>
<net name="small" version="11">
  <layers>
    <layer id="0" name="x" type="Parameter" version="opset1"><data shape="?,3" element_type="f32"/></layer>
    <layer id="1" name="w" type="Const" version="opset1"><data element_type="u8" shape="2, 3" offset="0" size="6"/></layer>
    <layer id="2" name="c" type="Convert" version="opset1"><data destination_type="f16"/></layer>
    <layer id="3" name="s" type="Const" version="opset1"><data element_type="f16" shape="2, 1" offset="6" size="4"/></layer>
    <layer id="4" name="m" type="Multiply" version="opset1"/>
    <layer id="5" name="v" type="Const" version="opset1"><data element_type="f32" shape="4" offset="10" size="16"/></layer>
  </layers>
  <edges>
    <edge from-layer="1" from-port="0" to-layer="2" to-port="0"/>
    <edge from-layer="2" from-port="1" to-layer="4" to-port="0"/>
    <edge from-layer="3" from-port="0" to-layer="4" to-port="1"/>
  </edges>
  <rt_info/>
</net>
"""


def _ir() -> dict[str, Kind]:
    try:
        from edgekit_openvino.format import OpenVinoFormat
    except ImportError:
        return {}
    files = {"m.xml": IR, "m.bin": bytes(26)}
    return {"ir": Kind(files, ("m.xml",) * 9 + ("m.bin",), lambda where: _read(OpenVinoFormat().open(where / "m.xml")))}


def _onnx() -> dict[str, Kind]:
    """A graph with weights inside and beside it, plain and in codes of each operator that decodes some."""
    try:
        from onnx import TensorProto, helper, numpy_helper

        import edgekit_olive  # noqa: F401
    except ImportError:
        return {}
    codes, scales = np.arange(64, dtype=np.uint8).reshape(4, 1, 16), np.ones((4, 1), np.float32)
    inside = {"q.B": codes, "q.scales": scales, "t.B": codes[:, 0], "c": scales.ravel(), "z": np.zeros(4, np.int8)}
    inside |= {"d": np.ones((4, 3), np.int8), "ids": np.arange(2), "v": np.ones(5, np.float16)}
    inside |= {"n_Bnb4": codes[0, 0], "n": np.ones(2, np.float32), "first": np.ones((), bool)}
    weights = [numpy_helper.from_array(array, name) for name, array in inside.items()]
    beside = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[3, 2], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": "m.data", "offset": "4", "length": "24"}.items():
        beside.external_data.add(key=key, value=value)
    typed = helper.make_tensor("f", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0])
    numbers = {"bits": 4, "block_size": 32}
    nodes = [
        helper.make_node("MatMulNBits", ["x", "q.B", "q.scales"], ["a"], domain="com.microsoft", K=32, N=4, **numbers),
        helper.make_node(
            "GatherBlockQuantized",
            ["t.B", "ids", "q.scales"],
            ["b"],
            domain="com.microsoft",
            quantize_axis=1,
            **numbers,
        ),
        helper.make_node("DequantizeLinear", ["d", "c", "z"], ["e"], axis=0),
        helper.make_node("Slice", ["b", "ids", "ids", "ids"], ["g"]),
        helper.make_node(
            "MatMulBnb4", ["x", "n_Bnb4", "n"], ["h"], domain="com.microsoft", K=16, N=2, block_size=16, quant_type=1
        ),
    ]
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(np.ones((3, 2), np.float32)))],
        "branch",
        [],
        [helper.make_tensor_value_info("k", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.ones(4, np.float32), "held")],
    )
    nodes.append(helper.make_node("If", ["first"], ["k"], then_branch=branch, else_branch=branch))
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 32]) for name in ("x", "a")]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], [*weights, beside, typed])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    files = {"m.onnx": model, "m.data": bytes(28)}
    return {"onnx": Kind(files, ("m.onnx",) * 9 + ("m.data",), lambda where: _use(where / "m.onnx"))}


# --- How it is used ---------------------------------------------------------------------------------------------


def _use(path: Path) -> None:
    artifact = edgekit.open(path)
    errors: list[EdgekitError] = []
    for look in (lambda: describe(artifact), lambda: _read(artifact), lambda: _cut(artifact)):
        try:
            look()
        except EdgekitError as error:
            errors.append(error)
    if errors:
        raise errors[0]


def _read(artifact: edgekit.Artifact) -> None:
    for tensor in artifact.tensors.values():
        if isinstance(tensor, EncodedTensor) or "float" in tensor.dtype:
            with np.errstate(all="ignore"):
                tensor.float32()
        else:
            tensor.read()


def _cut(artifact: edgekit.Artifact) -> None:
    tokenizer = artifact.tokenizer
    if tokenizer is not None:
        tokenizer.decode(tokenizer.encode("abc <s> x\n"))
        tokenizer.to_json()


def _use_directory(where: Path) -> None:
    _use(where / "d")


def _use_manifest(where: Path) -> None:
    found = read_manifest(where / "m.bin")
    if found is not None:
        assert Manifest.from_json(found.to_json().encode(), where) == found


def _use_safetensors(where: Path) -> None:
    import safetensors as library

    path = where / "m.safetensors"
    tensors, _ = safetensors.open_tensors(path)
    with library.safe_open(path, framework="numpy") as opened:  # what is accepted here, the library accepts
        assert set(opened.keys()) == set(tensors)
    for tensor in tensors.values():
        tensor.read()


# --- Limits -----------------------------------------------------------------------------------------------------


class TooLongError(BaseException):
    """One input took more than `SECONDS` of processor time, or `WAITED` by the clock."""


def _too_long(*_: object) -> None:
    raise TooLongError


@contextmanager
def limits(nbytes: int) -> Iterator[None]:
    """Processor time, whatever else the machine does, and address space; where the system has such limits."""
    if not hasattr(signal, "setitimer") or not Path("/proc/self/statm").exists():
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    handlers = {number: signal.signal(number, _too_long) for number in (signal.SIGVTALRM, signal.SIGALRM)}
    resource.setrlimit(resource.RLIMIT_AS, (used + nbytes + MEMORY, before[1]))
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, WAITED)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def attempt(kind: Kind, folder: Path, nbytes: int) -> str:
    """The class of the error that an input gives; empty for a result."""
    try:
        with warnings.catch_warnings(), limits(nbytes):
            warnings.simplefilter("error")
            kind.use(folder)
    except MemoryShortageError:
        raise
    except EdgekitError as error:
        assert 0 < len(str(error)) < LONGEST_MESSAGE, f"a message of {len(str(error))} characters"
        assert "\n" not in str(error).strip() or "library" in str(error), f"a message of several lines: {error}"
        return type(error).__name__
    return ""


def put(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files into a folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


Outcome = tuple[dict[str, Counter[str]], list[str]]


def fuzz(home: Path, seed: int, numbers: Iterable[int], only: str | None = None) -> Outcome:
    """How often each kind gave which error, and a traceback for each input that gave anything else."""
    chosen = {name: kind for name, kind in kinds().items() if only in (None, name)}
    seen: dict[str, Counter[str]] = {name: Counter() for name in chosen}
    wrong: list[str] = []
    names = sorted(chosen)
    for name in names:
        put(home / name, chosen[name].files)
        chosen[name].use(home / name)  # undamaged it is read; and what is imported late is there afterwards
    for number in numbers:
        name = names[number % len(names)]
        kind, folder, rng = chosen[name], home / name, random.Random(f"{seed}:{number}")
        victim = rng.choice(kind.damaged)
        content = damaged(rng, victim, kind.files[victim])
        (folder / victim).write_bytes(content)
        try:
            seen[name][attempt(kind, folder, len(content))] += 1
        except (Exception, TooLongError):
            kept = home / f"{name}-{seed}-{number}"
            shutil.copytree(folder, kept)
            wrong.append(f"{kept} ({victim}):\n{traceback.format_exc(limit=-6)}")
        (folder / victim).write_bytes(kind.files[victim])
    return seen, wrong


def fuzz_in_parts(home: Path, seed: int, count: int, only: str | None, jobs: int) -> Outcome:
    """As `fuzz`, in several processes; the inputs are the same for any number of them."""
    parts = [(home / str(job), seed, range(job, count, jobs), only) for job in range(jobs)]
    with get_context("spawn").Pool(jobs) as pool:
        outcomes = pool.starmap(fuzz, parts, chunksize=1)
    seen = {name: sum((found[name] for found, _ in outcomes), Counter[str]()) for name in outcomes[0][0]}
    return seen, [each for _, wrong in outcomes for each in wrong]


def main() -> int:
    """Print what was found; gives 1 where anything but a result or an EdgekitError came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--kind", default=None)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at the same time")
    options = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    home = Path(tempfile.mkdtemp(prefix="edgekit-fuzz-"))
    start = time.monotonic()
    seen, wrong = fuzz_in_parts(home, options.seed, options.count, options.kind, options.jobs)
    for name, found in seen.items():
        print(f"{sum(found.values()):8} {name:14}", ", ".join(f"{n} {e or 'read'}" for e, n in found.most_common()))
    children = os.times()
    took = f"{time.monotonic() - start:.0f} s, {children.children_user + children.children_system:.0f} s of a processor"
    print(f"{len(wrong)} of {options.count} inputs, seed {options.seed}, gave something else ({took})")
    for each in wrong[:20]:
        print("\n" + each)
    if not wrong:
        shutil.rmtree(home)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
