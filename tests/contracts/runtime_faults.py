"""Wrong runtimes: numpy's, each with one thing wrong. `RUNTIMES` says which checks are right, and what they say."""

import functools
import itertools

import attrs
import numpy as np
from format_faults import halves_for_pairs

from edgekit.architectures.forward import Transformer
from edgekit.errors import UsageError
from edgekit.runtime import NumpyRuntime
from edgekit.tensor import Tensor


class Wrong(NumpyRuntime):
    """Opens as the numpy runtime does."""

    name = "wrong"

    @classmethod
    def open(cls, artifact):
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


class AnyOption(Wrong):
    @classmethod
    def open(cls, artifact, **options):
        return cls(artifact, Transformer(artifact.model), **{k: v for k, v in options.items() if k == "cache"})


class NamelessOption(Wrong):
    @classmethod
    def open(cls, artifact, **options):
        if options:
            raise UsageError("bad option")
        return super().open(artifact)


def letters(self, prompt, options, right):
    return right(stop=tuple(options.get("stop") or ()))


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
    "unknown ids clipped": (logits_of(clipped_ids), {"check_unknown_tokens"}, "no error is raised"),
    "a long prompt cut off": (logits_of(cut_off), {"check_context_overflow"}, "no error is raised"),
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
        method(
            stream=lambda self, prompt, **o: iter(list(NumpyRuntime.stream(self, prompt, **o))[:-1]),
            generate=lambda self, prompt, **o: "".join(NumpyRuntime.stream(self, prompt, **o)),
        ),
        {"check_streaming"}, "streamed it is",
    ),
    "a stream that counts nothing": (
        method(stream=lambda self, prompt, **o: iter(list(NumpyRuntime.stream(self, prompt, **o)))),
        {"check_counts"}, "Generation is expected",
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
    "unknown options are taken and left unused": (AnyOption, {"check_unknown_options"}, "no error is raised"),
    "the error of an unknown option does not name it": (NamelessOption, {"check_unknown_options"}, "must name the option"),
    "a stop text alone is its letters": (generating(letters), {"check_stop_alone"}, "both are one stop text"),
    "emoji raise UnicodeEncodeError": (generating(no_emoji), {"check_any_text"}, "UnicodeEncodeError"),
    "answers after it was closed": (method(close=answers_after_close), {"check_close"}, "no error is raised"),
}  # fmt: skip


def without(option):
    """A runtime that takes an option and does not use it."""

    def generate(self, prompt, **options):
        return NumpyRuntime.generate(self, prompt, **{k: v for k, v in options.items() if k != option})

    def stream(self, prompt, **options):
        return NumpyRuntime.stream(self, prompt, **{k: v for k, v in options.items() if k != option})

    return method(generate=generate, stream=stream)


class Inverted(Wrong):
    """Multiplies by the temperature where it divides."""

    def stream(self, prompt, **options):  # which `generate` joins
        return super().stream(prompt, **inverted(options))


def inverted(options):
    return {**options, "temperature": 1 / options["temperature"]} if options.get("temperature") else options


def late_positions(self, tokens, right):
    return right([0, *tokens])[1:] if np.ndim(tokens) == 1 and 0 < len(tokens) < 48 else right(tokens)


class BosTwice(Wrong):
    """The tokenizer adds one, and the runtime another."""

    def tokens(self, prompt, **options):
        tokenizer = self.artifact.tokenizer
        first = [tokenizer.bos] if tokenizer.add_bos else []
        return super().tokens([*first, *prompt], **options)


class NoBos(Wrong):
    def tokens(self, prompt, **options):
        return super().tokens(list(prompt)[1:] if self.artifact.tokenizer.add_bos else prompt, **options)


RUNTIMES |= {
    "positions off by one": (logits_of(late_positions), {"check_logits"}, "off by"),
    "BOS forgotten": (NoBos, {"check_beginning"}, "the likeliest"),
    "BOS put twice": (BosTwice, {"check_beginning"}, "the likeliest"),
    "top_k is not used": (without("top_k"), {"check_certain"}, "'top_k': 1"),
    "top_p is not used": (without("top_p"), {"check_certain"}, "'top_p': 1e-06"),
    "the temperature multiplies": (Inverted, {"check_certain"}, "'temperature': 1e-05"),
}
