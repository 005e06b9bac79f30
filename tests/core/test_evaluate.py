"""Perplexity, KL divergence, top-1 agreement, error per tensor."""

from __future__ import annotations

import json
import math

import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgekit import encode
from edgekit.architectures import Model
from edgekit.architectures.forward import Transformer
from edgekit.artifact import unknown_family
from edgekit.errors import NonFiniteError, UsageError
from edgekit.evaluation import Baseline, compare, comparison, evaluate, language
from edgekit.evaluation.language import cut, kl_divergence, log_softmax
from edgekit.evaluation.moments import calibrate
from edgekit.manifest import Manifest
from edgekit.pipeline.rounding._overlap import record_of, shared_with
from edgekit.tensor import EncodedTensor, Tensor
from edgekit.testing.models import artifact_of, random_model, small_llama
from edgekit.tokenizer import Tokenizer, TokenType

CONFIG = small_llama(hidden_size=32, intermediate_size=64)
MODEL = random_model(CONFIG)
TOKENS = np.random.RandomState(3).randint(0, 50, 203)
TOKENIZER = Tokenizer("spm", ("<s>",) * 50, (), bos=1)


@attrs.frozen(eq=False)
class Letters(Tokenizer):
    """A token a letter; enough to go from text to ids without a library."""

    def encode(self, text, add_special=True):
        return [ord(letter) - ord("a") + 10 for letter in text]


@pytest.fixture
def artifact(tmp_path):
    def make(model=MODEL, name="model.bin", size=1000, tokenizer=None):
        path = tmp_path / name
        path.write_bytes(bytes(size))
        return artifact_of(model, path, tokenizer)

    return make


def changed(name, values):
    return attrs.evolve(MODEL, tensors={**MODEL.tensors, name: Tensor.of(name, values)})


def encoded(precision, model=MODEL):
    """The model with every matrix quantized."""

    def one(name, tensor):
        if len(tensor.shape) < 2:
            return tensor
        q = encode(tensor.read(), precision)

        def read_parts(start, stop):
            return {part: values[start:stop] for part, values in q.parts.items()}

        return EncodedTensor(name, tensor.shape, q.precision, q.nbytes, read_parts)

    return Model(model.config, {name: one(name, tensor) for name, tensor in model.tensors.items()})


def naive(model, tokens, context, bos=None):
    """Log-probabilities of each scored position, and the tokens that came, by the definition."""
    rows, targets = [], []
    for start in range(0, len(tokens) - context + 1, context):
        window = np.array(tokens[start : start + context])
        if bos is not None:
            window[0] = bos
        logits = Transformer(model).logits(window).astype(np.float64)
        for place in range(context // 2, context - 1):
            rows.append(logits[place] - np.logaddexp.reduce(logits[place]))
            targets.append(window[place + 1])
    return np.array(rows), np.array(targets)


@pytest.fixture
def near(rounding):
    """``near(*log_q)``: how far any log-probability may lie from the same in another order of summation.

    A log-probability is a logit less a mean of logits, so that it is off by twice as much as these. The largest of
    both are of one size, for the logits of these models lie around zero.
    """
    return lambda *log_q: max(2 * rounding(CONFIG, log) for log in log_q)


def kl_tolerance(log_p, log_q, near):
    """How far Σ p·(log p - log q) of each position may be off where every log-probability is, by `near`.

    Its derivative by a log-probability of p is p·(log p - log q - KL), by one of q it is q - p.
    """
    p, q, apart = np.exp(log_p), np.exp(log_q), log_p - log_q
    kl = (p * apart).sum(axis=1, keepdims=True)
    slopes = (p * np.abs(apart - kl)).sum(axis=1) + np.abs(q - p).sum(axis=1)
    return near * slopes + near**2  # and what is of second order


@pytest.mark.parametrize("context", [64, 33, 8, 3])
def test_perplexity_is_its_definition(artifact, context, near):
    found = evaluate(artifact(), TOKENS, context=context)
    log_q, targets = naive(MODEL, TOKENS, context)
    expected = math.exp(-log_q[np.arange(targets.size), targets].mean())
    assert found.perplexity == pytest.approx(expected, rel=near(log_q))
    assert found.tokens == targets.size == (203 // context) * (context - context // 2 - 1)
    assert found.context == context
    assert found.kl_divergence is None
    assert found.top1_agreement is None


@pytest.mark.parametrize("precision", ["affine:int8-sym-channel", "affine:int3-asym-g32"])
def test_divergence_is_its_definition(artifact, precision, near):
    small = encoded(precision)
    found = evaluate(artifact(small), TOKENS, baseline=artifact(), context=32)
    (log_p, targets), (log_q, _) = naive(MODEL, TOKENS, 32), naive(small, TOKENS, 32)
    kl = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    places = np.arange(targets.size)
    tolerance = kl_tolerance(log_p, log_q, near(log_p, log_q))
    assert found.kl_divergence == pytest.approx(kl.mean(), abs=tolerance.mean())
    assert found.kl_divergence_p99 == pytest.approx(np.percentile(kl, 99), abs=tolerance.max())
    assert found.top1_agreement == (log_p.argmax(1) == log_q.argmax(1)).mean()
    assert found.baseline_perplexity == pytest.approx(math.exp(-log_p[places, targets].mean()), rel=near(log_p))
    assert found.perplexity == pytest.approx(math.exp(-log_q[places, targets].mean()), rel=near(log_q))
    losses = log_p[places, targets] - log_q[places, targets]
    expected = found.perplexity * np.sqrt(np.mean((losses - losses.mean()) ** 2) / targets.size)
    off = found.perplexity * 2 * near(log_p, log_q) / np.sqrt(targets.size)  # each loss is off by so much
    assert found.perplexity_error == pytest.approx(expected, abs=off)


def test_identical_models_do_not_differ_at_all(artifact):
    found = evaluate(artifact(), TOKENS, baseline=artifact(random_model(CONFIG)))
    assert found.kl_divergence == 0.0
    assert found.kl_divergence_p99 == 0.0
    assert found.top1_agreement == 1.0
    assert found.perplexity == found.baseline_perplexity
    assert found.perplexity_error == 0.0


def test_a_baseline_is_computed_once_and_measures_the_same(artifact, monkeypatch):
    small = artifact(encoded("affine:int4-sym-g32"))
    expected = evaluate(small, TOKENS, baseline=artifact())
    baseline, windows = Baseline(artifact()), []
    hidden = Transformer.hidden
    monkeypatch.setattr(
        Transformer,
        "hidden",
        lambda model, tokens: (windows.append(1) if model is baseline._model else None) or hidden(model, tokens),
    )
    assert [evaluate(small, TOKENS, baseline=baseline) for _ in range(3)] == [expected] * 3
    assert compare(baseline, small, TOKENS).evaluation == expected
    assert len(windows) == 1


# The noise floor


def test_the_noise_floor_is_the_divergence_of_two_orders_of_summation(artifact, near):
    found = evaluate(artifact(encoded("affine:int8-sym-g32")), TOKENS, baseline=artifact())
    windows = cut(TOKENS, 64, None)
    orders = Transformer(MODEL), Transformer(MODEL).in_halves()
    log_p, log_q = (log_softmax(model.logits(windows)[:, 32:-1]).reshape(-1, 50) for model in orders)
    assert found.noise_floor > 0
    # Here more rows are multiplied at once, which rounds otherwise again: only the size is the same.
    assert found.noise_floor == pytest.approx(kl_divergence(log_p, log_q).mean(), rel=0.5)
    assert found.noise_floor <= near(log_p, log_q) ** 2
    assert not found.is_noise
    assert found.to_dict()["noise_floor"] == found.noise_floor


def test_halves_give_the_same_values_in_another_order(artifact, rounding):
    for model in (MODEL, encoded("affine:int4-sym-g32")):
        whole = Transformer(model)
        halves = whole.in_halves().logits(TOKENS[:60])
        expected = whole.logits(TOKENS[:60])
        assert not np.array_equal(halves, expected)
        np.testing.assert_allclose(halves, expected, rtol=0, atol=rounding(CONFIG, expected))


def test_what_is_not_above_the_noise_floor_is_marked(artifact):
    same = evaluate(artifact(), TOKENS, baseline=artifact())
    assert same.is_noise
    assert str(same).splitlines()[-1] == f"noise floor {same.noise_floor:.1e}: the divergence is not above it"
    exact = MODEL.tensors["output.weight"].read()
    shifted = changed("output.weight", np.nextafter(exact, np.float32(9), dtype=np.float32))
    rounded = evaluate(artifact(shifted), TOKENS, baseline=artifact())
    assert 0 < rounded.kl_divergence <= rounded.noise_floor
    assert not evaluate(artifact(), TOKENS).is_noise
    assert evaluate(artifact(), TOKENS).noise_floor is None


def test_the_noise_floor_of_a_baseline_is_measured_once(artifact, monkeypatch):
    calls = []
    monkeypatch.setattr(language, "noise_floor", lambda model, windows: calls.append(windows.shape) or 1e-12)
    monkeypatch.setattr(language, "_BATCH", 128)
    remembered = Baseline(artifact())
    found = {evaluate(artifact(encoded(p)), TOKENS, baseline=remembered).noise_floor for p in ("Q8_0", "Q4_0")}
    assert found == {1e-12}
    assert calls == [(2, 64)]  # of three windows the first batch


def test_more_bits_are_nearer(artifact):
    ladder = ["affine:int8-sym-g32", "affine:int6-sym-g32", "affine:int4-sym-g32", "affine:int2-asym-g32"]
    found = [evaluate(artifact(encoded(p)), TOKENS, baseline=artifact()) for p in ladder]
    assert sorted(e.kl_divergence for e in found) == [e.kl_divergence for e in found]
    assert sorted(-e.top1_agreement for e in found) == [-e.top1_agreement for e in found]
    assert 0 < found[0].kl_divergence < 1e-3


def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary(artifact):
    blank = changed("output.weight", np.zeros((50, 32), np.float32))
    assert evaluate(artifact(blank), TOKENS).perplexity == pytest.approx(50, rel=1e-12)


def test_how_much_is_computed_at_once_changes_nothing(artifact, monkeypatch, near):
    log_p, log_q = (naive(m, TOKENS, 16)[0] for m in (MODEL, encoded("affine:int4-sym-g32")))
    expected = evaluate(artifact(encoded("affine:int4-sym-g32")), TOKENS, baseline=artifact(), context=16)
    monkeypatch.setattr(language, "_LOGITS", 50 * 3)
    monkeypatch.setattr(language, "_BATCH", 40)
    found = evaluate(artifact(encoded("affine:int4-sym-g32")), TOKENS, baseline=artifact(), context=16)
    off, kl_off = near(log_p, log_q), kl_tolerance(log_p, log_q, near(log_p, log_q))
    for name, value in attrs.asdict(found).items():
        if name != "noise_floor":  # of the first batch, which is another one
            allowed = kl_off.max() if "kl" in name else off * 2 * expected.perplexity
            assert value == pytest.approx(getattr(expected, name), abs=allowed), name


def test_logits_of_the_text_are_never_held(artifact, monkeypatch):
    rows = []
    project = Transformer.project

    def watched(self, hidden):
        rows.append(hidden.shape[0])
        return project(self, hidden)

    monkeypatch.setattr(Transformer, "project", watched)
    monkeypatch.setattr(language, "_LOGITS", 50 * 7)
    assert evaluate(artifact(), TOKENS, context=50).tokens == sum(rows)
    assert max(rows) == 7


def test_a_text_goes_through_the_tokenizer(artifact, near):
    letters = Letters("spm", ("x",) * 50, (), bos=1)
    text = "onceuponatimetherewasafoxwholivedonahillandsangallday"
    ids = np.array(letters.encode(text))
    windows = cut(ids, 25, 1)
    assert windows.shape == (2, 25)
    assert windows[:, 0].tolist() == [1, 1]
    np.testing.assert_array_equal(windows[:, 1:], ids[:50].reshape(2, 25)[:, 1:])
    log_q, targets = naive(MODEL, ids, 25, bos=1)
    expected = math.exp(-log_q[np.arange(24), targets].mean())
    assert evaluate(artifact(tokenizer=letters), text, context=25).perplexity == pytest.approx(
        expected, rel=near(log_q)
    )
    # Ids that the caller cut get the same treatment.
    assert evaluate(artifact(tokenizer=letters), ids, context=25).perplexity == pytest.approx(expected, rel=near(log_q))
    plain = Letters("spm", ("x",) * 50, (), bos=1, add_bos=False)
    assert evaluate(artifact(tokenizer=plain), text, context=25).perplexity != pytest.approx(expected, rel=1e-3)


def test_a_short_text_is_one_window(artifact):
    found = evaluate(artifact(), TOKENS[:20])
    assert (found.context, found.tokens) == (20, 9)


def test_progress_counts_windows(artifact):
    calls = []
    evaluate(artifact(), TOKENS, context=64, progress=lambda *call: calls.append(call))
    assert calls == [(0, 3, "evaluation"), (3, 3, "")]


@pytest.mark.parametrize(
    ("tokens", "options", "message"),
    [
        ([1, 2], {}, "2 tokens are too few to score; give a text of at least three, better thousands"),
        ([[1, 2, 3]], {}, "tokens have to be integers [n], got int64 [1, 3]"),
        ([0.5] * 9, {}, "tokens have to be integers [n], got float64 [9]"),
        (TOKENS, {"context": 2}, "a window of 2 tokens; choose between 3 and the model's context of 64"),
        (TOKENS, {"context": 65}, "a window of 65 tokens; choose between 3 and the model's context of 64"),
    ],
)
def test_bad_usage(artifact, tokens, options, message):
    with pytest.raises(UsageError) as caught:
        evaluate(artifact(), tokens, **options)
    assert str(caught.value) == message


def test_a_text_needs_a_tokenizer(artifact):
    with pytest.raises(UsageError, match="it has no tokenizer to cut the text with; give token ids instead"):
        evaluate(artifact(), "text")


def test_other_vocabularies_do_not_compare(artifact):
    other = random_model(attrs.evolve(CONFIG, vocab=51))
    with pytest.raises(UsageError, match=r"vocabularies of \{50, 51\} tokens"):
        evaluate(artifact(), TOKENS, baseline=artifact(other))


def test_a_broken_model_is_named(artifact):
    broken = changed("output.weight", np.full((50, 32), np.nan, np.float32))
    with pytest.raises(NonFiniteError, match=r"model.bin: the model computes values that are not finite"):
        evaluate(artifact(broken), TOKENS)


def test_to_dict_is_json(artifact):
    found = evaluate(artifact(encoded("affine:int4-sym-g32")), TOKENS, baseline=artifact())
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False)) == attrs.asdict(found)
    assert str(found).startswith(f"perplexity {found.perplexity:.4f} over 93 tokens in windows of 64 (baseline ")


# Arithmetic

logits = hnp.arrays(
    np.float32, (3, 17), elements=st.floats(-(2.0**100), 2.0**100, width=32) | st.floats(-20, 20, width=32)
)


@given(logits, logits)
def test_divergence_is_never_negative(a, b):
    log_p, log_q = log_softmax(a), log_softmax(b)
    np.testing.assert_allclose(np.exp(log_p).sum(axis=1), 1, rtol=1e-12)
    assert (log_p <= 0).all()
    assert (kl_divergence(log_p, log_q) >= 0).all()
    assert (kl_divergence(log_p, log_p.copy()) == 0).all()


def test_divergence_of_known_distributions():
    p, q = np.array([[0.5, 0.5, 1e-300]]), np.array([[0.25, 0.75, 1e-300]])
    expected = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert kl_divergence(np.log(p), np.log(q))[0] == pytest.approx(expected, rel=1e-14)


def test_log_softmax_does_not_mind_a_shift():
    x = np.random.RandomState(0).standard_normal((4, 9))
    np.testing.assert_allclose(log_softmax(x), log_softmax(x + 1e6), atol=1e-9)


# Comparison


def test_tensor_errors_are_their_definitions(artifact):
    found = compare(artifact(), artifact(encoded("affine:int4-sym-g32"), "small.bin", 300))
    assert [e.name for e in found.tensors] == list(MODEL.tensors)
    total_error = total_signal = 0.0
    small = encoded("affine:int4-sym-g32")
    for error in found.tensors:
        w = MODEL.tensors[error.name].float32().astype(np.float64)
        d = w - small.tensors[error.name].float32()
        total_error, total_signal = total_error + (d * d).sum(), total_signal + (w * w).sum()
        rms = math.sqrt((d * d).sum() / (w * w).sum())
        assert error.relative_rms == pytest.approx(rms, rel=1e-9)
        assert error.max_abs == np.abs(d).max()
        assert error.snr_db == (pytest.approx(-20 * math.log10(rms)) if rms else math.inf)
        assert error.precision == ("affine:int4-sym-g32" if w.shape[0] > 1 else "F32")
    assert found.relative_rms == pytest.approx(math.sqrt(total_error / total_signal), rel=1e-9)
    assert found.artifact.bits_per_weight < 6 < 32 == found.baseline.bits_per_weight
    assert (found.baseline.nbytes, found.artifact.nbytes) == (1000, 300)
    assert found.evaluation is None
    assert found.unmatched == ()


def test_rows_compared_at_once_change_nothing(artifact, monkeypatch):
    small = encoded("affine:int4-sym-g32")
    expected = compare(artifact(), artifact(small))
    monkeypatch.setattr(comparison, "_CHUNK", 100)
    for a, b in zip(compare(artifact(), artifact(small)).tensors, expected.tensors, strict=True):
        assert a.relative_rms == pytest.approx(b.relative_rms, rel=1e-12)
        assert a.max_abs == b.max_abs


def test_the_report_is_a_table(artifact):
    found = compare(artifact(), artifact(encoded("affine:int4-sym-g32"), "small.bin", 300), TOKENS)
    lines = str(found).splitlines()
    assert lines[0].split() == ["bytes", "bits", "a", "weight", "artifact"]
    assert lines[1].split() == ["baseline", "1,000", "32.000", "model.bin", "(memory)"]
    assert lines[2].endswith("small.bin (memory)")
    assert lines[3] == f"70.0% smaller; relative error {found.relative_rms:.6f}"
    assert lines[5].split() == ["tensor", "precision", "relative", "RMS", "max", "error", "SNR", "dB", "share"]
    assert lines[6].startswith("token_embd.weight")
    assert lines[-3].startswith("perplexity ")
    assert lines[-2].startswith("KL divergence 0.")
    assert lines[-1] == f"noise floor {found.evaluation.noise_floor:.1e}"
    widths = {len(line) for line in lines[6 : 6 + len(found.tensors)]}
    assert len(widths) == 1
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert data["artifact"]["name"] == "small.bin"
    assert data["tensors"][1] == {
        "name": "blk.0.attn_norm.weight",
        "precision": "F32",
        "relative_rms": 0.0,
        "max_abs": 0.0,
        "snr_db": None,
        "share": 0.0,
    }
    assert data["evaluation"]["tokens"] == 93


def test_zeros_that_became_something_else(artifact):
    zero, one = (changed("output.weight", np.full((50, 32), v, np.float32)) for v in (0, 1))
    error = compare(artifact(zero), artifact(one)).tensors[-1]
    assert (error.relative_rms, error.max_abs, error.snr_db) == (math.inf, 1.0, -math.inf)
    same = compare(artifact(zero), artifact(zero)).tensors[-1]
    assert (same.relative_rms, same.max_abs, same.snr_db) == (0.0, 0.0, math.inf)


def test_tied_and_untied_copies(artifact):
    tied = random_model(attrs.evolve(CONFIG, tied=True))
    found = compare(artifact(), artifact(tied))
    assert found.unmatched == ("output.weight",)
    assert "only in one of the two: output.weight" in str(found)


def test_unknown_families_match_by_the_files_names(artifact, tmp_path):
    def refuse():
        raise unknown_family("bert")

    def strange(scale):
        tensors = {
            "w": Tensor.of("w", np.arange(12, dtype=np.float32).reshape(3, 4) * np.float32(scale)),
            "half": Tensor.of("half", np.ones(5, np.float16)),
            "empty": Tensor.of("empty", np.ones((0, 4), np.float32)),
            "scalar": Tensor.of("scalar", np.float32(2).reshape(())),
            "ids": Tensor.of("ids", np.arange(3)),
        }
        return attrs.evolve(artifact(), tensors=tensors, load_model=refuse)

    found = compare(strange(1), strange(1.5))
    assert {e.name: e.relative_rms for e in found.tensors} == {"w": 0.5, "half": 0.0, "empty": 0.0, "scalar": 0.0}
    assert [e.precision for e in found.tensors] == ["F32", "F16", "F32", "F32"]


def test_other_models_do_not_compare(artifact):
    other = random_model(attrs.evolve(CONFIG, ffn=48))
    with pytest.raises(UsageError, match=r"tensor blk.0.ffn_gate.weight has shape \[64, 32\] in .* and \[48, 32\] in"):
        compare(artifact(), artifact(other))
    with pytest.raises(UsageError, match="have no tensor in common; compare copies of one model"):
        compare(artifact(), artifact(attrs.evolve(MODEL, tensors={})))


def test_progress_counts_tensors(artifact):
    calls = []
    compare(artifact(), artifact(), progress=lambda *call: calls.append(call))
    assert calls[0] == (0, 21, "token_embd.weight")
    assert [done for done, _, _ in calls] == list(range(21))


def test_a_broken_baseline_is_not_blamed_on_the_model(artifact):
    broken = artifact(changed("output.weight", np.full((50, 32), np.nan, np.float32)), name="base.bin")
    with pytest.raises(
        NonFiniteError, match=r"base.bin: the baseline computes values that are not finite; choose another"
    ):
        evaluate(artifact(), TOKENS, baseline=broken)


def test_a_baseline_of_another_tokenizer_is_refused(artifact):
    def tokenizer(*special, first="a"):
        tokens = (*special, first, *(f"▁t{n}" for n in range(49 - len(special))))
        types = [TokenType.CONTROL] * len(special) + [TokenType.NORMAL] * (50 - len(special))
        return Tokenizer("spm", tokens, tuple(types), bos=0)

    judged = artifact(tokenizer=tokenizer("<s>"))
    renamed = artifact(name="renamed.bin", tokenizer=tokenizer("<start>"))
    assert evaluate(judged, TOKENS, baseline=renamed).kl_divergence == 0
    other = artifact(name="other.bin", tokenizer=tokenizer("<s>", first="b"))
    for baseline in (other, Baseline(other)):
        with pytest.raises(
            UsageError, match="token 1 is 'a' in the one and 'b' in the other, and 1 of 49 differ; choose"
        ):
            evaluate(judged, TOKENS, baseline=baseline)


def test_it_says_that_it_was_calibrated_on_the_text(artifact):
    text, source = np.random.RandomState(5).randint(0, 50, (2, 600)), artifact()
    made = calibrate(source, text[0], context=16, holdout=0.5)
    small = attrs.evolve(source, manifest=Manifest(calibration=record_of(made)))
    same, other, held_out = (evaluate(small, t) for t in (text[0], text[1], made.held_out.reshape(-1)))
    assert same.calibrated == 1
    assert same.is_flattering
    assert str(same).endswith("of this text, which flatters it: measure on another")
    assert [other.calibrated, held_out.calibrated] == [0, 0]
    assert "flatters" not in str(other)
    shifted = evaluate(small, np.concatenate([text[1][:7], text[0][:300]]))
    assert shifted.is_flattering
    assert evaluate(source, text[0]).calibrated is None
    assert not evaluate(source, text[0]).is_flattering


def test_a_record_that_says_nothing_of_the_text_is_none():
    windows = np.arange(200).reshape(2, 100)
    for record in ({}, {"run": 8, "runs": "xyz"}, {"run": 0, "runs": "00"}, {"run": "8", "runs": "00000000"}):
        assert shared_with(record, windows) == 0
