"""The kit is tested by faults: formats, runtimes and passes that are wrong in ways that real projects were."""

import functools
import itertools
from pathlib import Path

import attrs
import numpy as np
import pytest

from edgekit.architectures.forward import Transformer
from edgekit.artifact import Artifact
from edgekit.errors import EdgekitError
from edgekit.formats.hf import HuggingFaceFormat
from edgekit.manifest import Manifest
from edgekit.recipe import Plan
from edgekit.runtime import NumpyRuntime
from edgekit.tensor import Tensor
from edgekit.testing import Profile, run_format_checks, run_pass_checks, run_runtime_checks
from edgekit.testing import formats as format_kit
from edgekit.testing import passes as pass_kit
from edgekit.testing import runtimes as runtime_kit
from edgekit.testing._trips import encoded, plan_of

pytest.importorskip("tokenizers", reason="runtimes cut text with it; pip install 'edgekit[text]'")

FAST = Profile("quick", seeds=1, examples=5, rows=4)


def first_failure(kit, run, subject):
    for name in kit.KIT.checks:
        (result,) = run(subject, checks=[name], profile=FAST)
        if not result.ok:
            return result
    return None


# Formats: the house's own, with one thing wrong.


class Opened(HuggingFaceFormat):
    """Changes the artifact that it opens."""

    def change(self, artifact):
        return artifact

    def open(self, path):
        return self.change(super().open(path))


def with_model(function):
    """A format whose artifacts have another model."""

    def change(self, artifact):
        return attrs.evolve(artifact, load_model=lambda: function(artifact.load_model()))

    return type("Changed", (Opened,), {"change": change})


def with_tokenizer(**changes):
    def change(self, artifact):
        return attrs.evolve(artifact, load_tokenizer=lambda: evolved(artifact.load_tokenizer(), changes))

    return type("Changed", (Opened,), {"change": change})


def evolved(record, changes):
    return attrs.evolve(record, **{k: v(getattr(record, k)) if callable(v) else v for k, v in changes.items()})


def with_config(**changes):
    return with_model(lambda model: attrs.evolve(model, config=evolved(model.config, changes)))


def with_tensor(name, function):
    def change(model):
        values = function(model.tensors[name].float32())
        return attrs.evolve(model, tensors={**model.tensors, name: Tensor.of(name, np.ascontiguousarray(values))})

    return with_model(change)


def halves_for_pairs(q):
    """The rows of each head in the other rotary order."""
    return q.reshape(-1, 2, 8, q.shape[1]).swapaxes(1, 2).reshape(q.shape)


class MatchesAll(HuggingFaceFormat):
    def matches(self, path):
        return True


class Careless(HuggingFaceFormat):
    """Its writer is wrapped; `wrap` says in what."""

    def writer(self, path, layout, plan, manifest):
        return self.wrap(super().writer(path, layout, plan, manifest), path)


@attrs.define
class Wrapped:
    inner: object
    path: Path

    @property
    def done(self):
        return self.inner.done

    def write(self, tensor):
        self.inner.write(tensor)

    def commit(self):
        self.inner.commit()

    def close(self, keep=False):
        self.inner.close(keep)


class ShowsEarly(Wrapped):
    def write(self, tensor):
        self.path.mkdir(exist_ok=True)
        super().write(tensor)


class LeavesScraps(Wrapped):
    def close(self, keep=False):
        super().close(keep)
        self.path.with_name("model.tmp").write_text("left")


class Clocked(Wrapped):
    clock = itertools.count()

    def commit(self):
        super().commit()
        (self.path / "config.json").write_text((self.path / "config.json").read_text() + " " * next(self.clock))


class Incomplete(Wrapped):
    """Takes what comes, in any order, and fills up what is missing."""

    def commit(self):
        try:
            super().commit()
        except EdgekitError:
            self.path.mkdir(exist_ok=True)

    def write(self, tensor):
        try:
            super().write(tensor)
        except EdgekitError:
            return


class StartsAgain(Wrapped):
    @property
    def done(self):
        return max(0, self.inner.done - 1)


class SwapsNibbles(Wrapped):
    def write(self, tensor):
        if "codes" in tensor.parts:
            codes = tensor.parts["codes"]
            tensor = attrs.evolve(
                tensor, parts={**tensor.parts, "codes": (codes << 4 | codes >> 4).astype(codes.dtype)}
            )
        super().write(tensor)


class Rounds(Wrapped):
    """Stores every float32 in float16's precision."""

    def write(self, tensor):
        if tensor.precision.kind == "F32":
            values = tensor.parts["values"].astype(np.float16).astype(np.float32)
            tensor = attrs.evolve(tensor, parts={"values": values})
        super().write(tensor)


def careless(wrapper):
    return type("Careless", (Careless,), {"wrap": staticmethod(wrapper)})


def wrong_slices(model):
    """Slices that do not begin at the first row come one row late."""

    def late(tensor):
        def read_rows(start, stop, read=tensor.read_rows):
            return read(max(0, start - 1), stop - 1) if start else read(start, stop)

        return attrs.evolve(tensor, read_rows=read_rows)

    return attrs.evolve(model, tensors={name: late(tensor) for name, tensor in model.tensors.items()})


class Trusting(HuggingFaceFormat):
    """Fills up with zeros what a file lacks."""

    def open(self, path):
        file = path / "model.safetensors"
        data = file.read_bytes()
        try:
            return super().open(path)
        except EdgekitError:
            length = int.from_bytes(data[:8].ljust(8, b"\0"), "little")
            if length > len(data):
                raise
            file.write_bytes(data + bytes(1 << 20))
            try:
                return super().open(path)
            except EdgekitError:
                return Artifact(path, "hf", (file,), {}, {}, lambda: None, lambda: None)


class Untyped(HuggingFaceFormat):
    """Lets Python's own exceptions out."""

    def open(self, path):
        try:
            return super().open(path)
        except EdgekitError as error:
            raise KeyError("tensors") from error


def lost(name):
    return with_model(lambda m: attrs.evolve(m, tensors={k: v for k, v in m.tensors.items() if k != name}))


FORMATS = {
    "rows of a rotary projection in the other order": (
        with_tensor("blk.0.attn_q.weight", halves_for_pairs), "check_tensors", "rows in another order",
    ),
    "a matrix transposed": (with_tensor("blk.0.ffn_up.weight", np.transpose), "check_tensors", "rows|comes back|shape"),
    "the output matrix lost, as if it were tied": (lost("output.weight"), "check_tensors", "is gone"),
    "a norm off by one, as Gemma has it": (with_tensor("output_norm.weight", lambda w: w + 1), "check_tensors", ""),
    "float32 stored in float16's precision": (careless(Rounds), "check_tensors", "comes back as"),
    "the norm's epsilon lost": (with_config(norm_eps=1e-6), "check_config", "norm_eps was 1e-05"),
    "the rotary base lost": (with_config(rope_theta=10000.0), "check_config", "rope_theta"),
    "key and value heads taken for heads": (with_config(kv_heads=lambda n: n * 2), "check_config", "kv_heads"),
    "a context of the default length": (with_config(context=2048), "check_config", "context"),
    "merges lost": (with_tokenizer(merges=()), "check_tokenizer", "merges of the bpe tokenizer"),
    "merges in another order": (with_tokenizer(merges=lambda m: m[::-1]), "check_tokenizer", "number 0"),
    "scores in another order": (with_tokenizer(scores=lambda s: s[::-1]), "check_tokenizer", "another order"),
    "the end token off by one": (with_tokenizer(eos=lambda n: n + 1), "check_tokenizer", "eos"),
    "a BOS that nobody asked for": (with_tokenizer(add_bos=True), "check_tokenizer", "add_bos"),
    "the chat template lost": (with_tokenizer(chat_template=None), "check_tokenizer", "chat_template"),
    "control tokens taken for text": (with_tokenizer(types=lambda t: (t[-1],) * len(t)), "check_tokenizer", "types"),
    "no tokenizer": (
        type("Mute", (Opened,), {"change": lambda s, a: attrs.evolve(a, load_tokenizer=lambda: None)}),
        "check_tokenizer", "is gone",
    ),
    "every file taken for its own": (MatchesAll, "check_matches", "for its own"),
    "the target shows before commit": (careless(ShowsEarly), "check_atomic", "before commit|behind"),
    "scraps are left behind": (careless(LeavesScraps), "check_atomic", "model.tmp"),
    "a clock in the file": (careless(Clocked), "check_deterministic", "config.json differs"),
    "missing tensors accepted": (careless(Incomplete), "check_complete", "nothing was said"),
    "resuming begins one tensor too early": (careless(StartsAgain), "check_resumes", ""),
    "nibbles swapped on the way to the file": (careless(SwapsNibbles), "check_precisions", "two codes of every byte"),
    "row slices one row late": (with_model(wrong_slices), "check_row_slices", "slices"),
    "truncation filled up with zeros": (Trusting, "check_truncated", "as if it were whole"),
    "Python's own exceptions for bad files": (Untyped, "check_truncated", "KeyError"),
}  # fmt: skip


@pytest.mark.parametrize("what", FORMATS)
def test_every_faulty_format_is_named(what):
    wrong, check, says = FORMATS[what]
    found = first_failure(format_kit, functools.partial(run_format_checks, suffix=""), wrong())
    assert found is not None, f"{what}: nobody noticed"
    assert found.check == check, found.message
    assert any(part in found.message for part in says.split("|")), found.message


def test_the_format_of_the_house_passes():
    assert [r.message for r in run_format_checks("hf", profile=FAST) if not r.ok] == []


# Runtimes: the numpy one, with one thing wrong.


class Wrong(NumpyRuntime):
    """Opens as the numpy runtime does."""

    name = "wrong"

    @classmethod
    def open(cls, artifact, **options):
        return cls(artifact, Transformer(cls.change(artifact.model)))

    @staticmethod
    def change(model):
        return model


def changed_model(function):
    return type("Wrong", (Wrong,), {"change": staticmethod(function)})


def tensor_of(model, name, function):
    values = np.ascontiguousarray(function(model.tensors[name].float32()))
    return attrs.evolve(model, tensors={**model.tensors, name: Tensor.of(name, values)})


def rotary(model):
    return functools.reduce(
        lambda m, name: tensor_of(m, name, halves_for_pairs), ["blk.0.attn_q.weight", "blk.0.attn_k.weight"], model
    )


def bfloat16(w):
    return (w.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def method(**methods):
    return type("Wrong", (Wrong,), methods)


def logits_of(function):
    """A runtime whose logits pass through a function of the runtime, the tokens and the right ones."""

    def logits(self, tokens):
        return function(self, tokens, lambda t: NumpyRuntime.logits(self, t))

    return method(logits=logits)


def cache_kept(self, tokens, right):
    before = getattr(cache_kept, "before", [])[-4:]
    cache_kept.before = list(tokens)
    return right([*before, *tokens])[len(before) :] if len(before) + len(tokens) <= 48 else right(tokens)


def sees_the_future(self, tokens, right):
    logits = right(tokens)
    return logits + logits[-1] * np.float32(0.01) if np.ndim(tokens) == 1 and len(tokens) > 1 else logits


def mixed_batch(self, tokens, right):
    logits = right(tokens)
    return logits[::-1] if np.ndim(tokens) == 2 else logits


def clipped_ids(self, tokens, right):
    return (
        right(np.clip(np.asarray(tokens, np.int64), 0, self.artifact.model.config.vocab - 1))
        if np.size(tokens)
        else (right(tokens))
    )


def cut_off(self, tokens, right):
    return right(tokens[-48:] if np.ndim(tokens) == 1 else tokens)


def generating(function):
    """A runtime whose text passes through a function of the runtime, what was asked, and the right answer."""

    def generate(self, prompt, **options):
        return function(self, prompt, options, lambda p=prompt, **o: NumpyRuntime.generate(self, p, **{**options, **o}))

    return method(generate=generate)


def answers_after_close(self):
    return None


def one_token_more(self, prompt, options, right):
    return right(max_tokens=1) if options.get("max_tokens") == 0 else right()


def stop_included(self, prompt, options, right):
    stop = options.get("stop", ())
    return right() + stop[0] if stop else right()


def no_emoji(self, prompt, options, right):
    prompt.encode("ascii")
    return right()


def streaming(**facts):
    """A runtime whose streams say something else at their end."""

    def stream(self, prompt, **options):
        text = NumpyRuntime.stream(self, prompt, **options)
        pieces = list(text)
        return attrs.evolve(text, pieces=iter(pieces), **facts)

    return method(stream=stream)


def without_template(self, messages):
    return "\n".join(message["content"] for message in messages)


RANDOM = itertools.count()
RUNTIMES = {
    "rotary pairs for halves": (changed_model(rotary), {"check_logits"}, "rotary"),
    "weights rounded to bfloat16": (
        changed_model(lambda m: tensor_of(m, "output.weight", bfloat16)), {"check_logits"}, "are stated",
    ),
    "a norm's epsilon a hundred times too large": (
        changed_model(lambda m: attrs.evolve(m, config=attrs.evolve(m.config, norm_eps=1e-2))), {"check_logits"}, "",
    ),
    "heads share keys and values in another order": (
        changed_model(lambda m: tensor_of(m, "blk.0.attn_k.weight", lambda w: np.roll(w, 16, axis=0))),
        {"check_logits"}, "",
    ),
    "logits in float64": (logits_of(lambda s, t, right: right(t).astype(np.float64)), {"check_logits"}, "float64"),
    "logits of the last token only": (logits_of(lambda s, t, right: right(t)[-1]), {"check_logits"}, "of shape"),
    "a cache that is not emptied": (logits_of(cache_kept), {"check_logits", "check_no_state"}, ""),
    "no causal mask": (logits_of(sees_the_future), {"check_logits", "check_causal"}, ""),
    "rows of a batch mixed up": (logits_of(mixed_batch), {"check_batch"}, "in a batch"),
    "unknown ids clipped": (logits_of(clipped_ids), {"check_unknown_tokens"}, "nothing is said"),
    "a long prompt cut off": (logits_of(cut_off), {"check_context_overflow"}, "nothing is said"),
    "greedy text by chance": (
        generating(
            lambda s, p, o, right: right(**({} if o.get("temperature") else {"temperature": 2.0, "seed": next(RANDOM)}))
        ),
        {"check_greedy"}, "from call to call",
    ),
    "greedy text that is not the likeliest": (
        generating(lambda s, p, o, right: right(**({} if o.get("temperature") else {"temperature": 2.0, "seed": 9}))),
        {"check_greedy"}, "likeliest",
    ),
    "the last piece of a stream lost": (
        method(stream=lambda self, prompt, **o: iter(list(NumpyRuntime.stream(self, prompt, **o))[:-1])),
        {"check_streaming"}, "streamed it is",
    ),
    "a stream that counts nothing": (
        method(stream=lambda self, prompt, **o: iter(list(NumpyRuntime.stream(self, prompt, **o)))),
        {"check_counts"}, "Generation is wanted",
    ),
    "tokens of the prompt not counted": (streaming(prompt_tokens=0), {"check_counts"}, "the tokenizer makes"),
    "tokens of the answer not counted": (streaming(completion_tokens=0), {"check_counts"}, "it says 0 tokens"),
    "every text ends by itself": (streaming(finish_reason="stop"), {"check_counts"}, "'stop'"),
    "chat without the model's template": (method(prompt=without_template), {"check_chat"}, "template makes"),
    "chat that ignores max_tokens": (
        method(chat=lambda self, messages, **o: NumpyRuntime.chat(self, messages)), {"check_chat"}, "say otherwise",
    ),
    "vectors of any length": (
        method(embed=lambda self, text: NumpyRuntime.embed(self, text) * 2), {"check_embedding"}, "has the length",
    ),
    "the same vector for every text": (
        method(embed=lambda self, text: NumpyRuntime.embed(self, "a") if text else NumpyRuntime.embed(self, text)),
        {"check_embedding"}, "another text the same",
    ),
    "the seed is not used": (generating(lambda s, p, o, right: right(**({"seed": 7} if o.get("temperature") else {}))),
        {"check_sampling", "check_streaming"}, "",
    ),
    "max_tokens of 0 gives one": (generating(one_token_more), {"check_sampling"}, "max_tokens=0"),
    "the stop text is part of the answer": (generating(stop_included), {"check_stop", "check_streaming"}, ""),
    "emoji raise UnicodeEncodeError": (generating(no_emoji), {"check_any_text"}, "UnicodeEncodeError"),
    "answers after it was closed": (method(close=answers_after_close), {"check_close"}, "nothing is said"),
}  # fmt: skip


@pytest.mark.parametrize("what", RUNTIMES)
def test_every_faulty_runtime_is_named(what):
    wrong, checks, says = RUNTIMES[what]
    found = first_failure(runtime_kit, run_runtime_checks, wrong.open)
    assert found is not None, f"{what}: nobody noticed"
    assert found.check in checks, found.message
    assert says in found.message


def test_the_runtime_of_the_house_passes():
    assert [r.message for r in run_runtime_checks("numpy", profile=FAST) if not r.ok] == []


# Passes: magnitude pruning, right and wrong.


@attrs.define
class Prune:
    """Sets the smallest half of every matrix to zero."""

    name = "prune"
    format = HuggingFaceFormat()

    def run(self, source, to, **options):
        layout = self.format.layout(source)
        plan: Plan = plan_of(layout)
        writer = self.format.writer(to, layout, plan, Manifest(quality=self.quality()))
        try:
            for slot, assignment in zip(layout.slots, plan, strict=True):
                tensor = encoded(slot, assignment)
                writer.write(attrs.evolve(tensor, parts={k: self.pruned(v) for k, v in tensor.parts.items()}))
            writer.commit()
        finally:
            writer.close()
        return self.format.open(to)

    def quality(self):
        return {"sparsity": 0.5}

    def pruned(self, values):
        return np.where(np.abs(values) < np.median(np.abs(values)), np.float32(0), values).astype(values.dtype)


class WithNaN(Prune):
    def pruned(self, values):
        with np.errstate(all="ignore"):
            return values / np.where(np.abs(values) < 0.01, np.float32(0), np.float32(1))


class Silent(Prune):
    def quality(self):
        return {}


class Worded(Prune):
    def quality(self):
        return {"perplexity": "good"}


class WritesBack(Prune):
    def run(self, source, to, **options):
        file = (
            next(f for f in source.files if f.name == "config.json")
            if any(f.name == "config.json" for f in source.files)
            else source.files[0]
        )
        file.write_bytes(file.read_bytes() + b" ")
        return super().run(source, to, **options)


class ByChance(Prune):
    def pruned(self, values):
        return super().pruned(values) * np.float32(1 + 1e-3 * next(RANDOM))


class Untidy(Prune):
    def run(self, source, to, **options):
        to.with_name("scratch.bin").write_bytes(b"scratch")
        return super().run(source, to, **options)


PASSES = {
    "infinite weights": (WithNaN, "check_artifact_valid"),
    "nothing reported": (Silent, "check_quality_reported"),
    "quality in words": (Worded, "check_quality_reported"),
    "writes to its source": (WritesBack, "check_source_unwritten"),
    "another result each time": (ByChance, "check_deterministic"),
    "leaves its scratch file": (Untidy, "check_nothing_left"),
}


@pytest.mark.parametrize("what", PASSES)
def test_every_faulty_pass_is_named(what):
    wrong, check = PASSES[what]
    found = first_failure(pass_kit, run_pass_checks, wrong())
    assert found is not None, f"{what}: nobody noticed"
    assert found.check == check, found.message


def test_a_right_pass_passes():
    assert [r.message for r in run_pass_checks(Prune(), profile=FAST) if not r.ok] == []
