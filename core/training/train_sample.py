"""Train edgekit's sample model: a small Llama that tells little stories.

    python core/training/train_sample.py            the real thing, into core/src/edgekit/sample
    python core/training/train_sample.py --steps 20 --stories 400 --out /tmp/sample      a quick trial

Everything is drawn from fixed seeds and computed by deterministic algorithms in float32; the weights are
rounded to bfloat16 once, at the end. The same versions, threads and processor give the same bytes.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import platform
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import stories
import tokenizers
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "edgekit" / "sample"

TRAIN_SEED, HELDOUT_SEED, DOCUMENT_SEED, MODEL_SEED, BATCH_SEED = 1, 2, 3, 4, 5
HELDOUT_STORIES = 48
ENDS = 0.6  # of the stories end their document; after the others comes a blank line and another story
BOS, EOS = "<s>", "</s>"
CONTEXT = 512  # tokens

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 512,
    "tie_word_embeddings": True,
    "max_position_embeddings": CONTEXT,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "initializer_range": 0.02,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
BATCH = 8  # windows of CONTEXT tokens a step
PEAK_RATE, WARMUP, WEIGHT_DECAY, CLIP = 3e-3, 100, 0.01, 1.0  # AdamW; the rate falls to zero as a cosine

PROMPT = "Once upon a time, there was a shy fox named Pip."


def main() -> None:
    """Train, measure, and write the model directory, the held-out text and the report."""
    options = arguments()
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    training, heldout = texts(options.stories)
    tokenizer = train_tokenizer(training)
    tokens = encode_documents(tokenizer, training)
    torch.manual_seed(MODEL_SEED)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**CONFIG))
    untrained = perplexity(model, tokenizer, heldout)
    loss = train(model, tokens, starts(tokens), options.steps)
    round_to_bfloat16(model)  # what is measured is what is stored
    report = {
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "training": training_facts(training, tokens, options.steps, loss),
        "heldout": heldout_facts(training, heldout, tokenizer),
        "perplexity": {
            "untrained": round(untrained, 3),
            "trained": round(perplexity(model, tokenizer, heldout), 4),
            **quantized_perplexities(model, tokenizer, heldout),
        },
        "greedy": greedy(model, tokenizer, PROMPT),
        "versions": versions(),
    }
    write(options.out, model, tokenizer, heldout, report)
    print(json.dumps(report, indent=2))


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=PACKAGE, help="where to write (default: the package)")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--stories", type=int, default=14000, help="stories in the training text")
    parser.add_argument("--threads", type=int, default=1, help="more: faster on idle cores, other rounding")
    return parser.parse_args()


# --------------------------------------------------------------------------------------- text and tokens


def texts(count: int) -> tuple[list[str], list[str]]:
    """Tell the training stories and the held-out ones, which come from another seed and share no story."""
    training, heldout = stories.stories(TRAIN_SEED, count), stories.stories(HELDOUT_SEED, HELDOUT_STORIES)
    if shared := set(training) & set(heldout):
        raise SystemExit(f"held-out stories occur in the training text: {sorted(shared)}")
    return training, heldout


def joined(told: list[str]) -> str:
    """Put stories into one text, a blank line between them."""
    return "\n\n".join(told) + "\n"


def train_tokenizer(training: list[str]) -> Tokenizer:
    """Train a byte-level BPE of GPT-2's kind, whose every text begins with BOS."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        [joined(training)[:4_000_000]],
        trainers.BpeTrainer(
            vocab_size=CONFIG["vocab_size"],
            special_tokens=[BOS, EOS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, CONFIG["bos_token_id"])]
    )
    return tokenizer


def encode_documents(tokenizer: Tokenizer, training: list[str]) -> Tensor:
    """Encode one stream of documents, BOS ... EOS, each of one story or a few."""
    rng = random.Random(DOCUMENT_SEED)
    documents, document = [], []
    for story in training:
        document.append(story)
        if rng.random() < ENDS:
            documents.append("\n\n".join(document) + EOS)
            document = []
    encodings = tokenizer.encode_batch_fast(documents)
    return torch.tensor(list(itertools.chain.from_iterable(encoding.ids for encoding in encodings)))


def starts(tokens: Tensor) -> Tensor:
    """Where documents start that have a whole window of tokens after them."""
    found = (tokens == CONFIG["bos_token_id"]).nonzero().flatten()
    return torch.masked_select(found, found < len(tokens) - CONTEXT)


def batches(tokens: Tensor, documents: Tensor, steps: int) -> Iterator[Tensor]:
    """Draw windows that begin with BOS: half at a document's start, half anywhere, as evaluation cuts them."""
    generator = torch.Generator().manual_seed(BATCH_SEED)
    for _ in range(steps):
        chosen = documents[torch.randint(len(documents), (BATCH // 2,), generator=generator)]
        anywhere = torch.randint(len(tokens) - CONTEXT, (BATCH // 2,), generator=generator)
        windows = torch.stack([tokens[at : at + CONTEXT] for at in torch.cat([chosen, anywhere]).tolist()])
        windows[:, 0] = CONFIG["bos_token_id"]
        yield windows


# ---------------------------------------------------------------------------------------------- training


def train(model: torch.nn.Module, tokens: Tensor, documents: Tensor, steps: int) -> float:
    """Train by AdamW under a cosine schedule; return the mean loss of the last 50 steps."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.95), weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate(steps))
    losses: list[float] = []
    begun = time.monotonic()
    for step, windows in enumerate(batches(tokens, documents, steps), 1):
        loss = cross_entropy(model, windows).mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % 50 == 0:
            print(f"step {step}  loss {mean(losses[-50:]):.4f}  {time.monotonic() - begun:.0f} s", file=sys.stderr)
    return mean(losses[-50:])


def rate(steps: int) -> Callable[[int], float]:
    """The share of the peak rate at each step: a linear warm-up, then half a cosine down to zero."""
    warmup = min(WARMUP, steps // 2 + 1)

    def share(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / (steps - warmup))

    return share


@torch.no_grad()
def round_to_bfloat16(model: torch.nn.Module) -> None:
    """Round the weights, and only them: rotary frequencies must stay float32."""
    for weight in model.parameters():
        weight.copy_(weight.bfloat16())


def cross_entropy(model: torch.nn.Module, windows: Tensor) -> Tensor:
    """Losses in nats of all tokens but the first of [windows, tokens], flat."""
    logits = model(input_ids=windows[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten(), reduction="none")


def mean(values: list[float]) -> float:
    """The arithmetic mean."""
    return sum(values) / len(values)


# --------------------------------------------------------------------------------------------- measuring


@torch.no_grad()
def perplexity(model: torch.nn.Module, tokenizer: Tokenizer, heldout: list[str]) -> float:
    """Exp of the mean loss over the whole held-out text, in windows of BOS and up to CONTEXT - 1 tokens."""
    ids = torch.tensor(tokenizer.encode(joined(heldout), add_special_tokens=False).ids)
    first = torch.tensor([CONFIG["bos_token_id"]])
    windows = (torch.cat([first, part])[None] for part in torch.split(ids, CONTEXT - 1))
    return math.exp(torch.cat([cross_entropy(model, window).double() for window in windows]).mean().item())


def training_facts(training: list[str], tokens: Tensor, steps: int, loss: float) -> dict[str, Any]:
    """How much text there was, how much of it was drawn, and the loss that was left."""
    return {
        "stories": len(training),
        "tokens": len(tokens),
        "steps": steps,
        "tokens_seen": steps * BATCH * CONTEXT,
        "final_loss": round(loss, 4),
        "seeds": {"text": TRAIN_SEED, "documents": DOCUMENT_SEED, "model": MODEL_SEED, "batches": BATCH_SEED},
    }


def heldout_facts(training: list[str], heldout: list[str], tokenizer: Tokenizer) -> dict[str, Any]:
    """How long the held-out text is, and how much of it training has seen."""
    seen = set(itertools.chain.from_iterable(story.splitlines() for story in training))
    paragraphs = list(itertools.chain.from_iterable(story.splitlines() for story in heldout))
    return {
        "seed": HELDOUT_SEED,
        "stories": len(heldout),
        "bytes": len(joined(heldout).encode()),
        "tokens": len(tokenizer.encode(joined(heldout), add_special_tokens=False).ids),
        "stories_seen_in_training": len(set(heldout) & set(training)),
        "paragraphs": len(paragraphs),
        "paragraphs_seen_in_training": sum(paragraph in seen for paragraph in paragraphs),
    }


def quantized_perplexities(model: torch.nn.Module, tokenizer: Tokenizer, heldout: list[str]) -> dict[str, float]:
    """Perplexity with every matrix rounded to nearest, in groups of 32, from 8 bits down to 1."""
    return {
        f"int{bits}-{kind}-g32": round(perplexity(quantized(model, bits, kind), tokenizer, heldout), 4)
        for kind in ("sym", "asym")
        for bits in range(8, 0, -1)
    }


@torch.no_grad()
def quantized(model: torch.nn.Module, bits: int, kind: str) -> torch.nn.Module:
    """Copy the model with its matrices (the embedding too) rounded; the norms stay."""
    rounder = {"sym": round_symmetric, "asym": round_asymmetric}[kind]
    result = copy.deepcopy(model)
    for weight in result.parameters():
        if weight.ndim == 2:
            weight.copy_(rounder(weight.reshape(-1, 32), bits).reshape(weight.shape))
    return result


def round_symmetric(groups: Tensor, bits: int) -> Tensor:
    """Textbook rounding of [groups, 32] to 2^bits - 1 levels around zero; one bit keeps sign and mean."""
    if bits == 1:
        signs = torch.where(groups >= 0, 1.0, -1.0)
        return signs * groups.abs().mean(1, keepdim=True)
    top = 2 ** (bits - 1) - 1
    scale = groups.abs().amax(1, keepdim=True) / top
    codes = (groups / scale).round().clamp(-top, top)
    rounded: Tensor = scale * codes
    return rounded


def round_asymmetric(groups: Tensor, bits: int) -> Tensor:
    """Textbook rounding of [groups, 32] to 2^bits levels that include an exact zero."""
    top = 2**bits - 1
    low, high = groups.amin(1, keepdim=True).clamp(max=0), groups.amax(1, keepdim=True).clamp(min=0)
    scale = (high - low) / top
    zero = (-low / scale).round()
    codes = ((groups / scale).round() + zero).clamp(0, top)
    rounded: Tensor = scale * (codes - zero)
    return rounded


@torch.no_grad()
def greedy(model: torch.nn.Module, tokenizer: Tokenizer, prompt: str, limit: int = 300) -> str:
    """Continue the prompt by the likeliest token until EOS."""
    ids = tokenizer.encode(prompt).ids
    for _ in range(limit):
        following = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        if following == CONFIG["eos_token_id"]:
            break
        ids.append(following)
    return str(tokenizer.decode(ids))


def versions() -> dict[str, str]:
    """What the result depends on besides this script and its seeds."""
    packages = {"torch": torch, "transformers": transformers, "tokenizers": tokenizers, "safetensors": safetensors}
    return {"python": platform.python_version(), **{name: package.__version__ for name, package in packages.items()}}


# ----------------------------------------------------------------------------------------------- writing


def write(out: Path, model: torch.nn.Module, tokenizer: Tokenizer, heldout: list[str], report: dict[str, Any]) -> None:
    """Write the directory as Hugging Face has it, with the held-out text, report and provenance beside it."""
    directory = out / "model"
    directory.mkdir(parents=True, exist_ok=True)
    weights = {name: weight.bfloat16() for name, weight in model.named_parameters()}  # the tied head is not listed
    safetensors.torch.save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(directory / "tokenizer.json"))
    write_json(directory / "config.json", {**CONFIG, "torch_dtype": "bfloat16", "use_cache": True})
    ends = {"bos_token_id": CONFIG["bos_token_id"], "eos_token_id": CONFIG["eos_token_id"]}
    write_json(directory / "generation_config.json", {**ends, "do_sample": False})
    write_json(directory / "special_tokens_map.json", {"bos_token": BOS, "eos_token": EOS})
    write_json(directory / "tokenizer_config.json", tokenizer_config())
    (out / "heldout.txt").write_text(joined(heldout), encoding="ascii")
    write_json(out / "report.json", report)
    (out / "PROVENANCE.md").write_text(provenance(report), encoding="ascii")


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write readable JSON, ended by a newline."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="ascii")


def tokenizer_config() -> dict[str, Any]:
    """What transformers wants to know besides tokenizer.json."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT,
    }


def provenance(report: dict[str, Any]) -> str:
    """Say in words where the files of this directory come from."""
    training, heldout, found = report["training"], report["heldout"], report["perplexity"]
    used = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return f"""# Where the sample model comes from

Licence: Apache-2.0, as the rest of edgekit. Text, tokenizer and weights were all made by this project;
nothing was taken from anybody else's data or models.

- **Text**: `core/training/stories.py`, a seeded grammar.
  - Training: seed {TRAIN_SEED}, {training["stories"]:,} stories, {training["tokens"]:,} tokens.
  - Held out, `heldout.txt`: seed {HELDOUT_SEED}, {heldout["stories"]} stories,
    {heldout["bytes"]:,} bytes, {heldout["tokens"]:,} tokens.
  - Of the held-out text, the training text has {heldout["stories_seen_in_training"]} of {heldout["stories"]} stories
    and {heldout["paragraphs_seen_in_training"]} of {heldout["paragraphs"]} paragraphs.
- **Tokenizer**: byte-level BPE, {CONFIG["vocab_size"]} tokens, trained on the first 4 MB of the training text.
- **Model**: Llama architecture, {report["parameters"]:,} parameters, `core/training/train_sample.py`.
  - {training["steps"]:,} steps of {BATCH} x {CONTEXT} tokens in float32 on a CPU: AdamW, peak rate {PEAK_RATE}, cosine.
  - Rounded to bfloat16 at the end. Seeds: model {MODEL_SEED}, batches {BATCH_SEED}, documents {DOCUMENT_SEED}.
  - Final training loss: {training["final_loss"]} nats a token.
- **Perplexity** a token of the held-out text: untrained {found["untrained"]}, trained {found["trained"]}.
- **Versions**: {used}.

All figures are from `report.json`, which the training script wrote.
"""


if __name__ == "__main__":
    main()
