"""Drift of a served model: the figures against SciPy's and PromQL's, the sources, and what is refused."""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
import subprocess

import numpy as np
import pytest
from click.testing import CliRunner
from scipy import stats
from starlette.testclient import TestClient

import edgekit
from edgekit import sample
from edgekit.cli import cli
from edgekit.errors import InvalidFileError, MissingFileError, ResourceError, UsageError
from edgekit_serve.app import create_app
from edgekit_serve.settings import Settings
from edgekit_workflow.watching import Distribution, Limits, Record, compare, read_record
from edgekit_workflow.watching.drift import cuts, kolmogorov_smirnov, stability_index
from edgekit_workflow.watching.monitoring import drift_rules, panels, write_monitoring
from edgekit_workflow.watching.records import of_metrics

PROMTOOL = shutil.which("promtool")
promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian's package prometheus)")
DRAWN = np.random.default_rng(3)
#: Name -> values of a baseline, and of what came later.
SAMPLES = {
    "the same": (DRAWN.normal(0, 1, 400), DRAWN.normal(0, 1, 300)),
    "shifted": (DRAWN.normal(0, 1, 400), DRAWN.normal(0.6, 1, 300)),
    "wider": (DRAWN.normal(0, 1, 400), DRAWN.normal(0, 2, 300)),
    "whole numbers": (DRAWN.integers(1, 40, 500), DRAWN.integers(20, 60, 90)),
    "few": (DRAWN.integers(1, 5, 12), DRAWN.integers(1, 5, 7)),
}


def drifts(old, new, **limits):
    given = (Record({"m": {"tokens": Distribution.of(values)}}) for values in (new, old))
    (found,) = compare(*given, Limits(**limits))
    return found


@pytest.mark.parametrize("name", SAMPLES)
def test_kolmogorov_smirnov_is_scipys(name):
    old, new = SAMPLES[name]
    distance, p_value = kolmogorov_smirnov(Distribution.of(new), Distribution.of(old))
    expected = stats.ks_2samp(new, old, method="asymp")
    assert distance == pytest.approx(expected.statistic, abs=1e-12)
    assert p_value == pytest.approx(expected.pvalue, abs=1e-12)


@pytest.mark.parametrize("name", SAMPLES)
def test_the_stability_index_is_its_definition(name):
    old, new = SAMPLES[name]
    edges = [-math.inf, *cuts(Distribution.of(old))]
    p, q = (np.maximum([np.mean((v > a) & (v <= b)) for a, b in itertools.pairwise(edges)], 1e-4) for v in (new, old))
    index = stability_index(Distribution.of(new), Distribution.of(old))
    assert index == pytest.approx(float(np.sum((p - q) * np.log(p / q))), rel=1e-9)


def test_a_known_index():
    old, new = Distribution.of([0] * 9 + [1]), Distribution.of([0, 1])
    assert stability_index(new, old) == pytest.approx(0.4 * math.log(5) - 0.4 * math.log(5 / 9))


def test_bins_hold_equal_shares():
    old = Distribution.of(range(100))
    assert cuts(old).tolist() == [9, 19, 29, 39, 49, 59, 69, 79, 89, math.inf]
    assert old.into(cuts(old)).counts.tolist() == [10] * 10


@pytest.mark.parametrize("later", [[15.0], [17.0]])
def test_a_constant_that_changes_has_drifted(later):
    assert drifts([16.0] * 100, later * 100).drifted is True


def test_what_is_judged():
    assert drifts(*SAMPLES["the same"]).drifted is False
    assert drifts(*SAMPLES["shifted"]).drifted is True
    assert drifts(*SAMPLES["whole numbers"]).drifted is True
    assert drifts(*SAMPLES["few"]).drifted is None
    assert drifts(*SAMPLES["few"], least=5).drifted is False
    many = np.arange(100_000.0)
    barely = drifts(many, many + 1_500)
    assert (barely.drifted, barely.p_value < 1e-6) == (False, True), "of many texts every change is significant"
    assert drifts(many, many + 1_500, psi=0.0).drifted is True


@pytest.mark.parametrize("seed", range(5))
def test_equal_samples_do_not_drift(seed):
    draw = np.random.default_rng(seed)
    assert drifts(draw.geometric(0.02, 60), draw.geometric(0.02, 60)).drifted is False


@pytest.fixture(scope="module")
def pages():
    """Three pages of metrics of a served model: short texts, more of them, then long ones from a new server."""
    draw = np.random.default_rng(1)

    def ask(client, lengths):
        for length in map(int, lengths):
            body = {"prompt": "Once", "max_tokens": length, "temperature": 0, "logit_bias": {"2": -100, "1": -100}}
            assert client.post("/v1/completions", json=body).status_code == 200
        return client.get("/metrics").text

    found = []
    for rounds in ((draw.integers(2, 12, 60), draw.integers(2, 12, 60)), (draw.integers(10, 30, 50),)):
        app = create_app(edgekit.load(sample.path(), "numpy"), Settings("tales", confidence=True))
        with TestClient(app, base_url="http://127.0.0.1") as client:
            found += [ask(client, lengths) for lengths in rounds]
    return found


@pytest.fixture
def files(pages, tmp_path):
    for number, page in enumerate(pages):
        (tmp_path / f"page{number}").write_text(page)
    return [str(tmp_path / f"page{number}") for number in range(len(pages))]


def watch(*arguments):
    return CliRunner().invoke(cli, ["watch", *map(str, arguments)])


def test_the_command(files, tmp_path):
    baseline = tmp_path / "baseline.json"
    done = watch(files[0], "--record", baseline)
    assert (done.exit_code, done.stdout) == (
        0,
        f"tales: tokens of 60 texts, confidence of 60 texts, refused of 60 texts\nwritten to {baseline}\n",
    )
    same = watch(files[1], "--since", files[0], "--against", baseline, "--json")
    assert same.exit_code == 0, same.output
    assert [(d["measure"], d["texts"], d["drifted"]) for d in json.loads(same.stdout)] == [
        ("tokens", 60, False),
        ("confidence", 60, False),
        ("refused", 60, False),
    ]
    drifted = watch(files[2], "--against", baseline)
    assert type(drifted.exception).__name__ == "QualityGateError"
    assert "\n  tales tokens: mean " in str(drifted.exception)
    assert re.search(r"tales +tokens +DRIFTED +50 +60 ", drifted.stdout)
    assert re.search(r"tales +refused +as before +50 +60 ", drifted.stdout)
    assert watch(files[2], "--against", baseline, "--psi", "100").exit_code == 0
    assert watch(files[2], "--against", files[0], "--least", "51").exit_code == 0


def test_a_record_is_read_as_it_was_written(files):
    record = read_record(files[0])
    again = record.to_json()
    assert json.loads(again)["models"]["tales"]["tokens"]["values"][-1] is None
    assert compare(record, record)[0].psi == 0
    assert again == read_record(files[0]).to_json()


def test_a_server_that_started_again_is_new(files):
    first, third = (read_record(file) for file in (files[0], files[2]))
    assert third.since(first).models["tales"]["tokens"].total == 50


def lines(lengths, refused=False):
    for length in lengths:
        text = {"tokens": int(length), "finish": "stop", "refused": refused, "confidence": None}
        yield json.dumps({"time": "t", "model": "tales", "texts": [text], "status": 200})
        yield json.dumps({"time": "t", "level": "info", "message": "GET /health 200"})
        yield "Traceback, which is no JSON"


def test_a_log(tmp_path, files):
    log = tmp_path / "log"
    draw = np.random.default_rng(2)
    log.write_text("\n".join([*lines(draw.integers(2, 12, 80)), *lines(draw.integers(60, 90, 70), refused=True)]))
    assert {m: d.total for m, d in read_record(log).models["tales"].items()} == {"tokens": 150, "refused": 150}
    last = read_record(log, last=70).models["tales"]
    assert last["tokens"].values.min() >= 60
    assert watch(log, "--last", 70, "--record", tmp_path / "last.json").exit_code == 0
    against = compare(read_record(log, last=70), read_record(files[0]))
    assert [(d.measure, d.drifted) for d in against] == [("tokens", True), ("refused", True)]
    back = compare(read_record(files[0]), read_record(log, last=70))
    assert [d.drifted for d in back] == [True, True]


def test_what_is_refused(tmp_path, files):
    def refused(error, message, *arguments):
        found = watch(*arguments)
        assert isinstance(found.exception, error), found.exception
        assert re.search(message, str(found.exception)), found.exception

    empty, other = tmp_path / "empty", tmp_path / "other.json"
    empty.write_text("")
    other.write_text(read_record(files[0]).to_json().replace('"tales"', '"novels"'))
    log = tmp_path / "log"
    log.write_text("\n".join(lines([3])))
    refused(UsageError, "give --record FILE to write", files[0])
    refused(UsageError, "give --record FILE to write", files[0], "--record", "a", "--against", "b")
    refused(MissingFileError, "cannot be read", tmp_path / "none", "--against", files[0])
    refused(InvalidFileError, "no metrics of served texts", empty, "--against", files[0])
    refused(UsageError, "the record is of tales, the baseline of novels", files[0], "--against", other)
    refused(UsageError, "--last 5 with", files[0], "--last", 5, "--against", files[0])
    refused(UsageError, "only records of metrics", log, "--since", files[0], "--against", files[0])
    refused(UsageError, "--psi -1.0", files[0], "--against", files[0], "--psi", -1)
    refused(ResourceError, "no server answers", "http://127.0.0.1:9/metrics", "--against", files[0])
    other.write_text(other.read_text().replace('"counts": [', '"counts": [1, '))
    refused(InvalidFileError, "a malformed record", other, "--against", files[0])


def test_a_server_without_texts(tmp_path):
    page = tmp_path / "page"
    with TestClient(create_app(edgekit.load(sample.path(), "numpy")), base_url="http://127.0.0.1") as client:
        page.write_text(client.get("/metrics").text)
    with pytest.raises(InvalidFileError, match="no metrics of served texts"):
        read_record(page)


def names(expression):
    return set(re.findall(r"\bedgekit_[a-z_]+", expression))


def test_rules_and_panels_name_metrics_that_the_server_has(pages, tmp_path):
    served = set(re.findall(r"^(edgekit_\w+)", pages[0], re.MULTILINE))
    served |= {"edgekit_errors_total", "edgekit_cache_tokens_total"}  # they come with the first error, with llama.cpp
    write_monitoring(tmp_path, baseline=of_metrics(pages[0], "page"))
    for file in ("alerts.yml", "drift.yml", "dashboard.json"):
        found = names((tmp_path / file).read_text())
        assert len(found) > 3
        assert found <= served, f"{file}: {found - served}"
    assert len(panels()) == len(json.loads((tmp_path / "dashboard.json").read_text())["panels"]) > 10


def test_rules_on_drift_need_buckets(tmp_path):
    log = tmp_path / "log"
    log.write_text("\n".join(lines([3, 4])))
    with pytest.raises(UsageError, match="the baseline was not recorded from metrics, whose buckets the rules need"):
        write_monitoring(tmp_path / "to", baseline=read_record(log))
    with pytest.raises(UsageError, match="target 'x'; write a host and a port"):
        write_monitoring(tmp_path / "to", target="x")


def prometheus(*arguments, folder):
    done = subprocess.run([PROMTOOL, *map(str, arguments)], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@promtool
def test_promtool_accepts_the_files(pages, tmp_path):
    done = CliRunner().invoke(cli, ["alerts", "--to", str(tmp_path), "--target", "[::1]:8000"])
    assert done.exit_code == 0, done.output
    assert "SUCCESS: 8 rules found" in prometheus("check", "rules", "alerts.yml", folder=tmp_path)
    write_monitoring(tmp_path, baseline=of_metrics(pages[0], "page"))
    assert "SUCCESS: 4 rules found" in prometheus("check", "rules", "drift.yml", folder=tmp_path)
    assert "SUCCESS" in prometheus("check", "config", "prometheus.yml", folder=tmp_path)
    expressions = [e.replace("$model", ".*") for panel in panels() for e in panel["targets"].values()]
    rules = [{"record": f"panel:{number}", "expr": e} for number, e in enumerate(expressions)]
    (tmp_path / "panels.yml").write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    prometheus("check", "rules", "panels.yml", folder=tmp_path)


@promtool
def test_prometheus_computes_the_same_index(pages, tmp_path):
    """The rules' PromQL against Python's figure, on the counts of the third page as growth within the window."""
    baseline, later = (of_metrics(page, "page") for page in (pages[0], pages[2]))
    expected = {d.measure: d.psi for d in compare(later, baseline)}
    (tmp_path / "drift.yml").write_text(json.dumps(drift_rules(baseline, Limits())))
    series = [line for line in pages[2].splitlines() if re.match(r"edgekit_(text_|texts_|refusals_)", line)]
    grown = [
        {"series": name, "values": f"0+{float(value):g}x120"} for name, value in (s.rsplit(" ", 1) for s in series)
    ]
    checks = [
        {
            "expr": f'count(abs(edgekit:drift_psi{{measure="{measure}"}} - {value!r}) < 1e-6)',
            "eval_time": "2h",
            "exp_samples": [{"labels": "{}", "value": 1}],
        }
        for measure, value in expected.items()
    ]
    case = {"interval": "1m", "input_series": grown, "promql_expr_test": checks}
    test = {"rule_files": ["drift.yml"], "evaluation_interval": "1m", "tests": [case]}
    (tmp_path / "test.yml").write_text(json.dumps(test))
    assert "SUCCESS" in prometheus("test", "rules", "test.yml", folder=tmp_path)
