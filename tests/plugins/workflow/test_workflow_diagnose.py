"""`edgekit diagnose`: each trouble is provoked, found by its check with the cure, and not found without it."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import uvicorn
from click.testing import CliRunner
from safetensors.numpy import save_file

import edgekit
from edgekit import sample
from edgekit.cli import cli
from edgekit.errors import UsageError
from edgekit.runtime import NumpyRuntime
from edgekit_serve.app import create_app
from edgekit_workflow.diagnosing import CHECKS, diagnose
from edgekit_workflow.diagnosing.machine import full, usable_processors
from edgekit_workflow.diagnosing.model import cached_share, cold
from edgekit_workflow.diagnosing.server import LEAST

sys.path.insert(0, str(Path(__file__).parents[2] / "contracts"))  # tests are no packages; helpers beside others
sys.path.insert(0, str(Path(__file__).parents[1] / "serve"))
from plugin_faults import GOOD, put
from serving import send, servers

TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}</s>{% endfor %}"


def troubles(*arguments, **options):
    return {f.check: f.trouble for f in diagnose(*arguments, **options) if f.trouble is not None}


def changed(folder, **settings):
    """A copy of the sample model with other settings of its tokenizer."""
    shutil.copytree(sample.path(), folder)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    return folder


@pytest.fixture(scope="module")
def well(tmp_path_factory):
    """The sample model with a template: nothing is wrong with it but that only numpy runs it."""
    return changed(tmp_path_factory.mktemp("well") / "model", chat_template=TEMPLATE)


def test_a_model_that_is_well(well):
    found = diagnose(well, source=well, runtime="numpy", context=512, threads=1)
    assert {f.check: f.trouble for f in found if f.trouble is not None} == {}
    assert [f.check for f in found] == [name for name in CHECKS if name != "missing_plugin"]
    done = CliRunner().invoke(cli, ["diagnose", str(well), "--runtime", "numpy"])
    assert done.exit_code == 0, done.output
    assert "✓ template\n" in done.stdout


def test_the_command_exits_with_7_and_has_json(well):
    done = CliRunner().invoke(cli, ["diagnose", str(well), "--runtime", "numpy", "--context", "999999"])
    assert done.exit_code == 7
    assert "✗ context: a context of 999,999 tokens; the model was trained for 512" in done.stdout
    told = CliRunner().invoke(cli, ["diagnose", str(well), "--runtime", "numpy", "--context", "999999", "--json"])
    (context,) = [each for each in json.loads(told.stdout) if each["check"] == "context"]
    assert context["trouble"]["cure"].startswith("serve with at most 512 tokens")


def test_no_file_and_a_damaged_one(tmp_path, well):
    assert "no such file" in troubles(tmp_path / "none")["file"].what.lower()
    shutil.copytree(well, tmp_path / "half")
    weights = tmp_path / "half/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert troubles(tmp_path / "half")["file"].cure == "fetch or convert it again"


def test_a_manifest_of_another_file(tmp_path, well):
    edgekit.quantize(well, "Q8_0", to=tmp_path / "a.gguf")
    edgekit.quantize(well, "Q4_0", to=tmp_path / "b.gguf")
    shutil.copy(tmp_path / "b.gguf", tmp_path / "a.gguf")
    assert "describes another file than a.gguf" in troubles(tmp_path / "a.gguf", runtime="numpy")["manifest"].what


def test_no_tokenizer(tmp_path, well):
    shutil.copytree(well, tmp_path / "m")
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / "m" / name).unlink(missing_ok=True)
    assert "it has no tokenizer" in troubles(tmp_path / "m", runtime="numpy")["tokenizer"].what


def test_no_template(tmp_path):
    found = troubles(sample.path(), runtime="numpy")
    assert (found["template"].certain, list(found)) == (False, ["template"])


@pytest.mark.parametrize("template", ["{{ messages[0].nothing.more }}", "{% for %}", "{{ 'x' * 10**9 }}"])
def test_a_template_that_fails(tmp_path, template):
    model = changed(tmp_path / "m", chat_template=template)
    assert "its chat template fails: " in troubles(model, runtime="numpy")["template"].what


CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def test_a_template_of_another_model(tmp_path, well):
    model = changed(tmp_path / "m", chat_template=CHATML)
    told = troubles(model, runtime="numpy")["template_of_another_model"].what
    assert told == "its chat template writes <|im_end|>, <|im_start|>, which the vocabulary does not have as a token"
    other = changed(tmp_path / "n", chat_template=TEMPLATE.replace("[", "("))
    assert "is not the source's" in troubles(other, source=well, runtime="numpy")["template_of_another_model"].what


def without_ends(folder, well):
    """A copy whose files name no end token, and whose vocabulary has none of the usual ones."""
    shutil.copytree(well, folder)
    for file in folder.glob("*.json"):
        text = file.read_text()
        if "</s>" in text or "eos_token" in text:
            parsed = json.loads(text.replace("</s>", "<ende>"))
            for key in ("eos_token_id", "eos_token"):
                parsed.pop(key, None)
            file.write_text(json.dumps(parsed))
    return folder


def test_no_end_token(tmp_path, well):
    model = without_ends(tmp_path / "m", well)
    assert troubles(model, runtime="numpy")["end_token"].what == "it has no end token: every text goes on to its limit"


def test_an_end_token_that_was_lost(tmp_path, well):
    source = changed(tmp_path / "source", chat_template=TEMPLATE)
    config = source / "generation_config.json"
    config.write_text(json.dumps({"eos_token_id": [2, 5]}))
    assert "the source ends texts at " in troubles(well, source=source, runtime="numpy")["end_token"].what


def test_a_turn_that_ends_no_text(tmp_path):
    model = changed(tmp_path / "m", chat_template=TEMPLATE.replace("</s>", "<s>"))
    trouble = troubles(model, runtime="numpy")["end_of_turn"]
    assert "ends the assistant's turn with <s>, which ends no text" in trouble.what
    assert "stop_token_ids [0]" in trouble.cure


def damaged(folder, well, change):
    """A copy in float32 with changed values."""
    shutil.copytree(well, folder)
    (file,) = folder.glob("*.safetensors")
    tensors = {
        name: tensor.float32().reshape(tensor.shape).copy() for name, tensor in edgekit.open(well).tensors.items()
    }
    change(tensors)
    save_file(tensors, file)
    return folder


def test_text_that_repeats_itself(tmp_path, well):
    """Attention that sees nothing and logits that are much too sharp: one token follows from the last, in a circle."""

    def change(tensors):
        for name, values in tensors.items():
            if name.endswith("o_proj.weight"):
                values[:] = 0
        tensors["model.norm.weight"][:] *= 100

    assert "repeats: " in troubles(damaged(tmp_path / "m", well, change), runtime="numpy")["writing"].what


def test_values_that_are_no_numbers(tmp_path, well):
    def change(tensors):
        tensors["model.norm.weight"][:] = 3e38

    told = troubles(damaged(tmp_path / "m", well, change), runtime="numpy")["writing"].what
    assert told == "the runtime numpy computes values that are no numbers"


def test_a_context_that_is_too_long(well):
    assert "the model was trained for 512" in troubles(well, runtime="numpy", context=513)["context"].what


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the limit is known on Linux only")
def test_too_little_memory(well):
    """In a process that may have 24 MB more than it has."""
    code = (
        "import os, resource, sys\n"
        "from edgekit_workflow.diagnosing.case import Case\n"
        "from edgekit_workflow.diagnosing import model\n"
        "import edgekit\n"
        "case = Case(edgekit.open(sys.argv[1]), runtime='numpy')\n"
        "assert model.memory(case) is None\n"
        "pages = int(open('/proc/self/statm').read().split()[0])\n"
        "limit = pages * os.sysconf('SC_PAGE_SIZE') + (24 << 20)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "print(model.memory(case).what)\n"
    )
    told = subprocess.run([sys.executable, "-c", code, well], capture_output=True, text=True, check=True).stdout
    assert "bytes of memory with a context of 512 tokens, " in told


@pytest.mark.parametrize(
    "names",
    [("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")],
    ids=["version 2", "version 1"],
)
def test_too_little_memory_in_a_control_group(names, well, tmp_path):
    """The files of a control group, as the kernel writes them, in a directory of the test's own."""
    limit, used = (tmp_path / name for name in names)
    limit.parent.mkdir(exist_ok=True)
    limit.write_text("1073741824\n")
    used.write_text("104857600\n")
    assert "memory" not in troubles(well, runtime="numpy", group=tmp_path)
    used.write_text("1053741824\n")
    told = troubles(well, runtime="numpy", group=tmp_path)["memory"].what
    assert told.endswith(" tokens, 20,000,000 are free")
    limit.write_text("max\n")
    assert "memory" not in troubles(well, runtime="numpy", group=tmp_path)


def test_more_threads_than_a_control_group_lets_compute(tmp_path):
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    told = troubles(threads=2, group=tmp_path)["threads"].what
    assert "the option threads" in told
    assert "this process may use 1 processors" in told


def test_more_threads_than_processors(monkeypatch):
    usable = usable_processors()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, str(usable))
    assert "threads" not in troubles()
    monkeypatch.setenv("OMP_NUM_THREADS", str(usable + 1))
    trouble = troubles()["threads"]
    assert trouble.what.startswith(f"OMP_NUM_THREADS={usable + 1}, and this process may use {usable} processors")
    assert trouble.cure.startswith(f"set it to {usable}")
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert "the option threads" in troubles(threads=usable + 1)["threads"].what


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity") or os.cpu_count() == 1, reason="needs two processors")
def test_fewer_processors_than_threads(monkeypatch):
    before = os.sched_getaffinity(0)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    os.sched_setaffinity(0, {min(before)})
    try:
        assert "this process may use 1 processors" in troubles()["threads"].what
    finally:
        os.sched_setaffinity(0, before)


def test_a_port_that_is_taken():
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        door.listen(1)
        number = door.getsockname()[1]
        assert f"127.0.0.1:{number} cannot be listened on" in troubles(port=number)["port"].what
    assert "port" not in troubles(port=number)
    assert "cannot be listened on" in troubles(host="203.0.113.7", port=8000)["port"].what


def test_a_full_disk(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    assert full(tmp_path, free // 2) is None
    assert "bytes are free on its disk" in full(tmp_path, 2 * free + (1 << 30)).what


def test_a_plugin_for_another_version(tmp_path):
    put(tmp_path, "newer", light=GOOD.replace("(1, 0)", "(1, 9)"))
    done = run(tmp_path, "diagnose", "--json", PYTHONPATH=str(tmp_path))
    (trouble,) = [each["trouble"] for each in json.loads(done.stdout) if each["check"] == "plugins"]
    assert "edgekit-newer 1.0: it is written for plugin contract 1.9" in trouble["what"]
    assert done.returncode == 7


def run(folder, *arguments, **environment):
    line = [sys.executable, "-m", "edgekit", *map(str, arguments)]
    return subprocess.run(
        line, capture_output=True, text=True, check=False, cwd=folder, env={**os.environ, **environment}
    )


def test_a_plugin_that_is_missing(tmp_path, well):
    edgekit.quantize(well, "Q8_0", to=tmp_path / "a.gguf")
    done = run(tmp_path, "diagnose", "a.gguf", "--json", EDGEKIT_NO_PLUGINS="gguf")
    found = {each["check"]: each["trouble"] for each in json.loads(done.stdout)}
    assert "edgekit-gguf" in found["missing_plugin"]["what"]
    slow = run(tmp_path, "diagnose", "a.gguf", "--json", EDGEKIT_NO_PLUGINS="llamacpp,openvino,mlx,olive,numba")
    found = {each["check"]: each["trouble"] for each in json.loads(slow.stdout)}
    assert found["slow_runtime"]["cure"] == "pip install edgekit-gguf edgekit-llamacpp"
    assert slow.returncode == 0, slow.stdout


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mincore and fadvise are Linux's")
def test_a_cold_file(tmp_path):
    file = tmp_path / "model.gguf"
    with file.open("wb") as stream:
        stream.write(os.urandom(8 << 20))
        stream.flush()
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if cached_share(file) == 1.0:
        pytest.skip("this file system keeps its files in memory")
    assert "of model.gguf is in the system's cache" in cold(file).what
    file.read_bytes()
    assert cold(file) is None


def test_what_is_no_url():
    with pytest.raises(UsageError, match=r"url 'localhost'; write a server's address"):
        diagnose(url="localhost")


#: A text that no end token ends.
ENDLESS = {"prompt": "Once", "temperature": 0, "logit_bias": {"1": -100, "2": -100}}
KEY = "k-0123456789abcdef"


def test_a_server_with_a_key(well, tmp_path):
    with servers(tmp_path) as start:
        server = start("serve", well, "--runtime", "numpy", "--port", 0, environment={"EDGEKIT_API_KEY": KEY})
        url = f"http://127.0.0.1:{server.port}"
        assert "no API key" in troubles(url=url)["admitted"].what
        assert troubles(url=url)["admitted"].cure == "set EDGEKIT_API_KEY to a key of the server"
        assert "does not answer to that Host" in troubles(url=f"http://127.1:{server.port}", key=KEY)["admitted"].what
        found = [f for f in diagnose(url=f"{url}/metrics", key=KEY) if f.check not in CHECKS]
        assert [f.check for f in found] == [
            *("reachable", "healthy", "admitted", "chats", "queue", "failing", "cut_off")
        ]
        assert [f.trouble for f in found] == [None] * 7
        server.stop()
        assert f"{url} does not answer" in troubles(url=url)["reachable"].what


def test_a_server_that_turns_requests_away_and_cuts_texts_off(tmp_path):
    with servers(tmp_path) as start:
        server = start("serve", sample.path(), "--runtime", "numpy", "--port", 0, "--queue", 0)
        url = f"http://127.0.0.1:{server.port}"
        for _ in range(LEAST):
            assert server.post("/v1/completions", {**ENDLESS, "max_tokens": 1})[0] == 200
        busy = server.connection()
        send(busy, "/v1/completions", {**ENDLESS, "max_tokens": 450, "stream": True})
        busy.getresponse().readline()
        assert server.post("/v1/completions", {**ENDLESS, "max_tokens": 1})[0] == 429
        busy.close()
        found = troubles(url=url)
        assert found["queue"].what == "1 requests were turned away because the queue was full"
        assert re.match(r"(\d+) of \1 texts ended at a limit", found["cut_off"].what)
        assert found["chats"].what.endswith(" cannot chat: no chat template")
        assert not found["chats"].certain


def test_a_server_whose_requests_fail(tmp_path):
    with servers(tmp_path) as start:
        server = start("serve", sample.path(), "--runtime", "numpy", "--port", 0, "--timeout", 0.01)
        for _ in range(LEAST):
            server.post("/v1/completions", {"prompt": "Once upon a time " * 50, "max_tokens": 50})
        trouble = troubles(url=f"http://127.0.0.1:{server.port}")["failing"]
        assert "requests failed (codes: timeout)" in trouble.what


class Broken(NumpyRuntime):
    """Computes until it is asked for a text."""

    def stream(self, prompt, **options):
        self.logits = self.fail
        return self.fail()

    def fail(self, *_):
        raise RuntimeError("the device is lost")


def test_a_server_whose_model_no_longer_computes():
    with socket.create_server(("127.0.0.1", 0)) as door:
        app = create_app(Broken.open(edgekit.open(sample.path())))
        server = uvicorn.Server(uvicorn.Config(app, log_config=None))
        thread = threading.Thread(target=server.run, args=([door],))
        thread.start()
        url = f"http://127.0.0.1:{door.getsockname()[1]}"
        try:
            assert "healthy" not in troubles(url=url)
            body = json.dumps({"prompt": "a"}).encode()
            asked = urllib.request.Request(f"{url}/v1/completions", body, {"content-type": "application/json"})
            with pytest.raises(urllib.error.HTTPError, match="500"):
                urllib.request.urlopen(asked)
            assert "answers 503: the model no longer computes" in troubles(url=url)["healthy"].what
        finally:
            server.should_exit = True
            thread.join()
