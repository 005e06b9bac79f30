"""Fine-tuning: losses that fall, adapters that mlx-lm loads, runs that go on to equal weights, and bad data by line.

MLX's products take 2 to 3 GFLOP/s on a CPU here, so that models and runs are small.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import attrs
import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from click.testing import CliRunner
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_models import BASE, FAMILIES

import edgekit
from edgekit import sample
from edgekit.architectures.forward import Transformer
from edgekit.architectures.hf import config_from_hf
from edgekit.cli import cli
from edgekit.errors import InvalidFileError, LockedError, MissingFileError, NonFiniteError, UsageError
from edgekit.files.atomic import AtomicFile
from edgekit.recipe import Recipe
from edgekit.tensor import EncodedTensor, Tensor
from edgekit.testing._tokenizers import bpe
from edgekit.testing.models import artifact_of, random_model
from edgekit_mlx import examples, training
from edgekit_mlx.adapters import as_before, fused, read_adapter
from edgekit_mlx.training import Training, finetune

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SMALL = Training(steps=4, batch=2, rate=1e-2, rank=4, length=24, report_every=1, validate_every=2, save_every=2)
TEXTS = [f"the thing is {word} and the other is not" for word in ("red", "green", "blue", "old", "new", "small")]


def jsonl(path: Path, rows) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    jsonl(folder / "train.jsonl", [{"text": text} for text in TEXTS])
    jsonl(folder / "valid.jsonl", [{"text": text.replace("thing", "other")} for text in TEXTS[:3]])
    return folder


def model_of(folder: Path, name: str = "llama", recipe: str | None = None, template: str | None = TEMPLATE):
    config = attrs.evolve(BASE, **{**FAMILIES[name], "vocab": len(bpe().tokens)})
    tokenizer = attrs.evolve(bpe(), chat_template=template)
    source = artifact_of(random_model(config, 3), folder / "memory", tokenizer)
    if recipe:
        return edgekit.quantize(source, Recipe.of({"*": recipe}), to=folder / "model", format="mlx")
    return edgekit.convert(source, folder / "model", format="mlx")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return model_of(tmp_path_factory.mktemp("model"))


def weights(folder: Path) -> dict[str, bytes]:
    return {name: tensor.read().tobytes() for name, tensor in read_adapter(folder).tensors.items()}


TOKENS = np.random.default_rng(9).integers(0, 100, 20)


@pytest.mark.parametrize(
    ("method", "recipe"), [("lora", None), ("dora", None), ("full", None), ("lora", "int8-g32"), ("dora", "mxfp8")]
)
def test_every_method_trains_and_fuses_to_what_mlx_lm_computes_with_the_adapter(method, recipe, data, tmp_path):
    source = model_of(tmp_path, recipe=recipe)
    report = finetune(source, data, tmp_path / "adapter", attrs.evolve(SMALL, method=method, steps=6))
    assert report.training[-1][1] < report.training[0][1]
    assert report.validation[-1][1] < report.validation[0][1]
    assert [step for step, _ in report.validation] == [0, 2, 4, 6]
    module, _ = mlx_lm.utils.load_model(source.path)
    mlx_lm.utils.load_adapters(module, str(tmp_path / "adapter"))
    module.eval()
    wanted = np.array(module(mx.array([TOKENS.tolist()])).astype(mx.float32))[0]
    added = fused(source, tmp_path / "adapter")
    got = Transformer(added.model).logits(TOKENS)
    # Measured: 1e-6 to 5e-6.
    assert np.abs(got - wanted).max() / np.abs(wanted).max() < 1e-4
    assert np.abs(got - Transformer(source.model).logits(TOKENS)).max() > 1e-2
    written = edgekit.quantize(added, as_before(source), to=tmp_path / "fused", format="mlx", allow_unquantized=True)
    kinds = {n: t.precision if isinstance(t, EncodedTensor) else t.dtype for n, t in written.tensors.items()}
    assert kinds == {n: t.precision if isinstance(t, EncodedTensor) else t.dtype for n, t in source.tensors.items()}
    if recipe is None:
        np.testing.assert_allclose(Transformer(written.model).logits(TOKENS), got, atol=1e-5)


def test_an_adapter_of_mlx_lm_is_fused(model, tmp_path):
    """Random values in mlx-lm's own layers, saved by mlx-lm; and Gemma's norms, which are stored without their one."""
    module, _ = mlx_lm.utils.load_model(model.path)
    linear_to_lora_layers(module, 1, {"rank": 4, "scale": 3.0, "dropout": 0.0})
    rng = np.random.default_rng(0)
    values = {
        n: mx.array(rng.standard_normal(v.shape).astype(np.float32) * 0.1)
        for n, v in tree_flatten(module.parameters())
        if "lora" in n
    }
    module.load_weights(list(values.items()), strict=False)
    (tmp_path / "a").mkdir()
    mx.save_safetensors(str(tmp_path / "a" / "adapters.safetensors"), values)
    config = {"fine_tune_type": "lora", "num_layers": 1, "lora_parameters": {"rank": 4, "scale": 3.0, "dropout": 0.0}}
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(config))
    wanted = np.array(module(mx.array([TOKENS.tolist()])))[0]
    got = Transformer(fused(model, tmp_path / "a").model).logits(TOKENS)
    assert np.abs(got - wanted).max() / np.abs(wanted).max() < 1e-4


def test_whole_layers_of_gemma_fuse_with_their_norms(data, tmp_path):
    source = model_of(tmp_path, "gemma3")
    options = attrs.evolve(SMALL, method="full", layers=2, steps=2)
    finetune(source, data / "train.jsonl", tmp_path / "adapter", options)
    module, _ = mlx_lm.utils.load_model(source.path)
    mlx_lm.utils.load_adapters(module, str(tmp_path / "adapter"))
    wanted = np.array(module(mx.array([TOKENS.tolist()])).astype(mx.float32))[0]
    got = Transformer(fused(source, tmp_path / "adapter").model).logits(TOKENS)
    assert np.abs(got - wanted).max() / np.abs(wanted).max() < 1e-4


@pytest.mark.parametrize("recipe", ["F32", "int8-g32"])
def test_experts_train_and_fuse_to_what_mlx_lm_computes_with_the_adapter(recipe, data, tmp_path):
    """Stacks of experts have an adapter for each expert, and keep the precision that they had."""
    hf = {
        "model_type": "qwen3_moe", "vocab_size": len(bpe().tokens), "hidden_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "moe_intermediate_size": 32,
        "intermediate_size": 64, "num_experts": 4, "num_experts_per_tok": 2, "max_position_embeddings": 64,
    }  # fmt: skip
    plain = artifact_of(random_model(config_from_hf(hf, "test"), 3), tmp_path / "memory", bpe())
    chosen = Recipe.of({"*exps*": recipe})
    source = edgekit.quantize(plain, chosen, to=tmp_path / "model", format="mlx", allow_unquantized=True)
    report = finetune(source, data, tmp_path / "adapter", attrs.evolve(SMALL, steps=8, rate=2e-3, validate_every=8))
    assert report.validation[-1][1] < report.validation[0][1]
    stack = "model.layers.1.mlp.switch_mlp.down_proj"
    assert read_adapter(tmp_path / "adapter").tensors[f"{stack}.lora_b"].shape == (4, 64, 4)
    module, _ = mlx_lm.utils.load_model(source.path)
    mlx_lm.utils.load_adapters(module, str(tmp_path / "adapter"))
    module.eval()
    wanted = np.array(module(mx.array([TOKENS.tolist()])).astype(mx.float32))[0]
    added = fused(source, tmp_path / "adapter")
    got = Transformer(added.model).logits(TOKENS)
    # Measured: 1e-6.
    assert np.abs(got - wanted).max() / np.abs(wanted).max() < 1e-4
    before = Transformer(source.model).logits(TOKENS)
    assert np.abs(got - before).max() > 1e-2
    written = edgekit.quantize(added, as_before(source), to=tmp_path / "fused", format="mlx", allow_unquantized=True)
    kinds = {n: t.precision if isinstance(t, EncodedTensor) else t.dtype for n, t in written.tensors.items()}
    assert kinds == {n: t.precision if isinstance(t, EncodedTensor) else t.dtype for n, t in source.tensors.items()}
    with pytest.raises(UsageError, match="mlx-lm has no dora for one of its layers"):
        finetune(source, data, tmp_path / "other", attrs.evolve(SMALL, method="dora"))


@pytest.mark.parametrize("stop", [3, 4, 5])
def test_an_interrupted_run_goes_on_to_equal_weights(model, data, tmp_path, stop):
    """Dropout too, whose random numbers are part of the checkpoint; the reports are alike as well."""
    options = attrs.evolve(SMALL, steps=8, dropout=0.2)
    whole = finetune(model, data, tmp_path / "whole", options)

    def interrupt(status):
        if status.step == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(model, data, tmp_path / "cut", options, progress=interrupt)
    assert not (tmp_path / "cut" / "adapters.safetensors").exists()
    again = finetune(model, data, tmp_path / "cut", options)
    assert again.resumed == stop // 2 * 2 - (2 if stop == 4 else 0)  # the report of step 4 comes before its checkpoint
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    assert again.to_dict() == whole.to_dict()
    for name in ("report.json", "report.html", "adapter_config.json", "adapters.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_more_steps_go_on_where_fewer_ended(model, data, tmp_path):
    finetune(model, data, tmp_path / "whole", attrs.evolve(SMALL, steps=8))
    finetune(model, data, tmp_path / "cut", SMALL)
    assert finetune(model, data, tmp_path / "cut", attrs.evolve(SMALL, steps=8)).resumed == 4
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")


def test_ten_runs_one_hash(model, data, tmp_path):
    hashes = set()
    for number in range(10):
        finetune(model, data, tmp_path / str(number), attrs.evolve(SMALL, steps=2, dropout=0.1))
        files = sorted((tmp_path / str(number)).iterdir())
        hashes.add(tuple((file.name, file.read_bytes()) for file in files))
        shutil.rmtree(tmp_path / str(number))
    assert len(hashes) == 1


def test_a_checkpoint_of_another_run_is_refused(model, data, tmp_path):
    finetune(model, data, tmp_path / "a", SMALL)
    for changed, what in ((attrs.evolve(SMALL, rate=1e-3), "rate"), (attrs.evolve(SMALL, seed=1), "seed")):
        with pytest.raises(UsageError, match=f"the checkpoint is of another run: {what} differ"):
            finetune(model, data, tmp_path / "a", changed)
    other = model_of(tmp_path, "qwen2")
    with pytest.raises(UsageError, match="the checkpoint is of another run: model differ"):
        finetune(other, data, tmp_path / "a", SMALL)
    with pytest.raises(UsageError, match="the adapter was trained on another model"):
        fused(other, tmp_path / "a")
    jsonl(tmp_path / "d" / "train.jsonl", [{"text": "other words"}])
    with pytest.raises(UsageError, match="training data, validation data differ"):
        finetune(model, tmp_path / "d", tmp_path / "a", SMALL)
    assert finetune(model, data, tmp_path / "a", attrs.evolve(SMALL, seed=1), restart=True).resumed == 0


def test_two_runs_do_not_share_a_directory(model, data, tmp_path):
    (tmp_path / "a").mkdir()
    with AtomicFile(tmp_path / "a" / "adapters.safetensors"), pytest.raises(LockedError):
        finetune(model, data, tmp_path / "a", SMALL)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"holds mine\.txt, which is no part of an adapter"):
        finetune(model, data, tmp_path / "b", SMALL)


def test_a_loss_that_is_not_finite_is_said(data, tmp_path):
    """Weights whose products overflow float32."""
    config = attrs.evolve(BASE, vocab=len(bpe().tokens))
    model = random_model(config, 3)
    large = {
        n: Tensor.of(n, t.float32() * np.float32(3e38)) if "ffn_down" in n else t for n, t in model.tensors.items()
    }
    source = artifact_of(attrs.evolve(model, tensors=large), tmp_path / "memory", bpe())
    huge = edgekit.convert(source, tmp_path / "huge", format="mlx")
    with pytest.raises(NonFiniteError, match=r"^step 1: the loss is nan; begin anew with a smaller rate than 0\.01"):
        finetune(huge, data / "train.jsonl", tmp_path / "a", SMALL)
    assert not (tmp_path / "a" / "adapters.safetensors").exists()


def test_whole_layers_of_a_quantized_model_are_refused(data, tmp_path):
    with pytest.raises(UsageError, match="its weights are quantized, and method full trains them"):
        finetune(model_of(tmp_path, recipe="int4-g32"), data, tmp_path / "a", attrs.evolve(SMALL, method="full"))


# --- data ---------------------------------------------------------------------------------------------------------


def test_kinds_of_examples_and_what_counts(model, tmp_path):
    rows = [
        {"text": "the thing"},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "bc"}]},
        {"prompt": "a", "completion": "bc"},
    ]
    tokenizer = model.tokenizer
    found = examples.read_examples(jsonl(tmp_path / "x.jsonl", rows), model, 64)
    assert tokenizer.decode(found.items[0].ids, skip_special=False).startswith("the thing")
    assert found.items[1] == found.items[2]
    assert tokenizer.decode(found.items[1].ids) == "<user>a</user><assistant>bc</assistant>"
    assert [item.offset for item in found.items] == [1, 1, 1]
    masked = examples.read_examples(jsonl(tmp_path / "y.jsonl", rows[1:]), model, 64, mask_prompts=True)
    for item in masked.items:
        assert tokenizer.decode(item.ids[: item.offset]) == "<user>a</user><assistant>"
    batch = examples.padded(masked.items)
    assert batch.ids.shape[1] == batch.weights.shape[1] + 1
    item = masked.items[0]
    assert batch.weights[0].sum() == len(item.ids) - item.offset
    assert np.flatnonzero(batch.weights[0]).tolist() == list(range(item.offset - 1, len(item.ids) - 1))


def test_without_a_template_completions_follow_prompts(tmp_path):
    source = model_of(tmp_path, template=None)
    path = jsonl(tmp_path / "x.jsonl", [{"prompt": "the ", "completion": "thing"}])
    (item,) = examples.read_examples(path, source, 64, mask_prompts=True).items
    assert source.tokenizer.decode(item.ids[: item.offset]) == "the "
    assert source.tokenizer.decode(item.ids) == "the thing"
    with pytest.raises(InvalidFileError, match=r"x.jsonl: line 1: .* it has no chat template"):
        examples.read_examples(
            jsonl(tmp_path / "x.jsonl", [{"messages": [{"role": "user", "content": "a"}]}]), source, 64
        )


def test_masked_prompts_do_not_count_in_the_loss(model, tmp_path):
    """The loss of the completion alone, as mlx-lm's modules compute it."""
    rows = [{"prompt": "the thing", "completion": "is red"}]
    jsonl(tmp_path / "d" / "train.jsonl", rows)
    jsonl(tmp_path / "d" / "valid.jsonl", rows)
    report = finetune(model, tmp_path / "d", tmp_path / "a", attrs.evolve(SMALL, steps=1, length=64, mask_prompts=True))
    (item,) = examples.read_examples(tmp_path / "d" / "valid.jsonl", model, 64, mask_prompts=True).items
    logits = Transformer(model.model).logits(np.array(item.ids)).astype(np.float64)
    shares = (
        logits
        - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True))
        - logits.max(1, keepdims=True)
    )
    wanted = -np.mean([shares[i - 1, item.ids[i]] for i in range(item.offset, len(item.ids))])
    assert report.validation[0][1] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "it holds no examples; write one JSON object a line"),
        ("\n\n", "it holds no examples"),
        ('{"text": "fine enough"}\n{"text": \n', "line 2: it is not JSON; write one JSON object a line"),
        ('{"text": "fine enough"}\n\n[1]\n', "line 3: it is [1], no JSON object"),
        ('{"txt": "a"}\n', "line 1: it has the keys ['txt']; write"),
        ('{"text": ""}\n', "line 1: text is ''; write a text that is not empty"),
        ('{"text": 5}\n', "line 1: text is 5; write a text that is not empty"),
        ('{"messages": []}\n', "line 1: messages is []; write a list of messages"),
        ('{"messages": [{"role": "cat", "content": "a"}]}\n', "line 1: message {'role': 'cat', 'content': 'a'}; each has a role"),
        ('{"prompt": "a", "completion": null}\n', "line 1: completion is None"),
    ],
)  # fmt: skip
def test_malformed_data_names_its_line(model, tmp_path, content, message):
    (tmp_path / "train.jsonl").write_text(content)
    with pytest.raises(InvalidFileError) as caught:
        finetune(model, tmp_path, tmp_path / "a", SMALL)
    assert str(caught.value).removeprefix(f"{tmp_path / 'train.jsonl'}: ").startswith(message)
    assert not (tmp_path / "a").exists()


def test_missing_data_and_masked_texts(model, tmp_path):
    with pytest.raises(MissingFileError, match=r"a folder of training data has train\.jsonl"):
        finetune(model, tmp_path, tmp_path / "a", SMALL)
    jsonl(tmp_path / "train.jsonl", [{"text": "plain"}])
    with pytest.raises(UsageError, match="line 1: a plain text has no prompt to mask"):
        finetune(model, tmp_path, tmp_path / "a", attrs.evolve(SMALL, mask_prompts=True))


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("method", "qlora2", "method 'qlora2'; choose lora, dora, full"),
        ("steps", 0, "steps 0; choose an integer of at least 1"),
        ("rate", 0, "rate 0; choose above 0 and below 1"),
        ("dropout", 1, "dropout 1; choose 0 or more, and below 1"),
        ("length", 1, "length 1; choose an integer of at least 2"),
        ("scale", float("nan"), "scale nan; choose above 0"),
    ],
)
def test_options_are_checked(option, value, message):
    with pytest.raises(UsageError) as caught:
        Training(**{option: value})
    assert str(caught.value) == message


def test_a_layer_too_many_is_refused(model, data, tmp_path):
    with pytest.raises(UsageError, match=r"layers 3; .* has 2"):
        finetune(model, data, tmp_path / "a", attrs.evolve(SMALL, layers=3))


# --- the command line, and a trained model ------------------------------------------------------------------------


def test_the_commands(model, data, tmp_path):
    line = [
        "finetune",
        str(model.path),
        "--data",
        str(data),
        "--to",
        str(tmp_path / "a"),
        "--steps",
        "3",
        "--batch",
        "2",
    ]
    line += ["--length", "24", "--report-every", "1", "--fuse", str(tmp_path / "f"), "--quantize", "int4-g32", "--json"]
    done = CliRunner().invoke(cli, line)
    assert done.exit_code == 0, done.output
    assert "step 0/3  validation" in done.stderr
    assert "step 3/3  loss" in done.stderr
    assert "tokens/s" in done.stderr
    assert json.loads(done.stdout)["steps"] == 3
    small = edgekit.open(tmp_path / "f")
    assert small.tensors["model.layers.0.mlp.up_proj.weight"].precision.name == "mlx:int4-g32"
    page = (tmp_path / "a" / "report.html").read_text()
    assert page.count("<circle") == 2
    assert "polyline" in page
    again = CliRunner().invoke(
        cli, ["fuse", str(model.path), str(tmp_path / "a"), "--to", str(tmp_path / "g.gguf"), "--recipe", "Q8_0"]
    )
    assert again.exit_code == 0, again.output
    assert edgekit.open(tmp_path / "g.gguf").format == "gguf"
    refused = CliRunner().invoke(cli, [*line[:6], "--quantize", "int4-g32"])
    assert isinstance(refused.exception, UsageError)


def test_a_fused_gguf_file_is_a_gguf_file_again(data, tmp_path):
    """Any format whose family mlx-lm has can be trained: weights are decoded where MLX cannot hold them."""
    config = attrs.evolve(BASE, vocab=len(bpe().tokens))
    source = edgekit.convert(artifact_of(random_model(config, 3), tmp_path / "memory", bpe()), tmp_path / "m.gguf")
    finetune(source, data, tmp_path / "a", SMALL)
    added = fused(edgekit.open(source.path), tmp_path / "a")
    out = edgekit.convert(added, tmp_path / "out.gguf")
    np.testing.assert_allclose(
        Transformer(out.model).logits(TOKENS), Transformer(added.model).logits(TOKENS), atol=1e-5
    )
    assert np.abs(Transformer(out.model).logits(TOKENS) - Transformer(source.model).logits(TOKENS)).max() > 1e-2


def test_the_sample_model_learns_another_style_and_keeps_it_in_four_bits(tmp_path):
    """Its validation loss falls by more than a fifth; the fused model in 4 bits keeps nine tenths of that."""
    words = ("REPORT", "UNIT", "STATUS", "NORMAL", "ALERT", "PUMP", "VALVE", "CLOSED", "OPEN", "LEVEL")
    rng = np.random.default_rng(5)
    rows = [{"text": f"{' '.join(rng.choice(words, 4))} = {rng.integers(100)};"} for _ in range(48)]
    jsonl(tmp_path / "d" / "train.jsonl", rows[:40])
    jsonl(tmp_path / "d" / "valid.jsonl", rows[40:])
    source = edgekit.convert(sample.path(), tmp_path / "m", format="mlx", dtype="F32")
    options = Training(steps=100, batch=1, rate=2e-3, length=24, report_every=50, validate_every=100)
    report = finetune(source, tmp_path / "d", tmp_path / "a", options)
    before, after = report.validation[0][1], report.validation[-1][1]
    assert report.gain > 0.2
    small = edgekit.quantize(fused(source, tmp_path / "a"), "4bit", to=tmp_path / "f", format="mlx")
    valid = examples.read_examples(tmp_path / "d" / "valid.jsonl", small, 24)
    loss = loss_of(small, valid)
    assert loss_of(source, valid) == pytest.approx(before, rel=1e-4)
    assert (before - loss) / (before - after) > 0.9


def loss_of(artifact, found) -> float:
    """Mean loss in numpy: another implementation than the one that trained."""
    forward, total, count = Transformer(artifact.model), 0.0, 0
    for item in found.items:
        logits = forward.logits(np.array(item.ids)).astype(np.float64)
        shares = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        total -= sum(shares[i - 1, item.ids[i]] for i in range(item.offset, len(item.ids)))
        count += len(item.ids) - item.offset
    return total / count


def test_the_module_is_where_its_options_say():
    assert training.REPORT == "report.json"
