"""Calibrations: second moments of the inputs of weight matrices, and their file."""

from __future__ import annotations

import json
import re
import weakref

import attrs
import numpy as np
import pytest

import edgekit
from edgekit import sample
from edgekit.architectures.forward import Transformer
from edgekit.architectures.hf import config_from_hf
from edgekit.errors import InvalidFileError, NonFiniteError, UsageError
from edgekit.evaluation import moments
from edgekit.evaluation.calibration import collect, importance
from edgekit.formats import safetensors
from edgekit.pipeline.rounding import calibration as calibrations
from edgekit.pipeline.rounding import read_calibration
from edgekit.tensor import Tensor
from edgekit.testing.models import artifact_of, random_model, small_llama

CONFIG = small_llama(hidden_size=32, intermediate_size=48)
MODEL = random_model(CONFIG)
TOKENS = np.random.RandomState(3).randint(0, 50, 330)


@pytest.fixture
def artifact(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(b"weights")
    return artifact_of(MODEL, path)


def test_moments_are_those_of_the_inputs(artifact):
    calibration = edgekit.calibrate(artifact, TOKENS, context=32, holdout=0)
    seen: dict[str, list] = {}
    model = Transformer(MODEL, observe=lambda name, x: seen.setdefault(name, []).append(x))
    model.logits(calibration.windows)
    for name, inputs in seen.items():
        x = np.concatenate(inputs).astype(np.float64)
        exact = x.T @ x / len(x)
        found = calibration.moment(name)
        assert found.dtype == np.float32
        assert np.array_equal(found, found.T)
        # Operands are rounded to half of 1/4095 of the largest of their row or column, at most 5 of their root mean
        # square here, at most three times in a row before they are inputs, and twice in the moment.
        assert np.abs(found - exact).max() <= 5 * 5 / 4095 / 2 * np.diag(exact).max()
    assert sum(map(len, calibration.inputs.values())) == len(seen)


MIXTURE = config_from_hf(
    {"model_type": "qwen3_moe", "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 16,
     "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "num_experts": 40,
     "num_experts_per_tok": 2, "vocab_size": 50, "max_position_embeddings": 64, "norm_topk_prob": True},
    "test",
)  # fmt: skip


def test_experts_have_mean_squares_of_their_own(tmp_path):
    """In memory, in a file, and in one that was cut off: the same, and the same as an importance matrix of the text."""
    (tmp_path / "model.bin").write_bytes(b"weights")
    artifact = artifact_of(random_model(MIXTURE), tmp_path / "model.bin")
    tokens = TOKENS[:16]
    collected = collect(artifact, tokens, context=8)
    path = tmp_path / "c.safetensors"
    cut = lambda done, total, what: 1 / (2 - done)  # noqa: E731
    with pytest.raises(ZeroDivisionError):  # at the end of the second layer
        edgekit.calibrate(artifact, tokens, to=path, context=8, holdout=0, outputs=False, progress=cut)
    assert not path.exists()
    in_file = edgekit.calibrate(artifact, tokens, to=path, context=8, holdout=0, outputs=False)
    in_memory = edgekit.calibrate(artifact, tokens, context=8, holdout=0, outputs=False)
    in_memory.save(tmp_path / "saved.safetensors")
    assert path.read_bytes() == (tmp_path / "saved.safetensors").read_bytes()
    assert in_file.digest == in_memory.digest
    for calibration in (in_memory, in_file):
        assert calibration.experts["blk.1.ffn_gate_exps.weight"] == tuple(
            f"blk.1.ffn_{n}_exps.weight" for n in ("gate", "up")
        )
        means = {
            n: values for n, values in collected.importance().items() if "ffn_gate_inp" not in n
        }  # never quantized
        assert calibration.importance().keys() == means.keys()
        for name, values in means.items():
            np.testing.assert_allclose(calibration.importance()[name], values, rtol=16 * 2.0**-23, atol=1e-12)
        for name, counts in calibration.expert_counts().items():
            np.testing.assert_array_equal(counts, collected.counts[name])
            assert 0 < np.count_nonzero(counts) < 40
    in_file.refuse_other_model(artifact)
    fewer = artifact_of(random_model(attrs.evolve(MIXTURE, own={**MIXTURE.own, "experts": 8})), tmp_path / "model.bin")
    with pytest.raises(
        UsageError, match=r"blk\.0\.ffn_gate_exps\.weight has 40 experts, in .* 8; calibrate this model"
    ):
        in_file.refuse_other_model(fewer)


def test_the_digest_holds_one_moment_at_a_time(artifact):
    """It held all at once: 3.9 GB for a Llama of 1.1 billion weights."""
    made, read, most = edgekit.calibrate(artifact, TOKENS, context=32, holdout=0), [], []

    def counted(tensor):
        def read_rows(start, stop):
            most.append(sum(known() is not None for known in read))
            rows = tensor.read_rows(start, stop).copy()
            read.append(weakref.ref(rows))
            return rows

        return attrs.evolve(tensor, read_rows=read_rows)

    moments = {name: counted(tensor) for name, tensor in made.moments.items()}
    assert attrs.evolve(made, moments=moments).digest == made.digest
    assert len(read) == len(moments) > 2
    assert max(most) <= 1


def test_a_calibration_file_with_wrong_experts_is_refused(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"weights")
    artifact = artifact_of(random_model(MIXTURE), tmp_path / "model.bin")
    good = edgekit.calibrate(artifact, TOKENS[:16], context=8, holdout=0)
    name = "blk.0.ffn_down_exps.weight"
    for wrong, message in (
        ({name: np.zeros(16, np.float32)}, f"{name!r} are no means of experts, float32 [experts, cols]"),
        ({f"{name}.counts": np.zeros(7, np.float32)}, f"'{name}.counts' are no counts of 40 experts"),
    ):
        moments = {**good.moments, **{key: Tensor.of(key, values) for key, values in wrong.items()}}
        attrs.evolve(good, moments=moments).save(tmp_path / "bad.safetensors")
        with pytest.raises(InvalidFileError, match=re.escape(message)):
            read_calibration(tmp_path / "bad.safetensors")


def test_matrices_with_the_same_input_share_a_moment(artifact):
    calibration = edgekit.calibrate(artifact, TOKENS, context=32)
    assert calibration.inputs["blk.0.attn_q.weight"] == tuple(f"blk.0.attn_{n}.weight" for n in "qkv")
    assert calibration.inputs["blk.1.ffn_gate.weight"] == ("blk.1.ffn_gate.weight", "blk.1.ffn_up.weight")
    assert calibration.moment("output.weight").shape == (32, 32)
    without = edgekit.calibrate(artifact, TOKENS, context=32, outputs=False)
    assert without.moment("output.weight") is None


def test_the_diagonal_is_the_importance(artifact):
    calibration = edgekit.calibrate(artifact, TOKENS, context=32, holdout=0, outputs=False)
    collected = importance(artifact, TOKENS, context=32)
    diagonal = calibration.importance()
    assert diagonal.keys() == collected.keys()
    for name, values in collected.items():
        np.testing.assert_allclose(diagonal[name], values, rtol=5 * 5 / 4095 / 2)


def test_the_last_windows_are_held_out(artifact):
    calibration = edgekit.calibrate(artifact, TOKENS, context=32)
    assert calibration.windows.shape == (9, 32)
    assert np.array_equal(calibration.held_out, TOKENS[9 * 32 : 10 * 32].reshape(1, 32))
    assert calibration.tokens == 288


def test_a_file_holds_the_same(artifact, tmp_path):
    made = edgekit.calibrate(artifact, TOKENS, context=32)
    streamed = edgekit.calibrate(artifact, TOKENS, context=32, to=tmp_path / "a.safetensors")
    made.save(tmp_path / "b.safetensors")
    saved = read_calibration(tmp_path / "b.safetensors")
    assert made.digest == streamed.digest == saved.digest
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert saved.held_out.tolist() == made.held_out.tolist()
    saved.refuse_other_model(artifact)


def test_an_interrupted_run_goes_on_and_writes_the_same(artifact, tmp_path, monkeypatch):
    target = tmp_path / "c.safetensors"
    edgekit.calibrate(artifact, TOKENS, context=32, to=target)
    whole = target.read_bytes()
    target.unlink()
    outer, calls = moments.outer, []

    def cut_off(x, shape, *others):
        calls.append(shape)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return outer(x, shape, *others)

    monkeypatch.setattr(moments, "outer", cut_off)
    with pytest.raises(KeyboardInterrupt):
        edgekit.calibrate(artifact, TOKENS, context=32, to=target)
    assert not target.exists()
    calls.clear()
    monkeypatch.setattr(moments, "outer", lambda x, *others: calls.append(x.shape) or outer(x, *others))
    edgekit.calibrate(artifact, TOKENS, context=32, to=target)
    assert target.read_bytes() == whole
    assert len(calls) == 5  # of nine moments, the first layer's four were there


def test_wide_matrices_keep_blocks_on_the_diagonal(artifact, monkeypatch):
    whole = edgekit.calibrate(artifact, TOKENS, context=32)
    monkeypatch.setattr(calibrations, "WIDEST", 20)
    blocks = edgekit.calibrate(artifact, TOKENS, context=32)
    found = blocks.moment("blk.0.ffn_down.weight")
    assert found.shape == (3, 16, 16)
    exact = whole.moment("blk.0.ffn_down.weight")
    np.testing.assert_allclose(found[2], exact[32:, 32:], rtol=1e-4, atol=1e-5 * np.abs(exact).max())
    np.testing.assert_allclose(
        blocks.importance()["blk.0.ffn_down.weight"], whole.importance()["blk.0.ffn_down.weight"], rtol=288 * 2.0**-24
    )


def test_another_model_is_refused(artifact, tmp_path):
    calibration = edgekit.calibrate(artifact, TOKENS, context=32)
    (tmp_path / "other.bin").write_bytes(b"others")
    other = artifact_of(MODEL, tmp_path / "other.bin")
    with pytest.raises(UsageError, match=r"is of a model with other weights than .*other\.bin; calibrate this model"):
        calibration.refuse_other_model(other)
    wide = artifact_of(random_model(attrs.evolve(CONFIG, ffn=64)), tmp_path / "model.bin")
    with pytest.raises(UsageError, match=re.escape("blk.0.ffn_down.weight has 48 columns, in ")):
        calibration.refuse_other_model(wide)
    shallow = artifact_of(random_model(attrs.evolve(CONFIG, layers=1)), tmp_path / "model.bin")
    with pytest.raises(UsageError, match=re.escape("blk.1.attn_q.weight is not in ")):
        calibration.refuse_other_model(shallow)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": TOKENS[:20], "context": 32}, "the text has 20 tokens, fewer than a window of 32"),
        ({"context": 2}, "a window of 2 tokens; choose between 3 and the model's context of 64"),
        ({"context": 65}, "a window of 65 tokens; choose between 3 and the model's context of 64"),
        ({"holdout": 1}, "a holdout of 1; choose a share from 0 to below 1"),
        ({"runtime": "llamacpp"}, "runtime llamacpp gives no second moments; leave it out"),
    ],
)
def test_bad_arguments_are_refused(artifact, arguments, message):
    text = arguments.pop("text", TOKENS)
    with pytest.raises(UsageError, match=re.escape(message)):
        edgekit.calibrate(artifact, text, **arguments)


def test_a_model_that_computes_nan_is_refused(tmp_path):
    broken = Tensor.of("blk.1.ffn_up.weight", np.full((48, 32), np.inf, np.float32))
    model = attrs.evolve(MODEL, tensors={**MODEL.tensors, "blk.1.ffn_up.weight": broken})
    with pytest.raises(NonFiniteError, match=re.escape("the input of blk.1.ffn_down.weight is not finite")):
        edgekit.calibrate(artifact_of(model, tmp_path / "m.bin"), TOKENS, context=32)


def test_a_file_that_is_no_calibration_is_not_replaced(artifact, tmp_path):
    target = tmp_path / "mine.safetensors"
    target.write_bytes(b"mine")
    with pytest.raises(UsageError, match="exists already and is not a calibration file"):
        edgekit.calibrate(artifact, TOKENS, context=32, to=target)
    assert target.read_bytes() == b"mine"
    edgekit.calibrate(artifact, TOKENS, context=32, to=target, overwrite=True)
    assert read_calibration(target).context == 32


def damaged(metadata=None, **arrays):
    """The arguments of `safetensors.write` for a calibration that is changed."""
    ids = np.zeros((1, 4), np.int32)
    whole = {"windows": ids, "held_out": ids[:0], "a.weight": np.eye(3, dtype=np.float32), **arrays}
    known = {
        "format": "edgekit.calibration",
        "version": "1",
        "model": "m",
        "text": "t",
        "inputs": '{"a.weight": ["a"]}',
    }
    merged = {key: value for key, value in {**known, **(metadata or {})}.items() if value is not None}
    return {name: array for name, array in whole.items() if array is not None}, merged


@pytest.mark.parametrize(
    ("arrays", "metadata", "message"),
    [
        ({}, {"format": None}, "it is no calibration file"),
        ({}, {"version": "9"}, "calibration files of version '9' are not supported"),
        ({}, {"model": None}, "its metadata lack model"),
        ({}, {"inputs": "[]"}, "its inputs are no lists of names"),
        ({}, {"inputs": json.dumps({"a.weight": []})}, "its inputs are no lists of names"),
        ({"windows": None}, {}, "tensor 'windows' is missing"),
        ({"a.weight": None}, {}, "tensor 'a.weight' is missing"),
        ({"windows": np.zeros(4, np.int32)}, {}, "windows are no token ids"),
        ({"held_out": np.zeros((0, 5), np.int32)}, {}, "held_out are no token ids"),
        ({"a.weight": np.zeros((3, 2), np.float32)}, {}, "'a.weight' is no moment"),
        ({"a.weight": np.zeros((3, 3), np.float64)}, {}, "'a.weight' is no moment"),
    ],
)
def test_damaged_files_are_refused(tmp_path, arrays, metadata, message):
    path = tmp_path / "c.safetensors"
    safetensors.write(path, *damaged(metadata, **arrays))
    with pytest.raises(InvalidFileError, match=re.escape(message)):
        read_calibration(path)


def test_an_undamaged_file_is_read(tmp_path):
    path = tmp_path / "c.safetensors"
    safetensors.write(path, *damaged())
    assert read_calibration(path).importance()["a"].tolist() == [1, 1, 1]


def test_the_sample_model_calibrates_with_its_text(tmp_path):
    calibration = edgekit.calibrate(sample.path(), sample.heldout_text()[:4000], context=128)
    calibration.refuse_other_model(edgekit.open(sample.path()))
    ffn = edgekit.open(sample.path()).model.config.ffn
    assert calibration.moment("blk.0.ffn_down.weight").shape == (ffn, ffn)
