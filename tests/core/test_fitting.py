"""Sensitivities and fitted models, on small models with random weights."""

from __future__ import annotations

import hashlib
import json
import math
import xml.etree.ElementTree as ET
from pathlib import Path

import attrs
import numpy as np
import pytest
from click.testing import CliRunner

import edgekit
from edgekit import sample
from edgekit.cli import cli
from edgekit.errors import InvalidFileError, UsageError
from edgekit.evaluation.fitting import _fitted, _search
from edgekit.evaluation.fitting._budget import Budget, cheapest, parse_size
from edgekit.evaluation.fitting._encodings import Encodings
from edgekit.evaluation.fitting._measuring import Divergence, Judge, Walk, with_tensors
from edgekit.evaluation.fitting._pooling import pooled
from edgekit.evaluation.fitting._problem import Problem
from edgekit.evaluation.fitting._record import Record
from edgekit.formats import _hf_sizes
from edgekit.pipeline import find_format, make_plan
from edgekit.pipeline._recipes import find_recipe, read_recipe, recipe_toml
from edgekit.precision import find_precision
from edgekit.recipe import Recipe
from edgekit.testing.models import artifact_of, random_model, small_llama

MODEL = random_model(small_llama())
TOKENS = np.random.RandomState(3).randint(0, 50, 600)
ALLOW = ("affine:int2-asym-g32", "affine:int4-asym-g32", "affine:int8-asym-g32")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "model.bin"
    path.write_bytes(b"weights")
    return artifact_of(MODEL, path)


@pytest.fixture(scope="module")
def problem(artifact):
    return Problem.of(artifact, find_format("hf", Path()), ALLOW)


@pytest.fixture(scope="module")
def measured(artifact):
    """Every matrix in every precision of `ALLOW`."""
    return edgekit.sensitivity(artifact, TOKENS, format="hf", allow=ALLOW, context=32)


@pytest.fixture(scope="module")
def whole(artifact, tmp_path_factory):
    """A fit that nothing interrupted, with its files ``out`` and ``out.fit``."""
    return fitted(artifact, tmp_path_factory.mktemp("whole") / "out")


def fitted(artifact, to, **options):
    given = {"allow": ALLOW, "bits": 5.5, "context": 32, "rounding": "nearest", **options}
    return edgekit.fit(artifact, TOKENS, to=to, **given)


def content(directory):
    return {file.name: file.read_bytes() for file in sorted(directory.iterdir()) if file.is_file()}


# What is measured


def test_a_sensitivity_is_the_divergence_of_the_file_with_that_tensor_alone_quantized(artifact, tmp_path):
    calibration = edgekit.calibrate(artifact, TOKENS, context=32, holdout=0.25, outputs=True)
    measured = edgekit.sensitivity(artifact, format="hf", allow=ALLOW, calibration=calibration, rounding="nearest")
    tokens = calibration.held_out.reshape(-1)
    for tensor in ("token_embd.weight", "blk.0.attn_k.weight", "blk.1.ffn_down.weight", "output.weight"):
        recipe = Recipe.of({tensor: ALLOW[0]})
        written = edgekit.quantize(
            artifact,
            recipe,
            to=tmp_path / tensor.replace(".", "-"),
            importance=calibration.importance(),
            allow_unquantized=True,
        )
        exact = edgekit.evaluate(written, tokens, baseline=artifact, context=32).kl_divergence
        # The same operations on the same values; BLAS may sum batches of another size in another order.
        assert measured.of(tensor, ALLOW[0]).kl == pytest.approx(exact, rel=1e-4)
        assert 0 < measured.of(tensor, ALLOW[0]).error < measured.of(tensor, ALLOW[0]).kl


def test_more_bits_cost_less_and_take_more(measured):
    assert len(measured.measured) == 3 * 16
    for tensor in {m.tensor for m in measured.measured}:
        two, four, eight = (measured.of(tensor, name) for name in ALLOW)
        assert two.kl > four.kl > eight.kl > measured.noise_floor
        assert two.nbytes < four.nbytes < eight.nbytes


def test_states_before_a_changed_layer_are_reused_and_change_nothing():
    windows = TOKENS[:128].reshape(4, 32)
    judge = Judge.on(MODEL, windows)
    changed = with_tensors(judge.source, {"blk.1.ffn_up.weight": MODEL.tensors["blk.1.ffn_gate.weight"]})
    walk = Walk.start(judge.source, windows).up_to(1)
    assert np.array_equal(judge.values(changed, walk), judge.values(changed))
    assert judge.divergence(judge.source).kl == 0


def test_the_kept_encodings_do_not_decide(artifact):
    calibration = edgekit.calibrate(artifact, TOKENS, context=32)
    names = [(role, find_precision(name)) for role in ("blk.0.attn_q.weight", "output.weight") for name in ALLOW]
    roomy, tight = Encodings(MODEL, calibration), Encodings(MODEL, calibration, limit=1)
    for role, precision in [*names, *names]:
        assert np.array_equal(roomy.tensor(role, precision).float32(), tight.tensor(role, precision).float32())


def test_pooling_keeps_what_is_a_sum_of_rows_and_columns():
    table = {(f"t{t}", f"p{p}"): Divergence(math.exp(-t - 2.0 * p), 0.1) for t in range(4) for p in range(3)}
    for key, found in pooled(table, 0.0).items():
        assert found.kl == pytest.approx(table[key].kl)


def test_pooling_halves_what_stands_out_and_leaves_noise_alone():
    table = {(f"t{t}", f"p{p}"): Divergence(math.exp(-t - 2.0 * p), 0.1) for t in range(40) for p in range(30)}
    table |= {("t0", "p0"): Divergence(10.0, 1.0), ("t1", "p1"): Divergence(1e-40, 0.0)}
    table |= {("t2", "p2"): Divergence(math.inf, math.inf)}
    found = pooled(table, 1e-39)
    assert found["t0", "p0"].kl == pytest.approx(math.sqrt(10.0), rel=0.1)
    assert found["t0", "p0"].error == pytest.approx(found["t0", "p0"].kl / 10)
    assert (found["t1", "p1"].kl, found["t2", "p2"].kl) == (1e-40, math.inf)


def test_the_heat_map_has_a_cell_for_each_value(measured):
    root = ET.fromstring(measured.svg())
    titles = [element.text for element in root.iter("{http://www.w3.org/2000/svg}title")]
    assert len(titles) == len(measured.measured)
    worst = max(measured.measured, key=lambda value: value.kl)
    assert f"{worst.tensor}, {worst.precision}: {worst.kl:.3g} nats" in titles


# Sizes


@pytest.mark.parametrize("name", ["affine:int4-asym-g64", "affine:int3-sym-channel", "F16"])
def test_the_size_of_a_directory_is_known_before_it_is_written(artifact, tmp_path, name):
    form = find_format("hf", Path())
    layout = form.layout(artifact)
    plan = make_plan(find_recipe(name, "hf"), layout)
    written = edgekit.quantize(artifact, name, to=tmp_path / "out", allow_unquantized=True)
    assert form.sizes(layout).whole(plan) == written.nbytes


def test_a_fitted_model_lies_within_half_a_percent_below_the_budget(artifact, problem, tmp_path):
    low, high = (problem.nbytes(choice) for choice in (problem.smallest, problem.largest))
    for share in (0.25, 0.5, 0.75):
        budget = int(low + share * (high - low))
        result = fitted(artifact, tmp_path / f"out-{100 * share:.0f}", bits=None, size=budget, work=tmp_path / "work")
        assert 0.995 * budget <= result.nbytes <= budget
        assert result.nbytes == result.artifact.nbytes == sum(file.stat().st_size for file in result.artifact.files)


def test_bits_are_those_of_the_tensors(artifact, tmp_path):
    written = fitted(artifact, tmp_path / "out", bits=5.5).artifact
    assert 5.4 < 8 * written.tensor_nbytes / written.parameters <= 5.5


@pytest.mark.parametrize(
    ("text", "nbytes"), [("3.5GB", 3_500_000_000), ("900 MB", 900_000_000), ("1MiB", 1 << 20), ("2k", 2000), ("17", 17)]
)
def test_sizes(text, nbytes):
    assert parse_size(text) == nbytes


@pytest.mark.parametrize("text", ["", "GB", "3,5GB", "-1", "3.5GW", "1e9"])
def test_what_is_no_size(text):
    with pytest.raises(UsageError, match=r"write a number and a unit, such as 3\.5GB"):
        parse_size(text)


# What is chosen


def test_it_is_never_worse_than_one_precision_for_all_of_the_same_size(artifact, tmp_path):
    for name in ALLOW[:2]:
        uniform = edgekit.quantize(artifact, name, to=tmp_path / name.replace(":", "-"))
        result = fitted(artifact, tmp_path / f"fit-{name[-10:]}", bits=None, like=name, work=tmp_path / "work")
        tokens = result.calibration.held_out
        chosen = Judge.on(MODEL, tokens[: len(tokens) - 2])
        assert result.nbytes <= uniform.nbytes
        assert chosen.divergence(result.artifact.model).kl <= chosen.divergence(uniform.model).kl


def test_a_choice_of_the_same_size_that_is_better_beyond_doubt_is_taken(problem, monkeypatch):
    """The table says that the smallest is best, which no measurement of the whole model confirms."""
    budget = Budget(problem.nbytes(problem.largest), "test")
    calibration = edgekit.calibrate(problem.layout.source, TOKENS, context=32)
    judge = Judge.on(MODEL, calibration.windows)
    head = {"format": "test"}
    bench = _search.Bench(judge, Encodings(MODEL, calibration), Record(None, head))
    wrong = {(u.name, p.name): Divergence(float(u.size(p)), 0.0) for u in problem.units for p in u.options}
    found = _search.search(bench, problem, attrs.evolve(budget, most=budget.most), wrong, [problem.largest])
    assert found.choice == problem.largest


def test_tensors_that_a_runtime_wants_alike_get_one_precision(artifact, tmp_path, monkeypatch):
    ties = [[f"blk.{layer}.attn_{name}.weight" for name in "qkv"] for layer in range(2)]
    monkeypatch.setattr(_hf_sizes.HuggingFaceSizes, "ties", lambda self: ties)
    result = fitted(artifact, tmp_path / "out", bits=4.5)
    assert len(set(result.precisions.values())) > 1
    for group in ties:
        assert len({result.precisions[role] for role in group}) == 1
    assert result.sensitivity.of("+".join(ties[0]), ALLOW[0]).kl > 0


def test_the_cheapest_choice_never_has_what_cannot_be_measured(problem):
    costs = [[math.inf, 1.0, 0.5] for _ in problem.units]
    choice = cheapest(problem, Budget(problem.nbytes(problem.largest), "all"), costs)
    assert find_precision(ALLOW[0]) not in choice.values()


def test_ten_runs_write_one_file(tmp_path):
    """Of a model of one layer, so that ten whole runs, each with its own measurements, are short."""
    (tmp_path / "model.bin").write_bytes(b"weights")
    shallow = artifact_of(random_model(small_llama(num_hidden_layers=1)), tmp_path / "model.bin")
    hashes = set()
    for run in range(10):
        result = fitted(shallow, tmp_path / str(run), bits=7, allow=ALLOW[1:])
        hashes.add(hashlib.sha256((tmp_path / str(run) / "model.safetensors").read_bytes()).hexdigest())
        hashes.add(result.recipe.read_text().splitlines()[0])
    assert len(hashes) == 2


@pytest.mark.parametrize("rounding", ["nearest", "feedback"])
def test_the_rounding_is_that_of_the_artifact(artifact, tmp_path, rounding):
    result = fitted(artifact, tmp_path / "out", rounding=rounding, allow=ALLOW[1:], bits=7)
    again = edgekit.quantize(
        artifact, result.recipe, to=tmp_path / "again", calibration=result.calibration, rounding=rounding
    )
    assert content(tmp_path / "again") == content(tmp_path / "out")
    assert ("rounding" in again.notes) == (rounding == "feedback")


def test_feedback_costs_less(artifact):
    calibration = edgekit.calibrate(artifact, TOKENS, context=32, holdout=0.25)
    options = {"format": "hf", "allow": ALLOW[:2], "calibration": calibration}
    near, fed = (edgekit.sensitivity(artifact, rounding=rounding, **options) for rounding in ("nearest", "feedback"))
    lower = [a.kl < b.kl for a, b in zip(fed.measured, near.measured, strict=True)]
    assert sum(lower) > 0.7 * len(lower)


# The recipe


def test_the_recipe_gives_the_same_bytes_again(artifact, whole, tmp_path):
    again = edgekit.quantize(artifact, whole.recipe, to=tmp_path / "again", importance=whole.calibration.importance())
    first, second = content(whole.artifact.path), content(tmp_path / "again")
    (name,) = [name for name in first if "edgekit" in name and name.endswith(".json")]
    records = [json.loads(files.pop(name)) for files in (first, second)]
    assert first == second
    assert records[0].pop("calibration")  # importance alone does not say on which tokens
    assert records[0] == records[1]
    assert again.manifest.recipe == "fit 5.5 bits"
    assert {line["reason"].partition("=")[0] for line in again.manifest.tensors.values()} >= {"rule output.weight"}


def test_a_recipe_that_was_edited_is_not_replaced(artifact, tmp_path):
    result = fitted(artifact, tmp_path / "out")
    fitted(artifact, tmp_path / "out", bits=5, overwrite=True)
    fitted(artifact, tmp_path / "out", bits=5.5)
    edited = result.recipe.read_text().replace("int8", "int4")
    result.recipe.write_text(edited)
    with pytest.raises(UsageError, match="was edited or is no recipe of edgekit fit"):
        fitted(artifact, tmp_path / "out")
    assert result.recipe.read_text() == edited
    fitted(artifact, tmp_path / "out", overwrite=True)
    assert result.recipe.read_text() != edited


def test_a_recipe_survives_its_file(tmp_path):
    recipe = Recipe.of({'odd "name"\\': "Q8_0", "*": "ggml:Q4_0"}, "Q4_K_M", name="für alle\x7f")
    (tmp_path / "recipe.toml").write_text(recipe_toml(recipe), "utf-8")
    assert read_recipe(tmp_path / "recipe.toml") == recipe
    with pytest.raises(UsageError, match="its base is an object, which a file cannot hold"):
        recipe_toml(attrs.evolve(recipe, base=recipe))


# Interrupted runs


class Stop:
    """Ctrl-C at some value."""

    def __init__(self, at):
        self.left = at

    def __call__(self, done, total, what):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("at", [1, 3, 20, 55, 75])
def test_an_interrupted_run_goes_on_with_the_same_bytes(artifact, whole, tmp_path, at):
    with pytest.raises(KeyboardInterrupt):
        fitted(artifact, tmp_path / "out", progress=Stop(at))
    assert not (tmp_path / "out").exists()
    fitted(artifact, tmp_path / "out")
    for part in ("out", "out.fit"):
        assert content(tmp_path / part) == content(whole.artifact.path.with_name(part))


def test_values_that_are_there_are_not_measured_again(artifact, tmp_path, monkeypatch):
    first = edgekit.sensitivity(artifact, TOKENS, format="hf", allow=ALLOW, context=32, to=tmp_path / "s.json")
    monkeypatch.setattr(Judge, "values", None)
    again = edgekit.sensitivity(artifact, TOKENS, format="hf", allow=ALLOW, context=32, to=tmp_path / "s.json")
    assert again == first
    recorded = json.loads((tmp_path / "s.json").read_text())
    assert recorded["result"]["positions"] == first.positions
    assert len(recorded["measured"]) == 1 + len(first.measured)


def test_another_text_is_measured_anew(artifact, tmp_path):
    options = {"format": "hf", "allow": ALLOW[:1], "context": 32, "to": tmp_path / "s.json"}
    first = edgekit.sensitivity(artifact, TOKENS, **options)
    assert edgekit.sensitivity(artifact, TOKENS[::-1], **options) != first


# Bad input


def test_a_budget_below_the_smallest_artifact(artifact, problem, tmp_path):
    smallest = problem.nbytes(problem.smallest)
    with pytest.raises(UsageError, match=rf"the smallest hf artifact .* has {smallest:,} bytes; give more"):
        fitted(artifact, tmp_path / "out", bits=None, size=smallest - 1)
    assert not (tmp_path / "out.fit").exists()
    result = fitted(artifact, tmp_path / "out", bits=None, size=smallest)
    assert result.nbytes == smallest


def test_a_budget_above_the_largest_artifact(artifact, problem, tmp_path):
    largest = problem.nbytes(problem.largest)
    with pytest.raises(UsageError, match=rf"the largest hf artifact .* has {largest:,} bytes; give less"):
        fitted(artifact, tmp_path / "out", bits=None, size=int(largest * 1.01))
    assert fitted(artifact, tmp_path / "out", bits=None, size=int(largest * 1.004)).nbytes == largest


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": None}, "one of size, bits and like"),
        ({"size": "1MB"}, "one of size, bits and like"),
        ({"bits": 0.0}, "choose a number above 0"),
        ({"allow": []}, "a list of at least one name"),
        ({"allow": ["ggml:Q4_K"]}, "ggml:Q4_K cannot be stored in hf for any matrix of this model"),
        ({"allow": ["ggml:NVFP4"]}, "blk.0.ffn_down.weight has rows of 96, which none of the allowed precisions"),
        ({"context": 400}, "choose between 3 and the model's context of 64"),
    ],
)
def test_what_cannot_be_fitted(artifact, tmp_path, options, message):
    given = {"allow": ALLOW, "bits": 5.5, "context": 32, **options}
    with pytest.raises(UsageError, match=message):
        edgekit.fit(artifact, np.tile(TOKENS, 9), to=tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_a_text_of_too_few_windows(artifact, tmp_path):
    with pytest.raises(UsageError, match="the text has 2 whole windows of 32 tokens, and 3 are needed to calibrate"):
        edgekit.fit(artifact, TOKENS[:95], to=tmp_path / "out", allow=ALLOW, bits=5.5, context=32)
    with pytest.raises(UsageError, match="the text has 0 whole windows of 32 tokens, and 2 are needed"):
        edgekit.sensitivity(artifact, TOKENS[:31], format="hf", context=32)


def test_the_text_that_calibrated_does_not_choose(artifact, tmp_path):
    calibration = edgekit.calibrate(artifact, TOKENS, context=32, outputs=True)
    for text in (TOKENS, TOKENS[5:], np.concatenate([TOKENS[300:], TOKENS[:300]])):
        with pytest.raises(UsageError, match="the calibration is of the text to measure on"):
            edgekit.sensitivity(artifact, text, format="hf", calibration=calibration)
    with pytest.raises(UsageError, match="the calibration is of the text to measure on"):
        fitted(artifact, tmp_path / "out", calibration=calibration)
    other = np.random.RandomState(4).randint(0, 50, 600)
    assert edgekit.sensitivity(artifact, other, format="hf", allow=ALLOW[:1], calibration=calibration).positions == 270


def test_parts_of_the_text_do_not_overlap(artifact):
    parts = _fitted.split(artifact, TOKENS, None, context=32)
    used = [parts.calibration.windows, parts.choosing, parts.reporting]
    assert [len(windows) for windows in used] == [12, 4, 2]
    assert np.array_equal(np.concatenate(used).reshape(-1), TOKENS[: 18 * 32])


def test_a_file_of_something_else_is_not_replaced(artifact, tmp_path):
    (tmp_path / "notes.json").write_text("{}")
    with pytest.raises(UsageError, match=r"is no edgekit\.sensitivity file"):
        edgekit.sensitivity(artifact, TOKENS, format="hf", allow=ALLOW, context=32, to=tmp_path / "notes.json")
    assert (tmp_path / "notes.json").read_text() == "{}"


def test_a_record_of_other_values_says_so():
    record = Record(None, {"format": "test"})
    record.entries.append({"step": "one", "kl": 1.0})
    with pytest.raises(InvalidFileError, match="where this run measures"):
        record.value({"step": "two"}, dict)


# The command line


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(sample.heldout_text()[:700], "utf-8")
    return path


def runner():
    try:
        return CliRunner(mix_stderr=False)  # before click 8.2 the two come together unless they are asked not to
    except TypeError:
        return CliRunner()


def run(*arguments):
    result = runner().invoke(cli, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_commands(tmp_path, text):
    allowed = "affine:int3-asym-g64,affine:int6-asym-g64"
    common = [sample.path(), "--text", text, "--allow", allowed, "--context", 64, "--rounding", "nearest"]
    out = run("sensitivity", *common, "--to", tmp_path / "s.json", "--picture", tmp_path / "s.svg")
    assert "blk.2.ffn_down.weight" in out
    assert ET.parse(tmp_path / "s.svg").getroot().get("class") == "heat-map"
    shown = json.loads(run("fit", *common, "--bits", 5, "--to", tmp_path / "out", "--json"))
    assert shown["budget"] * 0.995 <= shown["size"] <= shown["budget"]
    assert edgekit.open(tmp_path / "out").nbytes == shown["size"]
    assert set(shown["precisions"].values()) == set(allowed.split(","))
    out = run("fit", *common, "--bits", 5, "--to", tmp_path / "out")
    assert "positions that it was not chosen by" in out


@pytest.fixture(scope="module")
def by_one(artifact, tmp_path_factory):
    """A fit with one measured precision of each tensor, with its files ``out`` and ``out.fit``."""
    return fitted(artifact, tmp_path_factory.mktemp("one") / "out", measure="one")


def test_one_measured_precision_predicts_the_others(by_one, whole):
    every = {(value.tensor, value.precision): value for value in whole.sensitivity.measured}
    measured = {value.tensor: value for value in by_one.sensitivity.measured if not value.predicted}
    assert len(measured) == len(every) // len(ALLOW)
    assert len(by_one.sensitivity.measured) == len(every)
    for value in by_one.sensitivity.measured:
        known, one = every[value.tensor, value.precision], measured[value.tensor]
        assert value.nbytes == known.nbytes
        ratio, expected = value.kl / one.kl, known.kl / every[value.tensor, one.precision].kl
        # Measured: 0.68 to 2.6 times, the latter at two bits.
        assert abs(math.log(ratio / expected)) < math.log(4), value
    assert by_one.sensitivity.positions < whole.sensitivity.positions
    assert {value["predicted"] for value in by_one.sensitivity.to_dict()["measured"]} == {False, True}


def test_a_fit_by_one_precision_keeps_to_the_budget_and_its_choice_is_as_good(by_one, whole):
    assert 0.995 * by_one.budget <= by_one.nbytes <= by_one.budget == whole.budget
    assert by_one.divergence.kl < 1.5 * whole.divergence.kl


def test_a_fit_by_one_precision_continues_with_the_same_bytes(artifact, by_one, tmp_path, monkeypatch):
    stopped, value = [], Record.value

    def stopping(self, key, measure):
        stopped.append(key)
        if len(stopped) == 40:
            raise KeyboardInterrupt
        return value(self, key, measure)

    monkeypatch.setattr(Record, "value", stopping)
    with pytest.raises(KeyboardInterrupt):
        fitted(artifact, tmp_path / "out", measure="one")
    monkeypatch.setattr(Record, "value", value)
    fitted(artifact, tmp_path / "out", measure="one")
    assert content(tmp_path / "out") == content(by_one.artifact.path)


def test_one_precision_is_measured_of_a_large_model(artifact, tmp_path, monkeypatch):
    monkeypatch.setattr(_fitted, "EVERY", 1000)
    assert any(value.predicted for value in fitted(artifact, tmp_path / "out").sensitivity.measured)


def test_what_is_measured_is_one_or_every(artifact, tmp_path):
    with pytest.raises(UsageError, match="measure='some'; 'every' precision of each tensor, 'one', or None"):
        fitted(artifact, tmp_path / "out", measure="some")
