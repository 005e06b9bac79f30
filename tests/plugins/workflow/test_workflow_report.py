"""`edgekit report`: the page, the Markdown, the JSON and the model card of a run."""

import copy
import html
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import edgekit
from edgekit import sample
from edgekit.errors import InvalidFileError, MissingFileError, UsageError
from edgekit_workflow.gates.security import origin, stated
from edgekit_workflow.optimize import Settings, optimize
from edgekit_workflow.report import FILES, charts, report
from edgekit_workflow.report.data import TENSORS, Run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with two categories of text, speed and gates."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "stories.txt").write_text(sample.heldout_text()[:9000], "utf-8")
    asked = Settings(
        sample.path(),
        folder / "run",
        budget=1_200_000,
        texts={"stories": folder / "stories.txt", "<b>more</b>": folder / "stories.txt"},
        formats=("gguf",),
        recipes=("Q4_K_M", "Q2_K"),
        methods=("nearest",),
        runtimes=("numpy",),
        context=64,
        tokens=256,
    )
    optimize(asked)
    return asked.to


@pytest.fixture
def files(run, tmp_path):
    written = report(run, tmp_path / "out")
    return {name: path.read_text("utf-8") for name, path in written.items()}


def changed(run: Path, to: Path, change) -> Path:
    """A copy of a run's records with another result."""
    to.mkdir()
    result = json.loads((run / "result.json").read_text())
    change(result)
    (to / "result.json").write_text(json.dumps(result))
    shutil.copy(run / "run.json", to)
    return to


class Tags(HTMLParser):
    """Ids, links and the stack of open elements of a page."""

    VOID = ("meta", "br", "path", "use", "rect", "circle", "stop")

    def __init__(self, page):
        super().__init__()
        self.ids, self.links, self.open = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        self.ids += [named["id"]] if "id" in named else []
        self.links += [value for key, value in attributes if key in ("src", "href", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_same_records_give_the_same_bytes(run, tmp_path, files):
    again = report(run, tmp_path / "again")
    assert {name: path.read_text("utf-8") for name, path in again.items()} == files
    other = subprocess.run(
        [sys.executable, "-m", "edgekit", "report", str(run), "--to", str(tmp_path / "other"), "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    paths = json.loads(other.stdout)
    assert {name: Path(path).read_text("utf-8") for name, path in paths.items()} == files


def test_the_page_has_everything(files):
    page = files["page"]
    for heading in (
        *(
            "Recommendation",
            "Size against quality",
            "Artifacts",
            "Divergence and bytes of each tensor",
            "Precision map",
        ),
        *("Divergence by category", "Worst tokens", "Latency", "Gates", "Fallbacks and what was left out"),
        "Make it again",
    ):
        assert f"<h2>{heading}</h2>" in page
    for words in ("Pareto front", "noise floor", "edgekit optimize model --to run --budget 1200000", "gguf-Q4_K_M"):
        assert words in page
    assert page.count("<svg") == 10, "each of five charts for two widths"
    assert "<b>more</b>" not in page, "names are escaped"


def test_the_page_needs_nothing_else_and_is_well_formed(files):
    tags = Tags(files["page"])
    assert not tags.open
    assert len(set(tags.ids)) == len(tags.ids)
    links = [link for link in tags.links if not link.startswith("data:image/png;base64,")]  # a colour bar
    targets = {link.removeprefix("#") for link in links}
    assert all(link.startswith("#") for link in links), "links into the page alone"
    assert targets <= set(tags.ids)
    assert set(re.findall(r"url\(#([^)]*)\)", files["page"])) <= set(tags.ids)
    outside = set(re.findall(r"https?://[^\s\"'<)]*", files["page"]))
    assert outside <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert not re.search(r"<script|@import|@font-face", files["page"])


def test_a_large_model_and_many_artifacts_stay_below_two_megabytes(run, tmp_path):
    def grow(result):
        made = result["quantize"][0]
        names = [f"blk.{n}.{role}.weight" for n in range(80) for role in ("attn_q", "attn_k", "ffn_up", "ffn_down")]
        made["precisions"] = {n: {"precision": "ggml:Q4_K", "nbytes": 9_000_000, "size": 16_000_000} for n in names}
        made["sensitivities"] = [
            {"tensor": name, "precision": f"ggml:Q{bits}_K", "nbytes": 1_000_000 * bits, "kl": 1e-6 * (at + bits)}
            for at, name in enumerate(names)
            for bits in range(2, 9)
        ]
        made["fallbacks"] = dict.fromkeys(names, "rows of 172 are no multiple of Q4_K's block")
        for number in range(40):
            more = copy.deepcopy(result["quantize"][1]) | {"name": f"copy-{number}", "nbytes": 10_000 * number + 1}
            result["quantize"].append(more)
        result["front"] = [record["name"] for record in result["quantize"]]

    large = changed(run, tmp_path / "large", grow)
    page = report(large)["page"]
    assert page.stat().st_size < 2_000_000
    _, cells = Run(large).tensor_costs()
    kept = {tensor for tensor, _ in cells}
    assert len(kept) == TENSORS
    assert "79.ffn_down" in kept, "the tensors of most divergence"
    assert "more, in the records" in page.read_text("utf-8")


def test_a_run_in_which_nothing_met_the_requirements(run, tmp_path):
    def refuse(result):
        result |= {"chosen": None, "reasons": [], "refused": {"gguf-Q2_K": "KL divergence 0.1, above 0.01"}}

    written = report(changed(run, tmp_path / "refused", refuse))
    assert "No artifact meets every requirement." in written["page"].read_text("utf-8")
    assert "gguf-Q2_K: KL divergence 0.1, above 0.01" in written["markdown"].read_text("utf-8")


def test_the_json_says_what_the_records_say(run, files):
    told = json.loads(files["json"])
    result = json.loads((run / "result.json").read_text())
    assert told["chosen"] == result["chosen"]
    assert {a["name"]: a["quality"]["kl"] for a in told["artifacts"]} == {
        r["name"]: r["quality"]["kl"] for r in result["quantize"]
    }
    assert [a["number"] for a in told["artifacts"]] == list(range(1, len(told["artifacts"]) + 1))
    for name, digest in told["hashes"].items():
        assert len(digest) == 64, name


def test_the_model_card_is_one_that_the_hub_reads(files, run):
    head, body = re.fullmatch(r"---\n(.*?)\n---\n(.*)", files["card"], re.DOTALL).groups()
    assert "library_name: gguf" in head
    assert 'base_model: "model"' in head
    assert "license" not in head, "the source states none"
    chosen = json.loads((run / "result.json").read_text())["chosen"]
    assert f"{chosen}.gguf" in body
    yaml = pytest.importorskip("yaml", reason="needs PyYAML")
    card = yaml.safe_load(head)
    assert card["tags"] == ["edgekit", "quantized", "gguf"]
    metrics = {metric["type"]: metric["value"] for metric in card["model-index"][0]["results"][0]["metrics"]}
    assert set(metrics) == {"perplexity", "kl_divergence", "accuracy"}


def test_the_tables_of_the_markdown_have_as_many_cells_in_every_row(files):
    for table in re.findall(r"(?:^\|.*\n)+", files["markdown"], re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


@pytest.mark.parametrize("width", [420, 1200])
def test_nothing_is_wider_than_the_window(tmp_path, files, width):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs chromium")
    asked = "<script>parent.document.title = [document.documentElement.scrollWidth, innerWidth].join(' of ')</script>"
    frame = html.escape(files["page"].replace("</body>", asked + "</body>"))  # a window is at least 500 px wide
    outer = f'<title></title><iframe width="{width}" style="border:0" srcdoc="{frame}"></iframe>'
    (tmp_path / "index.html").write_text(outer, "utf-8")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    command += ["--dump-dom", (tmp_path / "index.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    taken, given = re.search(r"<title>(\d+) of (\d+)</title>", done.stdout).groups()
    assert int(given) == width
    assert int(taken) <= width


def test_what_is_no_run_is_refused(tmp_path, run):
    with pytest.raises(MissingFileError, match=r"run\.json: cannot be read .* give the directory of a run of edgekit"):
        report(tmp_path)
    with pytest.raises(InvalidFileError, match=r"not the result of edgekit optimize"):
        report(changed(run, tmp_path / "damaged", lambda result: result.pop("baseline")))


def test_files_that_no_report_wrote_are_kept(run, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("mine")
    with pytest.raises(UsageError, match=r"it holds files that no report wrote; choose another directory with --to"):
        report(run, tmp_path / "site")
    assert (tmp_path / "site" / "index.html").read_text() == "mine"
    assert set(FILES.values()) == {"report.json", "report.md", "README.md", "index.html"}


def test_the_card_has_the_licence_and_the_name_that_the_source_states(run, tmp_path):
    shutil.copytree(sample.path(), tmp_path / "source")
    config = tmp_path / "source/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "_name_or_path": "someone/tales-2m"}))
    (tmp_path / "source/README.md").write_text("---\nlicense: apache-2.0\n---\n")
    source = edgekit.open(tmp_path / "source")
    assert (origin(source), stated(source)["licence"]) == ("someone/tales-2m", "apache-2.0")
    shutil.copytree(run, tmp_path / "run")
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert (result["baseline"]["origin"], result["baseline"]["license"]) == (origin(edgekit.open(sample.path())), None)
    result["baseline"] |= {"origin": origin(source), "license": stated(source)["licence"]}
    (tmp_path / "run/result.json").write_text(json.dumps(result))
    card = report(tmp_path / "run")["card"].read_text()
    assert 'base_model: "someone/tales-2m"\n' in card
    assert 'license: "apache-2.0"\n' in card


@pytest.mark.parametrize(
    "matter", ["base_model: {}", 'base_model: "{}"  # of which', "base_model: [{}]", "base_model:\n- {}"]
)
def test_the_card_has_the_base_model_that_only_the_readme_states(matter, run, tmp_path):
    shutil.copytree(sample.path(), tmp_path / "source")
    named = matter.format("someone/tales-1m")
    (tmp_path / "source/README.md").write_text(f"---\ntags:\n- tales\n{named}\nlicense: mit\n---\n# Tales\n")
    source = edgekit.open(tmp_path / "source")
    assert stated(source) == {"licence": "mit", "base_model": "someone/tales-1m"}
    shutil.copytree(run, tmp_path / "run")
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["baseline"]["base_model"] is None
    result["baseline"]["base_model"] = stated(source)["base_model"]
    (tmp_path / "run/result.json").write_text(json.dumps(result))
    assert 'base_model: "someone/tales-1m"\n' in report(tmp_path / "run")["card"].read_text()


@pytest.mark.parametrize("name", ["../models/x", "/srv/models/x", "", "x", "a/b/c"])
def test_a_path_is_no_name_on_the_hub(name, tmp_path):
    shutil.copytree(sample.path(), tmp_path / "source")
    config = tmp_path / "source/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "_name_or_path": name}))
    assert origin(edgekit.open(tmp_path / "source")) is None


def test_latencies_are_drawn_as_a_distribution(run):
    recorded = [record["latencies"] for record in json.loads((run / "result.json").read_text())["accelerate"]]
    assert recorded
    assert all(len(each) == 3 * 31 for each in recorded), "three repeats of 32 tokens"
    percentiles, every = (0.01, 0.02, 0.03), [0.01, 0.011, 0.012, 0.02, 0.01, 0.013, 0.011, 0.03, 0.01]
    plain, whole = (charts.latencies({"a": (percentiles, s)}, "latency", charts.WIDE) for s in ([], every))
    assert whole.count("<path") > plain.count("<path")
    assert whole == charts.latencies({"a": (percentiles, every)}, "latency", charts.WIDE)
    assert charts.latencies({"a": (percentiles, [0.01] * 9)}, "latency", charts.WIDE) == plain
