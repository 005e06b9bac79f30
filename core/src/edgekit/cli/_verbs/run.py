"""`edgekit run`: answer or continue one prompt."""

from __future__ import annotations

from typing import Any

import click

from edgekit.artifact import Artifact
from edgekit.cli._generation import Asked, described, generation_options, note, note_end, read_stdin, tell
from edgekit.cli.output import json_option, print_json
from edgekit.errors import UsageError
from edgekit.pipeline._conversion import open_artifact
from edgekit.runtime import ChatRuntime, Generation, Runtime
from edgekit.runtime.chat import has_template


@click.command("run")
@click.argument("model")
@click.argument("prompt", required=False)
@generation_options
@click.option("--system", metavar="TEXT", help="System message before the prompt.")
@click.option("--raw", is_flag=True, help="Continue PROMPT unchanged, without the model's chat template.")
@json_option
def command(model: str, prompt: str | None, system: str | None, raw: bool, as_json: bool, **options: Any) -> None:
    """Answer PROMPT with MODEL, or continue it: the text streams to stdout.

    A model with a chat template answers PROMPT as a message of the user; a model without one, and any with --raw,
    continues it. PROMPT is read from stdin if it is left out or "-".
    """
    asked = Asked.of(**options)
    if raw and system is not None:
        raise UsageError("--raw and --system exclude each other: a system message needs the chat template")
    text = read_stdin() if prompt in (None, "-") else prompt
    artifact = open_artifact(model)
    chats = not raw and (system is not None or has_template(artifact))
    with asked.load(artifact) as loaded:
        generation = _begin(loaded, artifact, str(text), system, chats, asked)
        if not (chats or raw or as_json):
            note(f"{artifact.path.name} has no chat template; the prompt is continued as text")
        generated = tell(generation, [], as_json)
        if as_json:
            print_json({"text": generated.text, **generated.to_dict(), "chat": chats, "sampling": asked.arguments()}
                       | described(loaded, artifact))  # fmt: skip
        else:
            note_end(generated, asked)


def _begin(model: Runtime, artifact: Artifact, text: str, system: str | None, chats: bool, asked: Asked) -> Generation:
    if not chats:
        return model.stream(text, **asked.arguments())
    if not isinstance(model, ChatRuntime):
        raise UsageError(f"runtime {model.name!r} does not support chat; --raw continues the prompt as text")
    messages = [] if system is None else [{"role": "system", "content": system}]
    return model.chat_stream([*messages, {"role": "user", "content": text}], **asked.arguments())


__all__ = ["command"]
