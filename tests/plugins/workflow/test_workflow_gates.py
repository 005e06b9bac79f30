"""Gates: planted silent failures are refused by name, and good artifacts pass."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import attrs
import numpy as np
import pytest

import edgekit
from edgekit import sample
from edgekit.architectures import Model
from edgekit.artifact import Artifact
from edgekit.errors import (
    QualityGateError,
)
from edgekit.files import pairs
from edgekit.manifest import manifest_path
from edgekit.tensor import Tensor
from edgekit_workflow.gates import Policy, gate

#: What needs no text and no timing. `runtime` and `degenerate` are tested by themselves.
POLICY = Policy(skip=("quality", "performance", "robustness", "runtime", "degenerate"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The sample model with a chat template."""
    directory = tmp_path_factory.mktemp("source") / "model"
    shutil.copytree(sample.path(), directory)
    (directory / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}\n{% endfor %}")
    return edgekit.open(directory)


def with_tensors(source: Artifact, **changed: Callable[[np.ndarray], np.ndarray]) -> Artifact:
    """The source with some tensors changed; ``__`` stands for a point."""
    tensors = dict(source.model.tensors)
    for name, change in changed.items():
        role = name.replace("__", ".") + ".weight"
        values = change(tensors[role].float32()).reshape(tensors[role].shape)
        tensors[role] = Tensor.of(role, np.ascontiguousarray(values))
    return with_model(source, Model(source.model.config, tensors))


def swapped(source: Artifact, one: str, other: str) -> Artifact:
    """The source with two tensors in each other's place."""
    tensors = dict(source.model.tensors)
    tensors[one], tensors[other] = tensors[other], tensors[one]
    return with_model(source, Model(source.model.config, tensors))


def with_model(source: Artifact, model: Model) -> Artifact:
    return attrs.evolve(source, load_model=lambda: model)


def with_config(source: Artifact, **changes: object) -> Artifact:
    return with_model(source, Model(attrs.evolve(source.model.config, **changes), source.model.tensors))


def with_tokenizer(source: Artifact, **changes: object) -> Artifact:
    changed = attrs.evolve(source.tokenizer, json=None, **changes)
    return attrs.evolve(source, load_tokenizer=lambda: changed)


def renamed(source: Artifact, number: int, name: str) -> tuple[str, ...]:
    tokens = list(source.tokenizer.tokens)
    tokens[number] = name
    return tuple(tokens)


def heads_moved(values: np.ndarray) -> np.ndarray:
    """The rows of each head in another order: what a reader makes that misses llama.cpp's permutation."""
    heads = values.reshape(4, 2, -1, values.shape[-1])
    return heads.swapaxes(1, 2).reshape(values.shape)


def lost_middle(values: np.ndarray) -> np.ndarray:
    """Zeros from the middle on: a file that was cut off, and filled up."""
    values = values.copy()
    values[len(values) // 2 :] = 0
    return values


#: Faults that are made before the artifact is written, with what the refusal has to name.
PLANTED: dict[str, tuple[Callable[[Artifact], Artifact], str]] = {
    "transposed": (lambda s: with_tensors(s, blk__1__attn_output=np.transpose), "blk.1.attn_output.weight"),
    "gate and up": (lambda s: swapped(s, "blk.0.ffn_gate.weight", "blk.0.ffn_up.weight"), "blk.0.ffn_"),
    "layers": (lambda s: swapped(s, "blk.0.attn_v.weight", "blk.1.attn_v.weight"), "blk.0.attn_v.weight"),
    "zeroed": (lambda s: with_tensors(s, blk__2__ffn_down=np.zeros_like), "blk.2.ffn_down.weight"),
    "negated": (lambda s: with_tensors(s, blk__2__attn_k=np.negative), "blk.2.attn_k.weight"),
    "doubled": (lambda s: with_tensors(s, blk__2__ffn_up=lambda v: 2 * v), "blk.2.ffn_up.weight"),
    "head order": (lambda s: with_tensors(s, blk__1__attn_q=heads_moved), "blk.1.attn_q.weight"),
    "rows moved": (lambda s: with_tensors(s, token_embd=lambda v: np.roll(v, 1, 0)), "token_embd.weight"),
    "half of it lost": (lambda s: with_tensors(s, blk__0__ffn_down=lost_middle), "blk.0.ffn_down.weight"),
    "norm less one": (lambda s: with_tensors(s, blk__0__ffn_norm=lambda v: v - 1), "blk.0.ffn_norm.weight"),
    "rope": (lambda s: with_config(s, rope_theta=500_000.0), "rope_theta"),
    "epsilon": (lambda s: with_config(s, norm_eps=1e-3), "norm_eps"),
    "context": (lambda s: with_config(s, context=131_072), "context"),
    "BOS": (lambda s: with_tokenizer(s, bos=7), "bos is 7"),
    "no BOS": (lambda s: with_tokenizer(s, add_bos=False), "add_bos is False"),
    "end token": (
        lambda s: with_tokenizer(s, eos=None, ends=(), tokens=renamed(s, s.tokenizer.eos, "<unused>")),
        "no longer ends a text",
    ),
    "tokens": (lambda s: with_tokenizer(s, tokens=renamed(s, 300, "Ġwrong")), "token 300"),
    "merges": (lambda s: with_tokenizer(s, merges=s.tokenizer.merges[:40]), "is cut into"),
    "no tokenizer": (lambda s: attrs.evolve(s, load_tokenizer=lambda: None), "no tokenizer"),
    "template": (lambda s: with_tokenizer(s, chat_template="{{ messages[0].content }}"), "at character"),
}  # fmt: skip


@pytest.mark.parametrize("fault", PLANTED)
@pytest.mark.parametrize("recipe", ["Q4_K_M", "Q8_0"])
def test_planted_fault_is_refused_by_name(source: Artifact, fault: str, recipe: str, tmp_path: Path) -> None:
    change, named = PLANTED[fault]
    broken = edgekit.quantize(change(source), recipe, to=tmp_path / "broken.gguf")
    with pytest.raises(QualityGateError) as refused:
        gate(broken, source, policy=POLICY).refuse()
    assert named in str(refused.value)


def patched(path: Path, changes: Mapping[str, Callable[[np.ndarray], np.ndarray]], *, seal: bool = True) -> Path:
    """Change the stored blocks of tensors in place, [rows, bytes]; with `seal` the manifest belongs to the result."""
    artifact, data = edgekit.open(path), bytearray(path.read_bytes())
    for name, change in changes.items():
        blocks = artifact.tensors[name].read().parts["blocks"]
        place = data.find(blocks.tobytes())
        assert place >= 0
        data[place : place + blocks.nbytes] = change(blocks.copy()).tobytes()
    path.write_bytes(data)
    if seal:
        record = json.loads(manifest_path(path).read_bytes())
        manifest_path(path).write_bytes(pairs.dumped({**record, "file": pairs.seal_of(path)}))
    return path


def scales_of_another_row(blocks: np.ndarray) -> np.ndarray:
    """Q8_0: the scales, the first two bytes of 34, of the rows in reverse order."""
    by_block = blocks.reshape(len(blocks), -1, 34)
    by_block[..., :2] = by_block[::-1, :, :2].copy()
    return by_block.reshape(blocks.shape)


def scales_not_finite(blocks: np.ndarray) -> np.ndarray:
    blocks[3, 1] = 0x7E  # the upper byte of a float16
    return blocks


def zeros_from_the_middle(blocks: np.ndarray) -> np.ndarray:
    blocks[len(blocks) // 2 :] = 0
    return blocks


def one_code(blocks: np.ndarray) -> np.ndarray:
    blocks[77, 9] ^= 1
    return blocks


@pytest.mark.parametrize("change", [scales_of_another_row, scales_not_finite, zeros_from_the_middle, one_code])
def test_changed_blocks_are_refused_by_name(source: Artifact, change: Callable, tmp_path: Path) -> None:
    path = edgekit.quantize(source, "Q8_0", to=tmp_path / "broken.gguf").path
    patched(path, {"blk.1.ffn_up.weight": change})
    failed = gate(path, source, policy=POLICY, full=True).failed
    assert {"codes"} <= {result.name for result in failed} <= {"codes", "values"}
    assert all("blk.1.ffn_up.weight" in result.detail for result in failed)
