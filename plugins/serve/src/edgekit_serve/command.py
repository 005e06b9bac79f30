"""``edgekit serve``: open an artifact, load it, and serve it until a signal."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import logging
import os
import re
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from edgekit.artifact import Artifact
from edgekit.cli.options import runtime_options
from edgekit.errors import EdgekitError, MissingFileError, ResourceError, UsageError
from edgekit.pipeline import open_artifact
from edgekit.runtime import DescribedRuntime, Runtime, choose_runtime, load
from edgekit.runtime.arguments import parse_option
from edgekit_serve.models import Model
from edgekit_serve.settings import Settings
from edgekit_serve.traces import Trace, trace_to_collector

#: Environment variable with API keys, separated by spaces or line breaks.
KEYS = "EDGEKIT_API_KEY"
#: Largest number of connections; for one more, the one that has been idle longest is closed.
CONNECTIONS = 512
#: Largest number of connections that wait to be accepted.
BACKLOG = 2048


@click.command("serve")
@click.argument("artifacts", nargs=-1, required=True, metavar="ARTIFACT...")
@runtime_options
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option("--name", "titles", multiple=True, help="Name for clients, one for each artifact; default: the file's.")
@click.option("--lora", "adapters", multiple=True, metavar="NAME=FILE", help="Adapter for requests that name it.")
@click.option("--memory", metavar="GB", type=click.FloatRange(0, min_open=True), help="Most GB of models in use.")
@click.option("--api-key-file", type=click.Path(), help=f"API keys, one a line; or in the environment: {KEYS}.")
@click.option("--insecure-no-auth", is_flag=True, help="Serve other machines without a key.")
@click.option("--allow-host", "hosts", multiple=True, metavar="NAME", help="Host name by which clients may call.")
@click.option("--cors", "origins", multiple=True, metavar="ORIGIN", help="Web pages of it may call from a browser.")
@click.option("--parallel", default=1, show_default=True, help="Texts generated at the same time.")
@click.option("--queue", "waiting", default=16, show_default=True, help="Requests that may wait; more get 429.")
@click.option("--max-tokens", type=int, help="The most that a request may ask for.")
@click.option("--lenient", is_flag=True, help="Ignore parameters that are not supported, instead of refusing them.")
@click.option("--traces", is_flag=True, help="Send OpenTelemetry traces to OTEL_EXPORTER_OTLP_ENDPOINT.")
@click.option("--confidence", is_flag=True, help="Record each text's mean probability, for the metrics and the log.")
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Of stderr.")
@click.option("--timeout", "seconds", default=300.0, show_default=True, help="Seconds for a request, waiting included.")
@click.option("--drain", default=30, show_default=True, help="Seconds for running requests after SIGTERM.")
def command(
    artifacts: tuple[str, ...],
    runtime: str | None,
    options: tuple[str, ...],
    host: str,
    port: int,
    titles: tuple[str, ...],
    adapters: tuple[str, ...],
    memory: float | None,
    api_key_file: str | None,
    insecure_no_auth: bool,
    hosts: tuple[str, ...],
    origins: tuple[str, ...],
    drain: int,
    log_format: str,
    traces: bool,
    **limits: Any,
) -> None:
    """Serve a model, or several, to OpenAI's clients: completions, chat, embeddings.

    The first of several is loaded at the start, each other one at its first request.
    Ends on SIGTERM or Ctrl-C, after the requests that run. Any address but this machine's own needs an API key.
    """
    keys = read_keys(api_key_file)
    refuse_open_doors(host, keys, insecure_no_auth)
    opened = [open_artifact(artifact) for artifact in artifacts]
    if len(titles) not in (0, len(opened)):
        raise UsageError(f"{len(titles)} names for {len(opened)} models; give --name once for each, or not at all")
    called = titles or [default_name(each.path) for each in opened]
    limits["memory"] = None if memory is None else int(memory * 1e9)
    names, pages = (frozenset(text.lower() for text in texts) for texts in (hosts, origins))
    settings = Settings(called[0], keys, names, pages, **limits)
    with listening(host, port) as door, _traced(traces) as trace:
        given = dict(map(parse_option, options)) | lora_options(adapters, opened, runtime)
        models = [
            Model(name, artifact.nbytes, partial(start_model, artifact, runtime, given, settings.parallel))
            for name, artifact in zip(called, opened, strict=True)
        ]
        model = models[0].load()
        where = f"[{host}]" if ":" in host else host
        title = f"{', '.join(called)} on http://{where}:{door.getsockname()[1]}"
        serve(model, settings, door, drain, title, log_format, models if len(models) > 1 else (), trace)


def lora_options(given: Sequence[str], opened: Sequence[Artifact], runtime: str | None) -> dict[str, Any]:
    """Return the runtime's option for adapters by name.

    Raises:
        UsageError: not NAME=FILE, a name given twice, several models, or a runtime without adapters by request.
    """
    if not given:
        return {}
    adapters = {name: path for name, path in (each.split("=", 1) for each in given if "=" in each) if name and path}
    if len(adapters) < len(given):
        raise UsageError(f"--lora {' --lora '.join(given)}; give NAME=FILE, each name once")
    if len(opened) > 1:
        raise UsageError(f"--lora with {len(opened)} models; serve the model of the adapters alone")
    chosen = choose_runtime(opened[0], runtime)
    option = chosen.options.get("adapters")
    if option is None:
        raise UsageError(f"runtime {chosen.name!r} has no adapters by request; edgekit merge adds one to its model")
    return {option: adapters}


@contextlib.contextmanager
def _traced(on: bool) -> Iterator[Trace | None]:
    if not on:
        yield None
        return
    trace, finish = trace_to_collector()
    try:
        yield trace
    finally:
        finish()


def start_model(artifact: Artifact, runtime: str | None, options: dict[str, Any], parallel: int) -> Runtime:
    """Load a model for so many texts at the same time, if the runtime has an option for that and it is not given."""
    option = choose_runtime(artifact, runtime).options.get("parallel")
    model = load(artifact, runtime, **({option: parallel} if option and parallel > 1 else {}) | options)
    warm(model)
    return model


def read_keys(path: str | None) -> frozenset[str]:
    """Return API keys from a file and the environment; never from the command line, which other users can see.

    Raises:
        MissingFileError: the file cannot be read.
        UsageError: the file holds no key.
    """
    keys = os.environ.get(KEYS, "").split()
    if path is not None:
        try:
            in_file = Path(path).read_text("ascii").split()
        except (OSError, UnicodeDecodeError) as error:
            raise MissingFileError(f"{path}: cannot be read as a list of keys ({type(error).__name__})") from None
        if not in_file:
            raise UsageError(f"{path}: holds no key; put one on each line")
        keys += in_file
    return frozenset(keys)


def refuse_open_doors(host: str, keys: frozenset[str], insecure: bool) -> None:
    """Raise an error if the server would listen on a non-local address without an API key.

    Raises:
        UsageError: there is no key; the message says how to set one.
    """
    if not (keys or insecure or is_loopback(host)):
        raise UsageError(
            f"{host} can be reached from other machines: set {KEYS}, or --api-key-file, to let only those in who have "
            "a key; --insecure-no-auth to let in everybody"
        )


def is_loopback(host: str) -> bool:
    """Whether an address is a loopback address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def default_name(path: Path) -> str:
    """Return a name for clients, derived from an artifact's."""
    stem = path.resolve().name.removesuffix(path.suffix if path.is_file() else "")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).lstrip("._-")[:128] or "model"


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """Return a listening socket, so that a port in use is detected before a model is loaded.

    Clients that connect before the model is loaded wait. The socket must listen: one that is only bound would not
    exclude a second server.

    Raises:
        ResourceError: the address or port cannot be used.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        door = socket.socket(family, kind)
    except OSError as error:
        raise ResourceError(f"{host}: no address of this machine ({error.strerror}); choose another --host") from error
    with door:
        if os.name == "posix":  # on other systems the option allows two servers on one port
            door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            door.bind(address)
            door.listen(BACKLOG)
        except OSError as error:
            raise ResourceError(
                f"{host}:{port} cannot be listened on ({error.strerror}); choose another --host or --port"
            ) from error
        yield door


def serve(
    model: Any,
    settings: Settings,
    door: socket.socket,
    drain: int,
    title: str,
    log_format: str = "text",
    models: Sequence[Model] = (),
    trace: Trace | None = None,
) -> None:
    """Serve until SIGTERM, SIGINT, or a failure of the model.

    Raises:
        ResourceError: the model no longer computes.
    """
    import uvicorn

    from edgekit_serve.app import create_app
    from edgekit_serve.connections import Connection

    log_to_stderr(log_format)
    failures: list[str] = []

    def failed() -> None:
        failures.append(model.name)
        server.should_exit = True

    app = create_app(model, settings, failed=failed, models=models, trace=trace)
    config = uvicorn.Config(
        app, http=Connection, ws="none", loop="asyncio", lifespan="on", log_config=None, access_log=False,
        server_header=False, proxy_headers=False, timeout_keep_alive=75, timeout_graceful_shutdown=drain,
        limit_concurrency=CONNECTIONS, backlog=BACKLOG,
    )  # fmt: skip
    server = uvicorn.Server(config)
    # uvicorn raises the signal again after its shutdown, when it must be ignored.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    logging.getLogger("edgekit_serve").info("serving %s (runtime %s%s)", title, model.name, computes(model))
    server.run(sockets=[door])
    if failures:
        raise ResourceError(f"the runtime {failures[0]!r} no longer computes; start the server again")


def computes(model: Any) -> str:
    """Return how a runtime computes, if it reports that: ``, device CPU, gpu_layers 0, …``."""
    description = model.description() if isinstance(model, DescribedRuntime) else {}
    return "".join(f", {name} {value}" for name, value in description.items())


def warm(model: Runtime) -> None:
    """Prepare the tokenizer before the first request, since that may take seconds."""
    with contextlib.suppress(EdgekitError):
        model.stream("a", max_tokens=0).close()


class _JsonLines(logging.Formatter):
    """Formats an event as one JSON object, with the result of a request in separate fields."""

    def format(self, record: logging.LogRecord) -> str:
        event = {"time": self.formatTime(record), "level": record.levelname.lower(), "message": record.getMessage()}
        return json.dumps({**event, **getattr(record, "fields", {})})


def log_to_stderr(form: str = "text") -> None:
    """Log one line per event with its time and duration; never a prompt or an answer."""
    handler = logging.StreamHandler(sys.stderr)
    plain = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    handler.setFormatter(_JsonLines() if form == "json" else plain)
    for name, level in (("edgekit_serve", logging.INFO), ("uvicorn.error", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)


__all__ = [
    "BACKLOG",
    "CONNECTIONS",
    "KEYS",
    "command",
    "computes",
    "default_name",
    "is_loopback",
    "listening",
    "log_to_stderr",
    "lora_options",
    "read_keys",
    "refuse_open_doors",
    "serve",
    "start_model",
    "warm",
]
