"""The runtime `mlx`: the numbers of edgekit's forward pass, its options, its cache in memory and on disk, its threads."""

from __future__ import annotations

import json
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attrs
import ml_dtypes
import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.generate import generate_step
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_models import BASE, FAMILIES, config_of, write

import edgekit
from edgekit import sample
from edgekit.architectures.forward import Transformer
from edgekit.errors import (
    ContextOverflowError,
    InvalidFileError,
    MemoryShortageError,
    MissingFileError,
    UnsupportedModelError,
    UsageError,
)
from edgekit.formats import safetensors
from edgekit.pipeline.passes import run_pass
from edgekit.testing.models import artifact_of, random_model
from edgekit_mlx import module as modules
from edgekit_mlx.adapters import fused
from edgekit_mlx.prompt_cache import KEY
from edgekit_mlx.training import finetune
from edgekit_mlx.worker import ClosedError, Worker, shared

PROMPT = "Once upon a time"


def relative(a, b):
    return np.abs(a - b).max() / np.abs(b).max()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample model, float32."""
    return edgekit.convert(sample.path(), tmp_path_factory.mktemp("m") / "m", format="mlx", dtype="F32").path


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_of_every_family(name, tmp_path):
    artifact = write(name, tmp_path, seed=11)
    judge = Transformer(artifact.model)
    tokens = np.random.default_rng(1).integers(0, 128, (2, 45))
    with edgekit.load(artifact, "mlx") as runtime:
        # Measured: at most 4e-6 of the largest.
        assert relative(runtime.logits(tokens[0]), judge.logits(tokens[0])) < 1e-4
        assert relative(runtime.logits(tokens), judge.logits(tokens)) < 1e-4
        # One by one, through the cache: windows bite after 8 tokens in Gemma 3.
        greedy = list(runtime.tokens(tokens[0][:20], max_tokens=20))
        ids = tokens[0][:20].tolist()
        for token in greedy:
            scores = judge.logits(ids)[-1]
            assert scores.max() - scores[token] < 1e-3 * scores.std()
            ids.append(token)


#: By dtype of the scales: measured 6e-7 … 5e-6 in float32; 1.3e-3 in float16 and 2e-2 in bfloat16, in which MLX
#: then computes all states.
@pytest.mark.parametrize(("dtype", "bound"), [("F32", 1e-4), ("F16", 1e-2), ("BF16", 1e-1)])
@pytest.mark.parametrize("precision", ["int2-g32", "int4-g64", "int8-g32", "mxfp4", "mxfp8", "nvfp4"])
def test_logits_on_the_stored_weights(dtype, bound, precision, tmp_path):
    config = attrs.evolve(BASE, ffn=128)
    source = edgekit.convert(artifact_of(random_model(config, 5), tmp_path / "memory"), tmp_path / "hf", dtype=dtype)
    small = edgekit.quantize(source, precision, to=tmp_path / "m", format="mlx")
    tokens = np.random.default_rng(2).integers(0, 128, 40)
    wanted = Transformer(small.model).logits(tokens)
    with edgekit.load(small, "mlx") as runtime:
        assert runtime.description()["quantized_modules"] >= 12
        assert relative(runtime.logits(tokens), wanted) < bound
    with edgekit.load(small, "mlx", exact=True) as runtime:
        assert runtime.description()["dtype"] == "float32"
        assert relative(runtime.logits(tokens), wanted) < 1e-4


def test_text_is_numpys_and_mlx_lms(model):
    with edgekit.load(model, "mlx") as runtime, edgekit.load(model, "numpy") as judge:
        wanted = judge.generate(PROMPT, max_tokens=30)
        assert runtime.generate(PROMPT, max_tokens=30) == wanted
        assert "".join(runtime.stream(PROMPT, max_tokens=30)) == wanted
        sampled = runtime.generate(PROMPT, max_tokens=20, temperature=0.8, seed=4)
        assert sampled == judge.generate(PROMPT, max_tokens=20, temperature=0.8, seed=4)
        np.testing.assert_allclose(runtime.embed(PROMPT), judge.embed(PROMPT), atol=1e-5)
        ids = runtime.encode(PROMPT)
        theirs, _ = mlx_lm.utils.load_model(model)
        tokens = [int(t) for (t, _), _ in zip(generate_step(mx.array(ids), theirs), range(20), strict=False)]
        assert list(runtime.tokens(ids, max_tokens=20)) == tokens


TOGETHER = ("Once upon a time", "The dog", "Lily said: I am", "There was a little girl who")


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.8, "seed": 4}, {"stop": "."}, {"repetition_penalty": 1.3, "max_tokens": 9}],
    ids=["greedy", "sampled", "stop", "penalty"],
)
def test_a_batch_gives_the_texts_of_one_by_one(options, model):
    options = {"max_tokens": 24, **options}
    with edgekit.load(model, "mlx") as runtime:
        wanted = [runtime.generate(prompt, **options) for prompt in TOGETHER]
        assert runtime.generate_batch(TOGETHER, **options) == wanted
        assert runtime.generate_batch(TOGETHER[:1], **options) == wanted[:1]
        assert runtime.generate_batch([], **options) == []
        assert runtime.generate_batch([runtime.encode(p) for p in TOGETHER], **options) == wanted


def test_texts_that_end_leave_the_batch(model):
    """One that ends at once, one that goes on: the second's is not disturbed, and costs one row."""
    rows: list[int] = []
    with edgekit.load(model, "mlx") as runtime:
        alone = runtime.generate(TOGETHER[1], max_tokens=30)
        advance = runtime.advance
        runtime.advance = lambda ids, cache: rows.append(len(ids)) or advance(ids, cache)
        first = runtime.generate(TOGETHER[0], max_tokens=2).strip()
        batch = runtime.generate_batch(TOGETHER[:2], max_tokens=30, stop=first)
        assert batch[0].strip() == ""
        assert alone.startswith(batch[1])
        assert (rows[0], rows[-1]) == (2, 1)


def test_a_batch_checks_every_prompt_before_it_computes(model):
    with edgekit.load(model, "mlx", context=32) as runtime:
        runtime.prefill = None
        with pytest.raises(ContextOverflowError, match="context of 32"):
            runtime.generate_batch([PROMPT, PROMPT * 20], max_tokens=4)
        with pytest.raises(UsageError, match="the prompt has no tokens"):
            runtime.generate_batch([PROMPT, []], max_tokens=4)


def test_calls_from_many_threads_take_turns(model):
    """MLX's streams belong to a thread; the runtime has one of its own."""
    with edgekit.load(model, "mlx") as runtime:
        wanted = runtime.generate(PROMPT, max_tokens=8)
        said: list[str] = []
        threads = [
            threading.Thread(target=lambda: said.append(runtime.generate(PROMPT, max_tokens=8))) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert said == [wanted] * 4


def test_a_cache_on_disk_goes_on_in_another_runtime(model, tmp_path):
    long = (PROMPT + " there was a ") * 6
    with edgekit.load(model, "mlx") as runtime:
        wanted = runtime.generate(long + "dog", max_tokens=12)
        with pytest.raises(UsageError, match=r"^there is no prompt to keep"):
            edgekit.load(model, "mlx").save_prompt_cache(tmp_path / "none")
        runtime.generate(long, max_tokens=1)
        runtime.save_prompt_cache(tmp_path / "kept.safetensors")
    with edgekit.load(model, "mlx", prompt_cache=str(tmp_path / "kept.safetensors")) as runtime:
        assert len(runtime._held.seen) > 30
        assert runtime.generate(long + "dog", max_tokens=12) == wanted
        assert runtime.generate(PROMPT, max_tokens=3) == edgekit.load(model, "numpy").generate(PROMPT, max_tokens=3)


def test_a_cache_of_another_model_or_type_is_refused(model, tmp_path):
    with edgekit.load(model, "mlx") as runtime:
        runtime.generate(PROMPT, max_tokens=1)
        runtime.save_prompt_cache(tmp_path / "kept")
    other = write("llama", tmp_path)
    with pytest.raises(UsageError, match="the prompt cache is of another model"):
        edgekit.load(other, "mlx", prompt_cache=str(tmp_path / "kept"))
    with pytest.raises(UsageError, match="the prompt cache is of this model in float32"):
        edgekit.load(model, "mlx", dtype="bfloat16", prompt_cache=str(tmp_path / "kept"))
    with pytest.raises(InvalidFileError, match="it is no prompt cache"):
        edgekit.load(model, "mlx", prompt_cache=str(model / "model.safetensors"))
    arrays = {name: t.read() for name, t in safetensors.open_tensors(tmp_path / "kept")[0].items()}
    safetensors.write(tmp_path / "bad", arrays, {KEY: '{"tokens": []}'})
    with pytest.raises(InvalidFileError, match="its metadata lacks 'layers'"):
        edgekit.load(model, "mlx", prompt_cache=str(tmp_path / "bad"))


def test_options_are_strict(model):
    for options, message in {
        ("dtype", "int8"): "dtype 'int8'; choose float32, float16, bfloat16",
        ("device", "tpu"): "device 'tpu' is not there; MLX finds cpu",
        ("context", 0): "context 0; choose 1 or more",
        ("exact", "yes"): "exact 'yes'; choose true or false",
        ("threads", 2): "runtime 'mlx' has no option 'threads'; it has device, dtype, exact, context, prompt_cache",
    }.items():
        with pytest.raises(UsageError) as caught:
            edgekit.load(model, "mlx", **dict([options]))
        assert str(caught.value).startswith(message)
    with pytest.raises(UsageError, match="exact computes in float32, dtype is float16"):
        edgekit.load(model, "mlx", exact=True, dtype="float16")


def test_what_it_computes_with_is_said(model):
    with edgekit.load(model, "mlx", device="cpu", dtype="bfloat16", context=64) as runtime:
        said = runtime.description()
        assert (said["device"], said["dtype"], said["context"], said["quantized_modules"]) == ("cpu", "bfloat16", 64, 0)
        assert said["memory"] > 0
        with pytest.raises(ContextOverflowError, match="do not fit the model's context of 64"):
            runtime.generate(PROMPT, max_tokens=100)
    with pytest.raises(UsageError, match="the runtime is closed"):
        runtime.generate(PROMPT)


def test_the_context_ends_where_mlx_lm_has_no_window(tmp_path):
    artifact = write("mistral, window", tmp_path)
    with edgekit.load(artifact, "mlx") as runtime:
        assert runtime.context == 48
        with pytest.raises(ContextOverflowError, match="context of 48"):
            runtime.logits(np.zeros(49, np.int64))


def test_a_model_larger_than_the_memory_is_refused_before_it_is_read(model, monkeypatch):
    monkeypatch.setattr(modules, "available", lambda: 1000)
    with pytest.raises(MemoryShortageError, match=r"its weights take [\d,]+ bytes of memory, and 1,000 are left"):
        edgekit.load(model, "mlx")


def test_logits_of_stories_and_of_its_stored_weights(stories: Path, tmp_path: Path):
    tokens = np.random.default_rng(3).integers(3, 500, 48)
    plain = edgekit.convert(stories, tmp_path / "plain", format="mlx", dtype="F32")
    small = edgekit.quantize(stories, "int4-g32", to=tmp_path / "small", format="mlx")
    for artifact in (plain, small):
        with edgekit.load(artifact, "mlx") as runtime:
            # Measured: 1e-6.
            assert relative(runtime.logits(tokens), Transformer(artifact.model).logits(tokens)) < 1e-4


def write_adapter(folder: Path, model: Path, seed: int, method: str = "lora", layer: str = "lora") -> Path:
    """Random factors for mlx-lm's own layers of every linear kind, saved with mlx-lm's names; scale 3."""
    module, _ = mlx_lm.utils.load_model(model)
    linear_to_lora_layers(module, 2, {"rank": 4, "scale": 3.0, "dropout": 0.0}, use_dora=method == "dora")
    random = np.random.default_rng(seed)
    values = {
        name: mx.array(0.1 * random.standard_normal(value.shape).astype(np.float32))
        for name, value in tree_flatten(module.parameters())
        if layer in name
    }
    folder.mkdir()
    mx.save_safetensors(str(folder / "adapters.safetensors"), values)
    settings = {"rank": 4, "scale": 3.0, "dropout": 0.0}
    config = {"fine_tune_type": method, "num_layers": 2, "lora_parameters": settings}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("recipe", [None, "4bit"])
def test_adapters_of_single_texts(recipe, model, tmp_path):
    """Texts with other adapters, in turns and at once: each as the model with the adapter fused in computes it."""
    source = edgekit.open(model)
    if recipe:
        source = edgekit.quantize(source, recipe, to=tmp_path / "small", format="mlx")
    folders = {name: write_adapter(tmp_path / name, source.path, seed) for seed, name in enumerate("ab")}
    judges = {name: edgekit.load(fused(source, folder), "numpy") for name, folder in folders.items()}
    with edgekit.load(source, "mlx", adapters=folders) as runtime, edgekit.load(source, "numpy") as plain:
        assert runtime.adapters() == ["a", "b"]
        ids = runtime.encode(PROMPT)
        for name in ("a", "b", "a"):
            # Measured: 1e-6 of the largest; quantized weights that an adapter is fused into become float32.
            assert relative(runtime.adapted({name: 1}).logits(ids), judges[name].logits(ids)) < 1e-4
            assert relative(runtime.logits(ids), plain.logits(ids)) < 1e-4
        wanted = {name: judge.generate(PROMPT, max_tokens=24) for name, judge in judges.items()}
        assert len({*wanted.values(), plain.generate(PROMPT, max_tokens=24)}) == 3
        with ThreadPoolExecutor(4) as pool:
            asked = ["a", "b", "a", "b"]
            texts = pool.map(lambda name: runtime.adapted({name: 1}).generate(PROMPT, max_tokens=24), asked)
            assert list(texts) == [wanted[name] for name in asked]
        assert runtime.adapted({"a": 0}).generate(PROMPT, max_tokens=24) == plain.generate(PROMPT, max_tokens=24)
        both = runtime.adapted({"a": 0.5, "b": -1}).logits(ids)
        added = fused(
            fused(source, rescaled(folders["a"], tmp_path / "half", 1.5)),
            rescaled(folders["b"], tmp_path / "minus", -3.0),
        )
        assert relative(both, Transformer(added.model).logits(ids)) < 1e-4
    for judge in judges.values():
        judge.close()


def rescaled(folder: Path, to: Path, scale: float) -> Path:
    """A copy of an adapter with another scale."""
    shutil.copytree(folder, to)
    config = json.loads((to / "adapter_config.json").read_text())
    config["lora_parameters"]["scale"] = scale
    (to / "adapter_config.json").write_text(json.dumps(config))
    return to


def test_prompts_with_adapters_are_kept_apart(model, tmp_path):
    folder = write_adapter(tmp_path / "a", model, 0)
    with edgekit.load(model, "mlx", adapters={"a": str(folder)}) as runtime:
        tuned = runtime.adapted({"a": 1})
        wanted = tuned.generate(PROMPT, max_tokens=12)
        plain = runtime.generate(PROMPT, max_tokens=12)
        assert (tuned.generate(PROMPT, max_tokens=12), plain) == (wanted, runtime.generate(PROMPT, max_tokens=12))
        tuned.generate(PROMPT, max_tokens=2)
        with pytest.raises(UsageError, match="the last prompt was computed with adapters"):
            runtime.save_prompt_cache(tmp_path / "kept")
        tuned.close()
        runtime.generate(PROMPT, max_tokens=2)
        runtime.save_prompt_cache(tmp_path / "kept")
        runtime.load_prompt_cache(tmp_path / "kept")
        assert runtime.generate(PROMPT, max_tokens=12) == plain
        with pytest.raises(UsageError, match="no adapter 'c'; there is 'a': load others with the option adapters"):
            runtime.adapted({"c": 1})
        with pytest.raises(UsageError, match="adapter 'a': scale nan; choose a finite number"):
            runtime.adapted({"a": float("nan")})


def test_what_is_no_adapter_for_single_texts_is_refused(model, tmp_path):
    with pytest.raises(UsageError, match=r"adapters is \['x'\]; give a mapping from names to paths"):
        edgekit.load(model, "mlx", adapters=["x"])
    with pytest.raises(MissingFileError, match="no such file"):
        edgekit.load(model, "mlx", adapters={"a": str(tmp_path)})
    dora = write_adapter(tmp_path / "dora", model, 0, "dora")
    with pytest.raises(UnsupportedModelError, match="dora is not applied to single texts, LoRA is; fuse it"):
        edgekit.load(model, "mlx", adapters={"a": dora})
    half = write_adapter(tmp_path / "half", model, 0, layer="lora_a")
    with pytest.raises(InvalidFileError, match="lora_b is missing or no matrix"):
        edgekit.load(model, "mlx", adapters={"a": half})
    other = write("llama", tmp_path, seed=3)
    with pytest.raises(InvalidFileError, match=r"it was trained on another model|which the model does not have"):
        edgekit.load(other, "mlx", adapters={"a": write_adapter(tmp_path / "b", model, 0)})
    learned = tmp_path / "table"
    shutil.copytree(half, learned)
    rows = {f"model.embed_tokens.{part}": mx.zeros((4, 4)) for part in ("lora_a", "lora_b")}
    mx.save_safetensors(str(learned / "adapters.safetensors"), rows)
    with pytest.raises(UnsupportedModelError, match=r"it changes model\.embed_tokens, of type (Quantized)?Embedding"):
        edgekit.load(model, "mlx", adapters={"a": learned})


def test_a_model_larger_than_the_memory_is_neither_trained_nor_learned_from(model, monkeypatch, tmp_path):
    monkeypatch.setattr(modules, "available", lambda: 12_000_000)  # the model's weights fit once
    source = edgekit.open(model)
    with pytest.raises(MemoryShortageError, match=r"its weights take 15[\d,]+ bytes of memory, and 12,000,000 are"):
        run_pass(source, "mlx-gptq", to=tmp_path / "out", options={"text": list(range(10, 300)), "length": 32})
    monkeypatch.setattr(modules, "available", lambda: 1000)
    (tmp_path / "train.jsonl").write_text('{"text": "Once upon a time"}\n')
    with pytest.raises(MemoryShortageError, match="1,000 are left"):
        finetune(source, tmp_path / "train.jsonl", tmp_path / "adapter")
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / "adapter").glob("*.safetensors"))


def test_a_family_that_edgekit_does_not_know_runs_with_mlx_lm(tmp_path):
    """StarCoder 2, written by mlx-lm itself."""
    arguments = {
        "model_type": "starcoder2", "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 96,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 128, "norm_epsilon": 1e-5,
        "rope_theta": 10000.0, "max_position_embeddings": 96, "tie_word_embeddings": True,
    }  # fmt: skip
    from mlx_lm.models import starcoder2

    mx.random.seed(0)
    module = starcoder2.Model(starcoder2.ModelArgs.from_dict(arguments))
    (tmp_path / "m").mkdir()
    mlx_lm.utils.save_model(tmp_path / "m", module)
    mlx_lm.utils.save_config(dict(arguments), tmp_path / "m" / "config.json")
    with pytest.raises(UnsupportedModelError, match="it runs with the runtime mlx"):
        _ = edgekit.open(tmp_path / "m").model
    tokens = [1, 5, 9, 100]
    with edgekit.load(tmp_path / "m", "mlx") as runtime:
        assert runtime.context == 96
        wanted = np.array(module(mx.array([tokens])).astype(mx.float32))[0]
        np.testing.assert_allclose(runtime.logits(tokens), wanted, rtol=1e-5, atol=1e-5)
        assert len(list(runtime.tokens(tokens, max_tokens=4))) == 4


def test_bfloat16_scales_are_read_as_they_are(tmp_path):
    source = edgekit.convert(artifact_of(random_model(BASE, 5), tmp_path / "memory"), tmp_path / "hf", dtype="BF16")
    small = edgekit.quantize(source, "int4-g32", to=tmp_path / "m", format="mlx")
    scales = small.tensors["model.layers.0.mlp.up_proj.weight"].read().parts["scales"]
    assert scales.dtype == np.dtype(ml_dtypes.bfloat16)
    assert attrs.evolve(config_of("llama"), name="").layers == small.model.config.layers


def test_a_worker_runs_one_thing_after_the_other_and_ends():
    worker = Worker()
    assert worker.run(lambda: threading.current_thread().name) == "edgekit-mlx"
    with pytest.raises(ZeroDivisionError):
        worker.run(lambda: 1 // 0)
    assert worker.run(lambda: float(mx.array([2.0]).sum().item())) == 2.0
    worker.close()
    worker.close()
    with pytest.raises(ClosedError):
        worker.run(lambda: 1)


def test_in_a_forked_process_there_is_another_worker():
    """A forked process lacks its parent's threads: waiting for one would never end."""
    before = shared()
    assert before.run(lambda: 1) == 1
    child = os.fork()
    if not child:
        code = 1
        try:
            with pytest.raises(ClosedError):
                before.run(lambda: 1)
            code = 0 if shared().run(lambda: 2) == 2 else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
