"""Gates: planted silent failures are refused by name, and good artifacts pass."""

from __future__ import annotations

import json
import mmap
import shutil
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

import attrs
import numpy as np
import pytest

import edgekit
from edgekit import sample
from edgekit.architectures import Model, ModelConfig, tensor_shapes
from edgekit.artifact import Artifact
from edgekit.errors import ChangedSourceError, InvalidFileError, MissingFileError, QualityGateError, UsageError
from edgekit.files import pairs
from edgekit.files.digests import Digests, sha256
from edgekit.manifest import manifest_path
from edgekit.tensor import Tensor
from edgekit.testing.models import artifact_of, random_model, small_llama
from edgekit_workflow.gates import Certificate, GateResult, Policy, default_toml, gate, read_policy
from edgekit_workflow.gates.policy import Derivation

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
def test_planted_fault_is_refused_by_name(source: Artifact, fault: str, tmp_path: Path) -> None:
    change, named = PLANTED[fault]
    broken = edgekit.quantize(change(source), "Q4_K_M", to=tmp_path / "broken.gguf")
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


def test_blocks_that_a_calibration_chose_are_refused_by_their_distance(source: Artifact, tmp_path: Path) -> None:
    """Without the codes of rounding to nearest, the error of each row still tells rounding from damage."""
    calibration = edgekit.calibrate(source, source.tokenizer.encode(sample.heldout_text())[:512], to=tmp_path / "c")
    path = edgekit.quantize(source, "Q4_0", to=tmp_path / "broken.gguf", calibration=calibration).path
    patched(path, {"blk.1.ffn_up.weight": zeros_from_the_middle})
    (failed,) = gate(path, source, policy=POLICY).failed
    assert failed.name == "values"
    assert failed.detail.startswith("blk.1.ffn_up.weight, row 2")


def test_a_zeroed_expert_is_refused(tmp_path: Path) -> None:
    config = small_moe()
    source = artifact_of(random_model(config), tmp_path / "source")
    name = "blk.1.ffn_up_exps.weight"
    tensors = dict(source.model.tensors)
    values = tensors[name].float32().reshape(tensors[name].shape).copy()
    values[3] = 0
    tensors[name] = Tensor.of(name, values)
    broken = edgekit.quantize(with_model(source, Model(config, tensors)), "Q8_0", to=tmp_path / "broken.gguf")
    failed = gate(broken, source, policy=POLICY).failed
    assert {result.name for result in failed} == {"codes", "values"}
    assert all(result.detail.startswith(name) for result in failed)


def small_moe() -> ModelConfig:
    changes = {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}
    return small_llama(**changes)


def test_a_manifest_of_another_file_is_refused(source: Artifact, tmp_path: Path) -> None:
    path = edgekit.quantize(source, "Q8_0", to=tmp_path / "broken.gguf").path
    patched(path, {"blk.1.ffn_up.weight": one_code}, seal=False)
    (failed,) = gate(path, source, policy=POLICY).failed
    assert (failed.name, failed.category) == ("hashes", "security")
    assert "describes another file than broken.gguf" in failed.detail


def test_a_matrix_left_in_float_is_refused(source: Artifact, tmp_path: Path) -> None:
    recipe = edgekit.Recipe.of({"blk.1.ffn_down*": "F16"}, "Q8_0", name="all but one")
    path = edgekit.quantize(source, recipe, to=tmp_path / "broken.gguf").path
    assert gate(path, source, policy=POLICY).passed  # the manifest says so
    manifest_path(path).unlink()
    (failed,) = gate(path, source, policy=POLICY).failed
    assert failed.name == "precisions"
    assert failed.detail == "blk.1.ffn_down.weight is in float, 2 of its kind are quantized"


def test_a_shard_that_was_half_written_names_the_file(source: Artifact, tmp_path: Path) -> None:
    path = edgekit.quantize(source, "affine:int8-sym-g32", to=tmp_path / "broken").path
    shard = path / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1000])
    with pytest.raises(InvalidFileError, match=r"model\.safetensors"):
        gate(path, source, policy=POLICY)


def test_files_that_may_run_code_are_refused(source: Artifact, tmp_path: Path) -> None:
    path = edgekit.quantize(source, "affine:int8-sym-g32", to=tmp_path / "broken").path
    (path / "modeling.py").write_text("")
    (path / "old.pkl").write_text("")
    (failed,) = gate(path, source, policy=POLICY).failed
    assert failed.detail == "modeling.py may run code when it is loaded, old.pkl may run code when it is loaded"


def test_a_template_that_fails_is_refused(source: Artifact, tmp_path: Path) -> None:
    broken = with_tokenizer(source, chat_template="{{ messages.__class__.__mro__ }}{% for %}")
    written = edgekit.quantize(broken, "Q8_0", to=tmp_path / "broken.gguf")
    failed = gate(written, broken, policy=POLICY).failed
    assert [result.name for result in failed] == ["template"]


def test_another_licence_is_refused(source: Artifact, tmp_path: Path) -> None:
    licensed = tmp_path / "licensed"
    shutil.copytree(source.path, licensed)
    (licensed / "README.md").write_text("---\nlicense: apache-2.0\nbase_model: someone/model\n---\nA model.\n")
    path = edgekit.quantize(licensed, "affine:int8-sym-g32", to=tmp_path / "small").path
    outcome = {r.name: (r.passed, r.detail) for r in gate(path, licensed, policy=POLICY) if r.category == "compliance"}
    assert outcome["licence"] == (None, "small does not state the source's licence, apache-2.0; put it beside it")
    (path / "README.md").write_text('---\nlicense: "mit"\nbase_model: someone/model\n---\n')
    outcome = {r.name: (r.passed, r.detail) for r in gate(path, licensed, policy=POLICY) if r.category == "compliance"}
    assert outcome["licence"] == (False, "small states mit, the source apache-2.0")
    assert outcome["base_model"] == (True, "someone/model")


def test_a_source_that_changed_is_refused(source: Artifact, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(source.path, copy)
    path = edgekit.quantize(copy, "Q8_0", to=tmp_path / "small.gguf").path
    (copy / "generation_config.json").write_text("{}")
    (failed,) = gate(path, copy, policy=POLICY).failed
    assert failed.detail == "generation_config.json of model changed since the artifact was made, or is another file"


def test_a_source_is_checked_against_the_scheme_that_its_manifest_names(source: Artifact, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(source.path, copy)
    path = edgekit.quantize(copy, "Q8_0", to=tmp_path / "small.gguf").path
    record = json.loads(manifest_path(path).read_text())
    for name in record["sources"]:  # as a file above 64 MiB is recorded
        with closing(Digests([copy / name], whole=0)) as digests:
            record["sources"][name] = digests[name]
    assert all(digest.startswith("sha256-tree-4MiB:") for digest in record["sources"].values())
    manifest_path(path).write_text(json.dumps(record))
    results = {result.name: result for result in gate(path, copy, policy=POLICY)}
    assert (results["source"].passed, results["source"].detail) == (True, f"{len(record['sources'])} files")
    (copy / "generation_config.json").write_text("{}")
    (failed,) = gate(path, copy, policy=POLICY).failed
    assert failed.detail == "generation_config.json of model changed since the artifact was made, or is another file"


def test_a_source_that_changes_meanwhile_is_refused(source: Artifact, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(source.path, copy)
    path = edgekit.quantize(copy, "Q8_0", to=tmp_path / "small.gguf").path

    def change(done: int, count: int, name: str) -> None:
        (copy / "generation_config.json").write_text(f"{{ }}{' ' * done}")

    with pytest.raises(ChangedSourceError, match=r"generation_config\.json: it was changed while the gates ran"):
        gate(path, copy, policy=POLICY, progress=change)


def test_an_artifact_of_another_model_is_refused(source: Artifact, tmp_path: Path) -> None:
    other = artifact_of(random_model(small_llama()), tmp_path / "other")
    path = edgekit.quantize(source, "Q8_0", to=tmp_path / "small.gguf").path
    with pytest.raises(UsageError, match=r"small\.gguf is not made from .*other: of \d+ tensors \d+ do not match"):
        gate(path, other, policy=POLICY)


def test_derivation_of_a_source_of_another_format(source: Artifact, tmp_path: Path) -> None:
    """Conversions without loss are the same source: the codes are equal, and the files are other ones."""
    full = edgekit.convert(source, tmp_path / "full.gguf", dtype="F32")
    certificate = gate(edgekit.quantize(source, "Q4_0", to=tmp_path / "small.gguf"), full, policy=POLICY)
    results = {result.name: result for result in certificate}
    assert (results["source"].passed, results["codes"].passed) == (None, True)
    assert results["codes"].detail == "of the rows compared, every code equal"


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Path]:
    """A source in memory, whose values are multiples of the same noise, and its file of 200 MB in Q8_0."""
    folder = tmp_path_factory.mktemp("large")
    config = small_llama(
        hidden_size=1024, intermediate_size=8192, num_hidden_layers=7, num_attention_heads=16, num_key_value_heads=8,
        vocab_size=16_384,
    )  # fmt: skip
    noise = np.random.RandomState(0).standard_normal(1 << 24).astype(np.float32)

    def filled(number: int, name: str, shape: tuple[int, ...]) -> Tensor:
        rows = noise[: int(np.prod(shape))].reshape(-1, shape[-1])
        return Tensor(name, shape, "float32", lambda start, stop: rows[start:stop] * np.float32(1 + number / 64))

    shapes = tensor_shapes(config)
    model = Model(config, {name: filled(n, name, shape) for n, (name, shape) in enumerate(shapes.items())})
    source = artifact_of(model, folder / "source")
    path = edgekit.quantize(source, "Q8_0", to=folder / "large.gguf").path
    assert path.stat().st_size > 200_000_000
    return source, path


#: The gates that find changed codes, alone.
CODES = Policy(skip=("security", "compliance", "silent", "quality", "robustness", "performance", "source"))


def test_one_changed_code_in_a_large_file_is_found(large: tuple[Artifact, Path]) -> None:
    source, path = large
    patched_block(path, "blk.5.ffn_down.weight", [(1001, 77)])
    (failed,) = gate(path, source, policy=CODES, full=True).failed
    assert failed.detail == "blk.5.ffn_down.weight, row 1001: 1 of 1024 rows compared have other codes"
    patched_block(path, "blk.5.ffn_down.weight", [(1001, 77)])


def test_a_sample_finds_a_tensor_of_which_five_percent_changed(large: tuple[Artifact, Path]) -> None:
    source, path = large
    rows = np.random.RandomState(1).choice(8192, 8192 // 20, replace=False)
    places = [(int(row), 40) for row in rows]
    patched_block(path, "blk.3.ffn_up.weight", places)
    for least_rows, share in ((1, 0.0101), (128, 0.0376)):  # 1 % of the rows of each tensor, rounded up
        policy = attrs.evolve(CODES, derivation=Derivation(least_rows=least_rows))
        (failed,) = gate(path, source, policy=policy).failed
        assert failed.detail.startswith("blk.3.ffn_up.weight, row ")
        assert failed.measured == pytest.approx(share, abs=0.0002)
    patched_block(path, "blk.3.ffn_up.weight", places)
    assert gate(path, source, policy=CODES).passed


def patched_block(path: Path, name: str, places: list[tuple[int, int]]) -> None:
    """Flip the lowest bit of bytes of a tensor, by row and byte of the row, in place."""
    head = edgekit.open(path).tensors[name].read_parts(0, 4)["blocks"]
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        start = view.find(head.tobytes())
        assert start >= 0
        for row, byte in places:
            view[start + row * head.shape[1] + byte] ^= 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "[quality]\nperplexity = 0.9\n",
            r"key 'perplexity' \(did you mean perplexity_ratio\?\); the table quality has",
        ),
        ("[qualty]\n", r"key 'qualty' \(did you mean quality\?\); a policy has quality, performance"),
        ("[quality]\ntop1_agreement = 95\n", r"quality: top1_agreement is 95; give a number from 0 to 1"),
        ("[derivation]\nleast_rows = 0\n", r"derivation: least_rows is 0; give a whole number of at least 1"),
        ("quality = 1\n", r"quality is 1; write a table"),
        ("skip = ['speed']\n", r"skip names 'speed' \(did you mean speedup\?\); gates are files, hashes"),
        ("skip = 'speedup'\n", r"skip is 'speedup'; write a list of names"),
        ("[quality\n", r"not TOML \("),
    ],
)
def test_a_malformed_policy_is_refused(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "gates.toml"
    file.write_text(content)
    with pytest.raises(InvalidFileError, match=message):
        read_policy(file)
    with pytest.raises(MissingFileError, match="cannot be read"):
        read_policy(tmp_path / "absent.toml")


def test_the_default_policy_reads_as_itself(tmp_path: Path) -> None:
    file = tmp_path / "gates.toml"
    file.write_text(default_toml())
    assert read_policy(file) == Policy()
    file.write_text("skip = ['performance']\n[quality]\nperplexity_ratio = 0.9\n")
    changed = read_policy(file)
    assert (changed.quality.perplexity_ratio, changed.runs("speedup"), changed.runs("values")) == (0.9, False, True)


def test_certificate_is_an_in_toto_statement(source: Artifact, tmp_path: Path) -> None:
    path = edgekit.quantize(source, "Q8_0", to=tmp_path / "small.gguf").path
    certificate = gate(path, source, policy=POLICY)
    statement = json.loads(certificate.to_json())
    # https://github.com/in-toto/attestation, spec/v1/statement.md and spec/predicates/test-result.md
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["subject"] == [{"name": "small.gguf", "digest": {"sha256": sha256(path)}}]
    assert statement["predicateType"] == "https://in-toto.io/attestation/test-result/v0.1"
    predicate = statement["predicate"]
    assert predicate["result"] == "WARNED"  # no signature was given
    assert {"name", "digest"} == set(predicate["configuration"][0])
    names = [*predicate["passedTests"], *predicate["warnedTests"], *predicate["failedTests"]]
    assert sorted(names) == sorted(f"{r.category}/{r.name}" for r in certificate)
    assert "security/signature" in predicate["warnedTests"]
    assert str(tmp_path) not in certificate.to_json()
    assert certificate.to_json() == gate(path, source, policy=POLICY).to_json()


def test_the_refusal_has_a_line_for_each_gate() -> None:
    results = (
        GateResult("kl_divergence", "quality", False, 0.25, 0.05, "nats", "stories 0.25, code 0.01"),
        GateResult("values", "silent", False, detail="blk.0.attn_q.weight: far"),
        GateResult("signature", "security", None),
        GateResult("files", "security", True),
    )
    certificate = Certificate({}, {}, {}, results)
    with pytest.raises(QualityGateError) as refused:
        certificate.refuse()
    assert str(refused.value).splitlines() == [
        "2 of 4 gates failed; mend the artifact, or change the limits in a policy:",
        "  quality kl_divergence: 0.25 nats (required 0.05 nats) stories 0.25, code 0.01",
        "  silent values: blk.0.attn_q.weight: far",
    ]
    assert (refused.value.exit_code, certificate.to_statement()["predicate"]["result"]) == (7, "FAILED")


def test_a_distribution_that_validates_statements_accepts_it(source: Artifact, tmp_path: Path) -> None:
    """With the in-toto project's own library, where it is installed."""
    records = pytest.importorskip("in_toto_attestation.v1.statement_pb2")
    statements = pytest.importorskip("in_toto_attestation.v1.statement")
    json_format = pytest.importorskip("google.protobuf.json_format")
    path = edgekit.quantize(source, "Q8_0", to=tmp_path / "small.gguf").path
    statement = gate(path, source, policy=POLICY).to_statement()
    message = json_format.ParseDict(statement, records.Statement())
    statements.Statement.copy_from_pb(message).validate()


def test_a_signature_is_verified(source: Artifact, tmp_path: Path) -> None:
    """With model_signing, where it is installed."""
    signing = pytest.importorskip("model_signing.signing")
    serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")
    elliptic = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ec")
    key = elliptic.generate_private_key(elliptic.SECP256R1())
    pem, none = serialization.Encoding.PEM, serialization.NoEncryption()
    private, public, signature = (tmp_path / name for name in ("key.pem", "public.pem", "small.sig"))
    private.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, none))
    public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    path = edgekit.quantize(source, "Q8_0", to=tmp_path / "small.gguf").path
    signing.Config().use_elliptic_key_signer(private_key=private).sign(path, signature)

    def outcome() -> bool | None:
        certificate = gate(path, source, policy=POLICY, signature=(signature, public))
        return next(result.passed for result in certificate if result.name == "signature")

    assert outcome() is True
    patched(path, {"blk.1.ffn_up.weight": one_code})
    assert outcome() is False
