"""`edgekit run` and `edgekit chat` as they are used: in a pipe, in a terminal, interrupted."""

import json
import os
import select
import signal
import subprocess
import sys
import textwrap

import pytest

import edgekit as ek
from edgekit import sample
from edgekit.pipeline import quantize

pytest.importorskip("tokenizers", reason="texts are cut with it; pip install 'edgekit-core[text]'")
pytest.importorskip("jinja2", reason="conversations are rendered with it; pip install 'edgekit-core[chat]'")

TEMPLATE = "{% for m in messages %}{% if m.role == 'system' %}Once, {% endif %}{{ m.content }} {% endfor %}there was a"


@pytest.fixture(scope="module")
def talker(tmp_path_factory):
    """The sample model with a chat template."""
    path = tmp_path_factory.mktemp("talker") / "talker"
    ek.convert(sample.path(), path, format="hf")
    settings = path / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"chat_template": TEMPLATE}))
    return path


@pytest.fixture(scope="module")
def mute(tmp_path_factory):
    """The sample model without its tokenizer."""
    path = tmp_path_factory.mktemp("mute") / "mute"
    ek.convert(sample.path(), path, format="hf")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (path / name).unlink()
    return path


def edgekit(*arguments, code=0):
    command = [sys.executable, "-m", "edgekit", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, f"exit {done.returncode}, wanted {code}\n{done.stdout}\n{done.stderr}"
    return done


def piped(text, *arguments, code=0):
    command = [sys.executable, "-m", "edgekit", *map(str, arguments)]
    done = subprocess.run(command, input=text, capture_output=True, timeout=120, check=False)
    assert done.returncode == code, done.stderr.decode()
    return done.stdout.decode(), done.stderr.decode()


def spoken(model, prompt, **options):
    with ek.load(model, "numpy") as runtime:
        return runtime.generate(prompt, **options)


def answered(model, messages, **options):
    with ek.load(model, "numpy") as runtime:
        return runtime.chat(messages, **options)


def test_a_base_model_continues_the_prompt_and_says_so():
    done = edgekit("run", sample.path(), "Once upon a time", "--runtime", "numpy", "--max-tokens", "8")
    assert done.stdout == spoken(sample.path(), "Once upon a time", max_tokens=8) + "\n"
    assert done.stderr == f"edgekit: {sample.path().name} has no chat template; the prompt is continued as text\n"


def test_a_model_with_a_template_answers_the_prompt(talker):
    found = edgekit("run", talker, "Once upon", "--system", "so", "--max-tokens", "8").stdout
    messages = [{"role": "system", "content": "so"}, {"role": "user", "content": "Once upon"}]
    assert found == answered(talker, messages, max_tokens=8) + "\n"
    raw = edgekit("run", talker, "Once upon", "--raw", "--max-tokens", "8").stdout
    assert raw == spoken(talker, "Once upon", max_tokens=8) + "\n"


def test_every_option_reaches_the_runtime():
    options = {"max_tokens": 30, "temperature": 0.9, "top_k": 20, "top_p": 0.8, "seed": 5, "stop": "the"}
    flags = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]
    found = edgekit("run", sample.path(), "Once upon a time", "--runtime", "numpy", "--json", *flags).stdout
    told = json.loads(found)
    assert told["text"] == spoken(sample.path(), "Once upon a time", **options)
    neutral = {"min_p": 0.0, "frequency_penalty": 0.0, "presence_penalty": 0.0, "repetition_penalty": 1.0}
    assert told["sampling"] == {**options, "stop": ["the"], **neutral, "logit_bias": {}}
    assert (told["runtime"], told["chat"], told["format"]) == ("numpy", False, "hf")
    assert told["completion_tokens"] > 0


def test_a_drawn_seed_is_told_and_gives_the_text_again():
    asked = ("run", sample.path(), "Once", "--runtime", "numpy", "--json", "--max-tokens", "12", "--temperature", "1")
    first = json.loads(edgekit(*asked, "--seed", "-1").stdout)
    again = json.loads(edgekit(*asked, "--seed", first["sampling"]["seed"]).stdout)
    assert first["text"] == again["text"]


@pytest.mark.parametrize("arguments", [(), ("-",)])
def test_the_prompt_may_come_from_stdin(arguments):
    command = ("run", sample.path(), *arguments, "--runtime", "numpy", "--max-tokens", "6")
    out, _ = piped(b"Once upon a time\n", *command)
    assert out == spoken(sample.path(), "Once upon a time", max_tokens=6) + "\n"


def test_a_conversation_in_a_pipe(talker):
    out, err = piped(b"one\n\ntwo\r\n/reset\none\n", "chat", talker, "--max-tokens", "6", "--system", "so")
    system, one, two = (
        {"role": role, "content": c} for role, c in (("system", "so"), ("user", "one"), ("user", "two"))
    )
    first = answered(talker, [system, one], max_tokens=6)
    second = answered(talker, [system, one, {"role": "assistant", "content": first}, two], max_tokens=6)
    assert out == f"{first}\n{second}\n{first}\n"
    assert err == ""


def test_answers_as_lines_of_json(talker):
    out, _ = piped("eins\nzwei ✓\n".encode(), "chat", talker, "--max-tokens", "3", "--json")
    answers = [json.loads(line) for line in out.splitlines()]
    assert [(a["role"], a["completion_tokens"], a["finish_reason"]) for a in answers] == [
        ("assistant", 3, "length")
    ] * 2
    assert answers[0]["runtime"] == "numpy"


REFUSED = {
    "a base model": (("chat", "BASE"), 2, "it has no chat template, as base models have none; continue a text instead"),
    "a system message for a base model": (("run", "BASE", "x", "--system", "y"), 2, "it has no chat template"),
    "no tokenizer": (("run", "MUTE", "x"), 2, "it has no tokenizer, so it takes no text; write it again from a source"),
    "a prompt that is too long": (("run", "BASE", "word " * 2000, "--runtime", "numpy"), 2, "tokens of prompt do not fit the model's context of 512"),
    "too many tokens": (("run", "BASE", "x", "--max-tokens", "99999"), 2, "context"),
    "an unknown option": (("run", "BASE", "x", "--runtime", "numpy", "--option", "gpu_layers=1"), 2,
        "runtime 'numpy' has no option 'gpu_layers'; it has cache"),
    "an option without a value": (("run", "BASE", "x", "--option", "cache"), 2, "give NAME=VALUE"),
    "an unknown runtime": (("run", "BASE", "x", "--runtime", "nump"), 4, "no runtime 'nump' is installed"),
    "a negative temperature": (("run", "BASE", "x", "--temperature", "-1"), 2, "choose 0 or more"),
    "a negative number of tokens": (("run", "BASE", "x", "--max-tokens", "-1"), 2, "--max-tokens -1; choose 0 or more"),
    "raw with a system message": (("run", "BASE", "x", "--raw", "--system", "y"), 2, "exclude each other"),
    "no model": (("run", "nowhere", "x"), 3, "no such file"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_run_is_refused_in_one_line(what, mute):
    arguments, code, message = REFUSED[what]
    places = {"BASE": sample.path(), "MUTE": mute}
    done = edgekit(*(places.get(a, a) for a in arguments), code=code)
    assert done.stdout == ""
    *_, line = done.stderr.splitlines()
    assert line.startswith("edgekit: error: ")
    assert message in line


def test_a_conversation_that_outgrows_the_context_ends_in_a_pipe(talker):
    out, err = piped(b"one\n" + b"word " * 2000 + b"\n", "chat", talker, "--max-tokens", "3", code=2)
    assert out == answered(talker, "one", max_tokens=3) + "\n"
    assert "do not fit the model's context" in err


def test_stdin_that_is_no_text_is_refused(talker):
    for verb in ("run", "chat"):
        _, err = piped(b"a\xff\n", verb, talker, code=3)
        assert "stdin: not UTF-8 at offset 1; convert it to UTF-8" in err


@pytest.fixture(autouse=True)
def children_are_interruptible():
    """A shell's background jobs ignore SIGINT, and so would every child of these tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def terminal(*arguments, program=("-m", "edgekit")):
    """The command in a terminal of its own: the process, and the descriptor of the terminal's other side."""
    pty = pytest.importorskip("pty", reason="this system has no pseudo-terminals")
    ours, theirs = pty.openpty()
    command = [sys.executable, *program, *map(str, arguments)]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    return process, ours


def until_shown(ours, wanted, seconds=60):
    """What the terminal shows until it shows what is wanted."""
    shown = b""
    while wanted not in shown:
        ready, _, _ = select.select([ours], [], [], seconds)
        assert ready, f"waited {seconds} s for {wanted!r}; shown is {shown!r}"
        try:
            shown += os.read(ours, 4096)
        except OSError:  # the other side is closed
            raise AssertionError(f"ended before {wanted!r}; shown is {shown!r}") from None
    return shown.decode().replace("\r\n", "\n")


def test_a_conversation_in_a_terminal(talker):
    process, ours = terminal("chat", talker, "--max-tokens", "6")
    assert "/reset forgets the conversation" in until_shown(ours, b"> ")
    os.write(ours, b"one\n")
    assert answered(talker, "one", max_tokens=6) in until_shown(ours, b"\r\n> ")
    os.write(ours, b"word " * 700 + b"\n")
    assert "do not fit the model's context" in until_shown(ours, b"/reset forgets the conversation")
    os.write(ours, b"/reset\n/help\n")
    until_shown(ours, b"Ctrl-C stops an answer")
    os.write(ours, b"/exit\n")
    assert process.wait(30) == 0
    os.close(ours)


SLOW = """
    import sys, time
    import edgekit.cli, edgekit.cli._generation as generation

    show = generation.show

    def shown(text):
        show(text)
        time.sleep(0.1)

    generation.show = shown
    edgekit.cli.main(sys.argv[1:])
"""


def test_ctrl_c_stops_an_answer_and_then_the_conversation(talker):
    """The answer comes slowly, so that it is not over when it is stopped."""
    slow = ("-c", textwrap.dedent(SLOW))
    process, ours = terminal("chat", talker, "--temperature", "3", "--stop", "\ue000", program=slow)
    until_shown(ours, b"> ")
    os.write(ours, b"one\n")
    until_shown(ours, b"one\r\n")
    until_shown(ours, b" ")
    process.send_signal(signal.SIGINT)
    assert "stopped; the answer so far is kept" in until_shown(ours, b"> ")
    # Python sees a signal that comes just before it waits for the terminal only with the next one: a person presses
    # the keys again, and so does the test.
    for _ in range(30):
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        if select.select([ours], [], [], 2)[0]:
            break
    until_shown(ours, b"edgekit: interrupted")
    assert process.wait(30) == 130
    os.close(ours)


STOPPED = """
    import signal, sys
    import edgekit.cli, edgekit.cli._generation as generation

    show = generation.show

    def shown(text):
        show(text)
        signal.raise_signal(signal.SIGINT)

    generation.show = shown
    edgekit.cli.main(sys.argv[1:])
"""


def test_an_interrupted_run_has_an_exit_code_of_its_own(talker):
    """The signal comes with the first piece of text, so that the run is never over before it."""
    command = [sys.executable, "-c", textwrap.dedent(STOPPED), "run", talker, "one", "--temperature", "3"]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.stdout
    assert done.returncode == 130
    assert done.stderr == b"\nedgekit: interrupted\n"
    assert "130 interrupted (Ctrl-C)" in edgekit("--help").stdout


INTERRUPTING = """
    import contextlib, signal, sys
    import edgekit.cli, edgekit.cli._verbs.quantize as verb

    @contextlib.contextmanager
    def bar(title):
        yield lambda done, total, what: signal.raise_signal(signal.SIGINT) if done == AT else None

    verb.progress_bar = bar
    edgekit.cli.main(["quantize", *sys.argv[1:]])
"""


@pytest.mark.parametrize(("at", "told"), [(0, "nothing is kept; "), (5, "5 of ")])
def test_an_interrupted_conversion_says_what_is_kept(tmp_path, at, told):
    target = tmp_path / "model"
    arguments = [sample.path(), "affine:int8-sym-channel", "--to", target]
    script = textwrap.dedent(INTERRUPTING).replace("AT", str(at))
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 130, done.stderr
    *_, line = done.stderr.splitlines()
    assert line.startswith(f"edgekit: interrupted: {told}")
    assert line.endswith(f"{target} is as it was")
    started = []
    quantize(sample.path(), "affine:int8-sym-channel", to=target, progress=lambda d, *_: started.append(d))
    assert started[0] == at


def test_compare_sorts_by_error_and_shows_the_first(tmp_path):
    ek.quantize(sample.path(), "affine:int4-sym-g32", to=tmp_path / "small")
    asked = ("compare", sample.path(), tmp_path / "small")
    every = json.loads(edgekit(*asked, "--json").stdout)["tensors"]
    found = json.loads(edgekit(*asked, "--sort", "error", "--top", "3", "--json").stdout)["tensors"]
    assert found == sorted(every, key=lambda error: -error["share"])[:3]
    shown = edgekit(*asked, "--sort", "error", "--top", "1").stdout.splitlines()
    assert shown[-1].startswith(found[0]["name"])
    assert shown[-1].endswith(f"{found[0]['share']:.1%}")
