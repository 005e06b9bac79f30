"""The command line, run as a user runs it: data on stdout, progress on stderr, exit codes as designed."""

import itertools
import json
import os
import re
import subprocess
import sys

import pytest

from edgekit import sample


def edgekit(*arguments, code=0, **env):
    done = subprocess.run(
        [sys.executable, "-m", "edgekit", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | env,
        check=False,
    )
    assert done.returncode == code, f"exit {done.returncode}, wanted {code}\n{done.stdout}\n{done.stderr}"
    return done


def data(*arguments, **env):
    return json.loads(edgekit(*arguments, "--json", **env).stdout)


@pytest.fixture(scope="module")
def q4(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "sample-Q4_K_M.gguf"
    edgekit("quantize", sample.path(), "Q4_K_M", "--to", path)
    return path


def test_help_and_version():
    shown = edgekit("--help").stdout
    assert "\n  Exit codes: 0 done, 2 usage, 3 bad input," in shown
    assert re.search(r"\n  quantize +Quantize a model\.\n", shown)
    assert re.search(r"\n  new-plugin +Write the skeleton of a plugin\.\n", shown)
    assert "edgekit, version" in edgekit("--version").stdout


def test_inspect(q4):
    report = data("inspect", q4)
    assert (report["format"], report["family"]) == ("gguf", "llama")
    assert {t["precision"] for t in report["tensors"]} >= {"ggml:Q4_K", "ggml:Q6_K", "float32"}
    assert report["recipe"] == "Q4_K_M"
    assert "ggml:Q4_K" in edgekit("inspect", q4, "--tensors", "--metadata").stdout


def test_quantize_keeps_stdout_for_data(tmp_path):
    done = edgekit("quantize", sample.path(), "Q8_0", "--to", tmp_path / "s.gguf", "--json")
    assert json.loads(done.stdout)["format"] == "gguf"
    assert "Q8_0" in done.stderr


def test_rules_stand_on_top_of_a_recipe_and_the_line_says_what_came_of_it(tmp_path):
    target = tmp_path / "out.gguf"
    rules = ("--tensor", "*attn_v*=q8_0", "--tensor", "token_embd.weight=F16")
    done = edgekit("quantize", sample.path(), "q4_k_m", "--to", target, *rules, "--json")
    notes, line = json.loads(done.stdout)["notes"], done.stderr.splitlines()[-1]
    assert line == f"q4_k_m: {notes['precisions']}"
    assert "3 ggml:Q8_0, 1 float:F16, 1 ggml:Q6_K; " in line
    (tmp_path / "mine.toml").write_text('base = "Q4_K_M"\n[tensors]\n"*attn_v*" = "q8_0"\n')
    again = edgekit("quantize", sample.path(), tmp_path / "mine.toml", "--to", target)
    assert again.stderr.splitlines()[-1].endswith("; what was at the target before is replaced")
    assert "write PATTERN=PRECISION" in edgekit("quantize", target, "Q8_0", "--to", "x", "--tensor", "a", code=2).stderr
    assert (
        "near it are blk.0.attn_v"
        in edgekit("quantize", target, "Q8_0", "--to", tmp_path / "x.gguf", "--tensor", "*atn_v*=F16", code=2).stderr
    )


def test_recipes_are_listed_with_their_rules():
    listed = {recipe["name"]: recipe for recipe in data("recipes", "--format", "gguf")}
    assert {"tensors": "attn_output", "precision": "Q4_K", "when": ""} in listed["Q3_K_M"]["clauses"]
    assert listed["Q3_K_M"]["formats"] == ["gguf"]
    assert "ffn_down" in edgekit("recipes").stdout
    assert "no format 'nothing' is installed" in edgekit("recipes", "--format", "nothing", code=4).stderr


def test_messages_write_options_as_the_command_line_does(tmp_path):
    done = edgekit("quantize", sample.path(), "Q4_K_M", "--to", tmp_path / "name", code=3)
    assert "Q4_K_M is a recipe for gguf" in done.stderr
    assert "has no suffix, which means a directory" in done.stderr
    assert done.stderr.rstrip().endswith("or say --format gguf")


def test_convert_there_and_back(q4, tmp_path):
    edgekit("convert", q4, "--to", tmp_path / "again.gguf")
    edgekit("convert", tmp_path / "again.gguf", "--to", tmp_path / "hf", "--dtype", "F32")
    report = data("compare", q4, tmp_path / "hf")
    assert report["relative_rms"] == 0


def test_compare_and_eval(q4, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(sample.heldout_text()[:4000])
    compared = data("compare", sample.path(), q4, "--text", text)
    assert 0 < compared["relative_rms"] < 0.2
    assert compared["evaluation"]["kl_divergence"] > 0
    evaluated = data("eval", q4, text, "--baseline", sample.path())
    assert evaluated["perplexity"] == pytest.approx(compared["evaluation"]["perplexity"])
    assert "perplexity" in edgekit("eval", q4, text).stdout


def test_precisions():
    entries = data("precisions")
    assert len(entries) >= 60
    assert {e["tier"] for e in entries} == {"ultra-low", "low", "medium", "full"}
    assert all(e["proof"] and e["bound"] for e in entries)
    assert "ggml:Q4_K" in edgekit("precisions", "--tier", "low").stdout


def test_plugins_and_doctor():
    plugins = {p["name"]: p for p in data("plugins")}
    assert plugins["gguf"]["status"] == "loaded"
    assert data("doctor")["problems"] == []
    assert "All is well." in edgekit("doctor").stdout
    assert {p["name"]: p["status"] for p in data("plugins", EDGEKIT_NO_PLUGINS="1")}["gguf"] == "disabled"


def test_exit_codes(q4, tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(q4.read_bytes()[:1000])
    assert "Usage:" in edgekit("quantize", code=2).stderr
    assert "neither a recipe" in edgekit("quantize", q4, "Q4_KM", "--to", tmp_path / "x.gguf", code=3).stderr
    assert "no such file" in edgekit("inspect", tmp_path / "nothing", code=3).stderr
    assert "broken.gguf" in edgekit("inspect", broken, code=3).stderr
    assert "edgekit-gguf" in edgekit("inspect", q4, code=4, EDGEKIT_NO_PLUGINS="1").stderr
    unwritable = tmp_path / "no" / "such" / "directory" / "x.gguf"
    assert "directory" in edgekit("quantize", q4, "Q8_0", "--to", unwritable, code=5).stderr
    assert "cannot write" in edgekit("demo", "--out", broken, code=5).stderr
    assert "target is the source" in edgekit("convert", q4, "--to", q4, code=2).stderr


def test_the_demo_draws_and_its_perplexity_rises_as_bits_fall(tmp_path):
    report = data("demo", "--out", tmp_path)
    steps = {step["recipe"]: step for step in report["steps"]}
    assert steps["Q8_0"]["perplexity"] == pytest.approx(steps["F16"]["perplexity"], rel=0.01)
    affine = [steps[f"affine:int{bits}-asym-g32"] for bits in range(8, 0, -1)]
    for more, fewer in itertools.pairwise(affine):
        assert fewer["size"] < more["size"]
        assert fewer["kl"] > more["kl"]
        assert fewer["error"] > more["error"]
    # Between 8 and 6 bits perplexity itself is within noise of the source's; below that it has to rise.
    for step in affine[:3]:
        assert abs(step["perplexity"] - report["baseline_perplexity"]) < 3 * step["perplexity_error"] < 0.003
    for more, fewer in itertools.pairwise(affine[3:]):
        assert fewer["perplexity"] > more["perplexity"]
    assert steps["Q2_K"]["kl"] > steps["Q3_K_M"]["kl"] > steps["Q4_K_M"]["kl"] > steps["Q8_0"]["kl"] > 0
    page = (tmp_path / "index.html").read_text("utf-8")
    # Two pictures, for wide and narrow screens, each with a legend of the two kinds of steps.
    assert page.count("<circle") == 2 * (len(steps) + 2)
    assert "http" not in page.replace("http://www.w3.org/2000/svg", ""), "the page needs nothing from elsewhere"
