"""Chat templates: where they are found, what they say, and what hostile ones cannot do."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import attrs
import pytest

import edgekit
from edgekit import sample
from edgekit.errors import InvalidFileError, MissingPluginError, UsageError
from edgekit.runtime import chat

CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
HELLO = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def artifact():
    """The sample model, with a template."""
    opened = edgekit.open(sample.path())
    tokenizer = attrs.evolve(opened.tokenizer, chat_template="{{ bos_token }}" + CHATML)
    return attrs.evolve(opened, load_tokenizer=lambda: tokenizer)


def test_the_prompt_of_an_artifact(artifact):
    messages = [{"role": "system", "content": "Be brief. "}, {"role": "user", "content": "Hello"}]
    assert chat.prompt_of(artifact, messages) == "<s><|system|>Be brief.\n<|user|>Hello\n<|assistant|>"


GENERATION = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}\n"
    "{% set name = 'x' %}{{ m.content }}{% if loop.last %}!{% endif %}{% endgeneration %}{% else %}{{ m.content }}"
    "{% endif %}{{ name is defined }}\n{% endfor %}"
)


def test_what_the_model_said_may_be_marked(artifact):
    """SmolLM3's template, for one; the oracles render it with transformers."""
    messages = [*HELLO, {"role": "assistant", "content": "Hello"}]
    assert chat.render(GENERATION, messages) == "HiFalse\nHello!False\n"
    with pytest.raises(InvalidFileError, match="TemplateSyntaxError"):
        chat.render("{% generation %}never ends", messages)


def test_transformers_renders_marks_alike():
    render = pytest.importorskip("transformers.utils.chat_template_utils").render_jinja_template
    messages = [*HELLO, {"role": "assistant", "content": "Hello"}]
    (theirs,), _ = render([messages], chat_template=GENERATION)
    assert chat.render(GENERATION, messages) == theirs


def test_metadata_comes_before_the_tokenizer(artifact):
    def unreadable():
        raise AssertionError("the tokenizer is not needed")

    gguf = attrs.evolve(artifact, config={"tokenizer.chat_template": "{{ 1 }}"}, load_tokenizer=unreadable)
    assert chat.template_of(gguf) == "{{ 1 }}"


def test_without_a_template():
    with pytest.raises(UsageError, match="it has no chat template, as base models have none; continue a text instead"):
        chat.template_of(edgekit.open(sample.path()))


def test_without_jinja(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPluginError) as caught:
        chat.render(CHATML, HELLO)
    assert str(caught.value) == "rendering a chat template needs jinja2; pip install 'edgekit-core[chat]'"


HOSTILE = {
    "code": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", InvalidFileError, "SecurityError"),
    "mutation": ("{% set x = messages.append(1) %}", InvalidFileError, "SecurityError"),
    "endless": ("{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}", InvalidFileError,
                "too much time or memory|did not end"),
    "memory": ("{% set x = 'a' * 99999999999 %}{{ x }}", InvalidFileError, "too much memory|MemoryError|Overflow"),
    "long": ("{{ 'a' * 9999999 }}", InvalidFileError, "it made 9999999 characters"),
    "syntax": ("{% if %}", InvalidFileError, "TemplateSyntaxError"),
    "files": ("{% include '/etc/passwd' %}", InvalidFileError, "no loader|TypeError|TemplateNotFound"),
    "refusal": ("{{ raise_exception('only users') }}", UsageError, "refuses the messages: only users"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_templates_harm_nothing(case: str, monkeypatch: pytest.MonkeyPatch):
    source, error, message = HOSTILE[case]
    monkeypatch.setattr(chat, "PATIENCE", 3.0)
    with pytest.raises(error, match=message):
        chat.render(source, [{"role": "user", "content": "Hi"}])


def test_templates_see_neither_environment_nor_directory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SECRET", "hunter2")
    said = chat.render("{{ self }}{{ messages[0].content | tojson }}", [{"role": "user", "content": "é"}])
    assert "hunter2" not in said
    assert said.endswith('"é"')


@pytest.mark.parametrize("messages", [[], [{"role": "robot", "content": "x"}], [{"role": "user", "content": 3}]])
def test_messages_are_checked(messages: list[dict[str, Any]]):
    with pytest.raises(UsageError, match=r"no messages|each has a role"):
        chat.render(CHATML, messages)


def test_a_template_that_died_hurts_no_other(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(chat, "PATIENCE", 0.5)
    with pytest.raises(InvalidFileError, match=r"fails: it did not end within 0\.5 seconds; build the prompt yourself"):
        chat.render(HOSTILE["endless"][0], HELLO)
    monkeypatch.undo()
    assert chat.render("{{ 1 }}", HELLO) == "1"


def test_templates_leave_nothing_for_the_next():
    chat.render("{% set ns = namespace(x=1) %}{% set x = 7 %}{{ ns.x }}", HELLO)
    assert chat.render("{{ x is defined }}", HELLO) == "False"


def test_threads_and_processes_get_their_own_answers():
    with ThreadPoolExecutor(8) as pool:
        said = list(pool.map(lambda n: chat.render("{{ n }}", HELLO, n=n), range(40)))
    assert said == [str(n) for n in range(40)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_copy_of_the_process_renders_on_its_own():
    code = (
        "import os; from edgekit.runtime import chat; say = lambda t: chat.render(t, [{'role': 'user', 'content': 'x'}]); say('1');"
        "child = os.fork(); print(say('child' if child == 0 else 'parent'), flush=True); child and os.waitpid(child, 0);"
        "print(say('2'), flush=True)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert sorted(done.stdout.split()) == ["2", "2", "child", "parent"]
    assert done.stderr == ""


def test_rendering_is_quick():
    """A process a request takes 90 ms; a copy of one that is ready, 10. The best of five counts on a busy machine."""
    times = []
    for _ in range(6):
        start = time.perf_counter()
        chat.render(CHATML, HELLO)
        times.append(time.perf_counter() - start)
    assert min(times[1:]) < 0.06
