"""The llama.cpp runtime on real models: what it computes, says, refuses, and survives."""

from __future__ import annotations

import os
import resource
import signal
import struct
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter

import edgekit
from edgekit.errors import (
    ContextOverflowError,
    EdgekitError,
    InvalidFileError,
    MissingPluginError,
    PluginError,
    ResourceError,
    UnsupportedModelError,
    UsageError,
)
from edgekit.evaluation.language import kl_divergence, log_softmax
from edgekit.runtime import AdaptingRuntime
from edgekit.tensor import Tensor
from edgekit_gguf.format import GgufFormat
from edgekit_gguf.metadata import Metadata, Value, text, texts, u32
from edgekit_llamacpp import library, model
from edgekit_llamacpp.isolated import IsolatedRuntime
from edgekit_llamacpp.runtime import LlamaCppRuntime

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

from llama_model import Shape, write_llama

CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture
def source(request: pytest.FixtureRequest) -> Path:
    """A real model as an F32 GGUF file."""
    found: Path = request.getfixturevalue(getattr(request, "param", "sample_gguf"))
    return found


both = pytest.mark.parametrize("source", ["stories", "sample_gguf"], indirect=True)
both_ways = pytest.mark.parametrize("isolate", [False, True], ids=["here", "child"])


def load(path: Path, **options: Any) -> Any:
    return edgekit.load(path, "llamacpp", **{"threads": 1, "context": 256, "isolate": False, **options})


def some_tokens(path: Path, count: int) -> np.ndarray:
    vocabulary = edgekit.open(path).model.config.vocab
    return np.random.default_rng(4).integers(3, vocabulary, count)


@both
@pytest.mark.parametrize("dtype", ["F32", "F16"])
def test_logits_are_the_forward_pass(source: Path, dtype: str, tmp_path: Path):
    """F32 to 1e-4 of the largest logit (measured: 1e-6); F16 too, against the forward pass on the same F16 file."""
    path = edgekit.convert(source, tmp_path / "model.gguf", dtype=dtype).path
    tokens = some_tokens(source, 100)
    wanted = edgekit.load(path, "numpy").logits(tokens)
    with load(path, cache="F32") as runtime:
        got = runtime.logits(tokens)
    assert got.dtype == np.float32
    assert got.shape == wanted.shape
    # llama.cpp rounds the inputs of products with F16 matrices to F16 as well: half of 2^-10 for each.
    assert np.abs(got - wanted).max() <= {"F32": 1e-4, "F16": 1e-3}[dtype] * np.abs(wanted).max()


@both
def test_the_default_cache_is_near(source: Path):
    """Keys and values in F16, as llama.cpp has them."""
    tokens = some_tokens(source, 100)
    wanted = edgekit.load(source, "numpy").logits(tokens)
    with load(source) as runtime:
        assert np.abs(runtime.logits(tokens) - wanted).max() <= 5e-3 * np.abs(wanted).max()


@both
@pytest.mark.parametrize(("recipe", "limit"), [("Q8_0", 0.01), ("Q4_K_M", 0.05)])
def test_quantized_models_are_near_by_divergence(source: Path, recipe: str, limit: float, tmp_path: Path):
    small = edgekit.quantize(source, recipe, to=tmp_path / "small.gguf")
    prompt = "Once upon a time, there was a little girl named Lily. She loved to play outside in the sun."
    with edgekit.load(source, "numpy") as whole, load(small.path) as runtime:
        tokens = runtime.encode(prompt)
        base, judged = (log_softmax(m.logits(tokens)) for m in (whole, runtime))
        own = log_softmax(edgekit.load(small, "numpy").logits(tokens))
    assert kl_divergence(base, judged).mean() < limit
    assert kl_divergence(own, judged).mean() < 0.01  # llama.cpp also rounds the inputs of products to 8 bits


@both
@both_ways
def test_text_is_the_numpy_runtimes(source: Path, isolate: bool):
    with edgekit.load(source, "numpy") as slow, load(source, isolate=isolate, cache="F32") as fast:
        for options in ({}, {"temperature": 0.8, "seed": 3, "top_k": 40, "top_p": 0.95}):
            wanted = slow.generate("Once upon a time", max_tokens=40, **options)
            assert len(wanted) > 20
            assert fast.generate("Once upon a time", max_tokens=40, **options) == wanted
            assert "".join(fast.stream("Once upon a time", max_tokens=40, **options)) == wanted


@both
def test_texts_are_cut_as_by_edgekit(source: Path):
    tokenizer = edgekit.open(source).tokenizer
    assert tokenizer is not None
    with load(source) as runtime:
        for said in ("Once upon a time", " two  spaces", "naïve café, 日本 🙂\n", ""):
            wanted = tokenizer.encode(said)
            assert runtime.encode(said) == (wanted[:-1] if tokenizer.add_eos else wanted), said


def test_a_text_of_more_tokens_than_bytes_is_cut(tmp_path: Path):
    """A vocabulary that has no space: SentencePiece writes each in three byte tokens."""
    path = write_llama(tmp_path / "bytes.gguf", Shape(1, 64, 64, 2, 2, vocab=300), np.float32)
    with load(path) as runtime:
        ids = runtime.encode("a b c d e f g h")
        assert ids == edgekit.open(path).tokenizer.encode("a b c d e f g h")
        assert len(ids) == 1 + 8 * 4
        assert runtime.generate("a b c d e f g h", max_tokens=2)


def test_it_stops_where_it_is_told(source: Path):
    with load(source) as runtime:
        whole = runtime.generate("Once upon a time", max_tokens=40)
        stop = whole[12:18]
        assert runtime.generate("Once upon a time", max_tokens=40, stop=[stop]) == whole[: whole.index(stop)]
        assert runtime.generate("Once upon a time", max_tokens=0) == ""


@both_ways
def test_streams_may_be_mixed_and_dropped(source: Path, isolate: bool):
    """One context serves both: each step knows what it has to compute again."""
    with load(source, isolate=isolate) as runtime:
        wanted = {p: runtime.generate(p, max_tokens=12) for p in ("Once upon a time", "Lily and Tom")}
        streams = {p: runtime.stream(p, max_tokens=12) for p in wanted}
        dropped = runtime.stream("Once upon", max_tokens=50)
        next(dropped)
        dropped.close()
        texts = dict.fromkeys(wanted, "")
        for _ in range(14):
            for prompt, stream in streams.items():
                texts[prompt] += next(stream, "")
        assert texts == wanted


def test_threads_take_turns(source: Path):
    with load(source) as runtime:
        wanted = runtime.generate("Once upon a time", max_tokens=15)
        found: list[str] = []
        job = lambda: found.append(runtime.generate("Once upon a time", max_tokens=15))  # noqa: E731
        threads = [threading.Thread(target=job) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [wanted] * 4


@both
@both_ways
def test_embeddings_are_unit_vectors_that_tell_texts_apart(source: Path, isolate: bool):
    with load(source, isolate=isolate) as runtime:
        one, same, other = (runtime.embed(t) for t in ("The cat sat.", "The cat sat.", "Tom was very angry and ran."))
    assert one.shape == (edgekit.open(source).model.config.width,)
    np.testing.assert_allclose(np.linalg.norm(one), 1, rtol=1e-5)
    np.testing.assert_array_equal(one, same)
    assert one @ other < 0.999


@both
def test_embeddings_are_the_numpy_runtimes(source: Path):
    with edgekit.load(source, "numpy") as slow, load(source, cache="F32") as fast:
        np.testing.assert_allclose(fast.embed("The cat sat."), slow.embed("The cat sat."), atol=1e-5)


@both_ways
def test_tokens_are_counted_as_by_the_numpy_runtime(source: Path, isolate: bool):
    with edgekit.load(source, "numpy") as slow, load(source, isolate=isolate, cache="F32") as fast:
        assert fast.encode("Once upon a time") == slow.encode("Once upon a time")
        for options in ({"max_tokens": 7}, {"max_tokens": 0}, {"max_tokens": 40, "stop": ["."]}):
            texts = [runtime.stream("Once upon a time", **options) for runtime in (slow, fast)]
            said = ["".join(text) for text in texts]
            assert said[0] == said[1]
            wanted, got = ((t.prompt_tokens, t.completion_tokens, t.finish_reason) for t in texts)
            assert got == wanted


def test_texts_as_long_as_the_context_are_embedded(source: Path):
    """More than llama.cpp's usual batch at once: the mean is over all of them."""
    long = "Once upon a time there was a cat. " * 60
    with load(source, context=2048) as runtime:
        assert len(runtime.encode(long)) > model.BATCH
        np.testing.assert_allclose(np.linalg.norm(runtime.embed(long)), 1, rtol=1e-5)
        with pytest.raises(ContextOverflowError, match="do not fit the context of 2048"):
            runtime.embed(long * 5)


def with_metadata(source: Path, path: Path, changes: dict[str, Value], without: str = "nothing") -> Path:
    """The same model with other metadata."""
    artifact = edgekit.open(source)
    typed = {key: value for key, value in artifact.config.typed.items() if not key.startswith(without)}
    return edgekit.convert(attrs.evolve(artifact, config=Metadata(typed | changes)), path).path


def with_template(source: Path, path: Path, template: str) -> Path:
    """The same model with a chat template."""
    return with_metadata(source, path, {"tokenizer.chat_template": text(template)})


@both_ways
def test_chat_is_the_template_and_then_the_text(source: Path, isolate: bool, tmp_path: Path):
    path = with_template(source, tmp_path / "chat.gguf", CHATML)
    messages = [{"role": "system", "content": "Be brief. "}, {"role": "user", "content": "Hello"}]
    with load(path, isolate=isolate) as runtime, load(path) as plain:
        prompt = "<|system|>Be brief.\n<|user|>Hello\n<|assistant|>"
        assert plain.prompt(messages) == prompt
        answer = runtime.chat(messages, max_tokens=12)
        assert answer == plain.generate(prompt, max_tokens=12)
        assert "".join(runtime.chat_stream(messages, max_tokens=12)) == answer


def test_bos_of_a_template_is_not_doubled(source: Path, tmp_path: Path):
    path = with_template(source, tmp_path / "chat.gguf", "{{ bos_token }}" + CHATML)
    bos = edgekit.open(source).tokenizer.bos
    with load(path) as runtime:
        ids = runtime.encode(runtime.prompt([{"role": "user", "content": "Hi"}]), special=True)
        assert ids[0] == bos
        assert ids.count(bos) == 1


def test_without_a_template_chat_is_refused(source: Path):
    with (
        load(source) as runtime,
        pytest.raises(UsageError, match="it has no chat template, as base models have none; continue a text"),
    ):
        runtime.chat([{"role": "user", "content": "Hi"}])


@both_ways
def test_bad_requests_are_refused_and_it_goes_on(source: Path, isolate: bool):
    with load(source, isolate=isolate, context=64) as runtime:
        for tokens in ([], [-1], [10**6], [0.5], [[1, 2]]):
            with pytest.raises(UsageError):
                runtime.logits(tokens)
        with pytest.raises(ContextOverflowError, match="70 tokens of prompt and 0 more do not fit the context of 64"):
            runtime.logits([5] * 70)
        assert runtime.logits([5] * 64).shape == (64, 512)
        for options in ({"max_tokens": -1}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_k": -1}):
            with pytest.raises(UsageError):
                runtime.generate("Once", **options)
        with pytest.raises(ContextOverflowError, match="ask for at most"):
            runtime.generate("Once", max_tokens=10**6)
        with pytest.raises(UsageError, match="the text is not Unicode text"):
            runtime.generate("\ud800")
        assert runtime.generate("Once upon a time", max_tokens=3)
    with pytest.raises(UsageError, match="the runtime is closed; open the model again"):
        runtime.generate("Once")


BAD_OPTIONS = [{"context": 0}, {"threads": 0}, {"gpu_layers": -2}, {"cache": "Q9"}, {"contxt": 5}, {"context": "long"}]


@pytest.mark.parametrize("options", BAD_OPTIONS, ids=str)
def test_options_are_checked(source: Path, options: dict[str, Any]):
    with pytest.raises(UsageError, match=next(iter(options))):
        load(source, **options)


def test_acceleration_that_is_not_there_is_refused(source: Path):
    if library.llama().llama_supports_gpu_offload():
        pytest.skip("this build has acceleration")
    with pytest.raises(MissingPluginError, match=r"gpu_layers=4, but .* on the CPU only; build it .*GGML_CUDA=on"):
        load(source, gpu_layers=4)


def test_a_context_that_memory_does_not_hold_is_refused(source: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(model, "available_memory", lambda: 1000)
    with pytest.raises(ResourceError, match=r"a context of 256 tokens takes .* choose a shorter context"):
        load(source)


def test_memory_that_must_not_be_locked_is_said_so(source: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (65536, 65536))
    with pytest.raises(ResourceError, match=r"mlock=True must lock \d+ bytes and 65536 are allowed; raise `ulimit -l`"):
        load(source, mlock=True)


def test_it_is_the_default_for_gguf_files(source: Path):
    with edgekit.load(source, threads=1) as runtime:
        assert isinstance(runtime, LlamaCppRuntime)


def write_adapter(path: Path, source: Path, alpha: float, seed: int = 6) -> Path:
    """A LoRA adapter of rank 2 for one matrix."""
    rng = np.random.default_rng(seed)
    writer = GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    rows, cols = GgufFormat().open(source).tensors["blk.1.ffn_up.weight"].shape
    writer.add_tensor("blk.1.ffn_up.weight.lora_a", rng.standard_normal((2, cols)).astype(np.float32))
    writer.add_tensor("blk.1.ffn_up.weight.lora_b", rng.standard_normal((rows, 2)).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_lora_adapters_are_applied(source: Path, tmp_path: Path):
    """As the numpy forward pass computes with scale * alpha / rank * B @ A added to the matrix."""
    adapter = write_adapter(tmp_path / "lora.gguf", source, alpha=1.0)
    tokens = some_tokens(source, 30)
    artifact = edgekit.open(source)
    whole = artifact.model
    parts = {t.name: t.data for t in GGUFReader(adapter).tensors}
    a, b = (parts[f"blk.1.ffn_up.weight.lora_{x}"] for x in "ab")
    name = "blk.1.ffn_up.weight"
    changed = whole.tensors[name].float32() + np.float32(0.25 / 2) * (b @ a)
    tensors = {**whole.tensors, name: Tensor.of(name, changed)}
    tuned_model = attrs.evolve(artifact, load_model=lambda: attrs.evolve(whole, tensors=tensors))
    with edgekit.load(tuned_model, "numpy") as numpy:
        wanted = numpy.logits(tokens)
    with load(source, cache="F32") as plain, load(source, cache="F32", lora=[(adapter, 0.25)]) as tuned:
        got, without = tuned.logits(tokens), plain.logits(tokens)
    assert np.abs(without - wanted).max() > 0.01 * np.abs(wanted).max()
    assert np.abs(got - wanted).max() < 1e-4 * np.abs(wanted).max()
    with load(source, cache="F32", lora=str(adapter)) as named, load(source, cache="F32", lora=[adapter]) as listed:
        np.testing.assert_array_equal(named.logits(tokens), listed.logits(tokens))


def test_adapters_of_single_texts(source: Path, tmp_path: Path):
    """Texts with other adapters, in turns and at once: each as a runtime computes it that has no others."""
    files = {name: write_adapter(tmp_path / f"{name}.gguf", source, 2.0, seed) for seed, name in enumerate("ab")}
    wishes: list[dict[str, float]] = [{}, {"a": 1.0}, {"b": 0.5}, {"a": 1.0, "b": 0.5}, {"a": 0.0}, {}]
    tokens = some_tokens(source, 12)
    options: dict[str, Any] = {"max_tokens": 8, "temperature": 1.0, "seed": 1}
    wanted = []
    for wish in wishes:
        with load(source, cache="F32", lora=[(files[name], scale) for name, scale in wish.items()]) as alone:
            wanted.append((alone.generate(tokens, **options), alone.logits(tokens), alone.embed(tokens)))
    assert len({text for text, *_ in wanted}) > 2
    with load(source, cache="F32", sequences=3, adapters=files) as model:
        assert isinstance(model, AdaptingRuntime)
        assert model.adapters() == ["a", "b"]
        tuned = [model.adapted(wish) for wish in wishes]
        for runtime, (text, logits, vector) in zip(tuned, wanted, strict=True):
            assert runtime.generate(tokens, **options) == text
            np.testing.assert_array_equal(runtime.logits(tokens), logits)
            np.testing.assert_array_equal(runtime.embed(tokens), vector)
        with ThreadPoolExecutor(6) as pool:
            texts = list(pool.map(lambda runtime: runtime.generate(tokens, **options), tuned))
        assert texts == [text for text, *_ in wanted]
        tuned[1].close()
        assert model.generate(tokens, **options) == wanted[0][0], "the model stays loaded"
        used = model.cache_use()
        model.adapted({"b": 0.25}).generate(tokens, max_tokens=1)
        assert model.cache_use().reused == used.reused, "what other adapters computed is not used"
        with pytest.raises(UsageError, match="no adapter 'c'; there is 'a', 'b': load others with the option adapters"):
            model.adapted({"c": 1.0})
        with pytest.raises(UsageError, match="adapter 'a': scale inf; choose a finite number"):
            model.adapted({"a": float("inf")})
    with pytest.raises(UsageError, match="the runtime is closed"):
        tuned[1].generate(tokens)
    with pytest.raises(UsageError, match=r"adapters is \['x'\]; give a mapping from names to paths"):
        load(source, adapters=["x"])
    with pytest.raises(UsageError, match="adapters by name work in this process only"):
        load(source, adapters=files, isolate=True)


def test_what_is_no_adapter_is_refused(source: Path):
    with pytest.raises(UsageError, match="no LoRA adapter in GGUF"):
        load(source, lora=[source])
    with pytest.raises(UsageError, match="no LoRA adapter in GGUF"):
        load(source, adapters={"a": source})


def altered(source: Path, path: Path, old: bytes, new: bytes) -> Path:
    """The file with some bytes replaced."""
    data = source.read_bytes()
    assert old in data
    assert len(old) == len(new)
    path.write_bytes(data.replace(old, new, 1))
    return path


@pytest.fixture
def broken(source: Path, tmp_path: Path) -> dict[str, Path]:
    """Files that edgekit's reader or llama.cpp has to refuse."""
    data = source.read_bytes()
    files = {name: tmp_path / f"{name}.gguf" for name in ("garbage", "truncated", "empty")}
    files["garbage"].write_bytes(b"no such thing" * 50)
    files["truncated"].write_bytes(data[: len(data) // 2])
    files["empty"].write_bytes(b"")
    # An architecture of the same length that nobody has, in general.architecture alone.
    key = b"general.architecture" + struct.pack("<IQ", 8, 5)
    files["architecture"] = altered(source, tmp_path / "architecture.gguf", key + b"llama", key + b"llamX")
    files["tensor"] = altered(source, tmp_path / "tensor.gguf", b"blk.1.ffn_up.weight", b"blk.1.ffn_xx.weight")
    return files


@both_ways
@pytest.mark.parametrize("case", ["garbage", "truncated", "empty", "architecture", "tensor"])
def test_broken_files_are_errors(broken: dict[str, Path], case: str, isolate: bool):
    with pytest.raises(EdgekitError) as caught:
        load(broken[case], isolate=isolate)
    assert isinstance(caught.value, InvalidFileError | UnsupportedModelError)
    assert case in str(caught.value)


def test_an_unknown_architecture_goes_to_a_child_by_itself(broken: dict[str, Path]):
    with pytest.raises(UnsupportedModelError, match="unknown model architecture: 'llamX'"):
        load(broken["architecture"], isolate=None)


@pytest.fixture
def child(source: Path) -> Iterator[IsolatedRuntime]:
    with load(source, isolate=True) as runtime:
        assert isinstance(runtime, IsolatedRuntime)
        yield runtime


def test_a_child_that_dies_is_an_error(child: IsolatedRuntime):
    assert child._child is not None
    stream = child.stream("Once upon a time", max_tokens=100)
    next(stream)
    child._child.send_signal(signal.SIGABRT)  # as ggml_abort does
    with pytest.raises(InvalidFileError, match=r"llama\.cpp died \(signal 6\) in next; the file is broken"):
        list(stream)
    with pytest.raises(UsageError, match="the runtime is closed"):
        child.logits([1])


@pytest.fixture
def doubled(source: Path, tmp_path: Path) -> Path:
    """A file for which ``llama_model_load_from_file`` ends the process: a token is in its vocabulary twice."""
    tokens = list(edgekit.open(source).config["tokenizer.ggml.tokens"])
    tokens[400] = tokens[401]
    return with_metadata(source, tmp_path / "doubled.gguf", {"tokenizer.ggml.tokens": texts(tokens)})


@both_ways
def test_what_ends_the_process_is_refused_before(doubled: Path, isolate: bool):
    with pytest.raises(InvalidFileError, match="is there twice, as 400 and 401; get the file again"):
        load(doubled, isolate=isolate)


def test_an_abort_of_llama_cpp_is_an_error(doubled: Path):
    """Past the check, so that llama.cpp itself aborts in the child."""
    with pytest.raises(InvalidFileError, match=r"llama\.cpp died \(signal 6\) in load; the file is broken"):
        IsolatedRuntime(edgekit.open(doubled), model.Options(context=64))


@both_ways
def test_a_file_without_a_vocabulary_computes_and_refuses_texts(source: Path, isolate: bool, tmp_path: Path):
    facts = {"tokenizer.ggml.model": text("no_vocab"), "llama.vocab_size": u32(512)}
    path = with_metadata(source, tmp_path / "mute.gguf", facts, without="tokenizer.")
    with load(path, isolate=isolate) as runtime:
        assert runtime.logits([1, 2, 3]).shape == (3, 512)
        for ask in (runtime.generate, runtime.embed):
            with pytest.raises(UsageError, match="it has no tokenizer, so it takes no text; "):
                ask("Once")


def test_errors_cross_over_as_what_they_are(child: IsolatedRuntime):
    with pytest.raises(ContextOverflowError):
        child.logits([1] * 5000)
    with pytest.raises(PluginError, match="AttributeError"):
        child._ask("no_such_method")


def test_nothing_is_left_behind(source: Path):
    runtime = load(source, isolate=True)
    process = runtime._child
    runtime.close()
    runtime.close()
    assert process.poll() is not None
