"""The base of runtimes that produce token ids: texts, chat, stop texts, and the context's limit."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Self, Unpack

import attrs
import numpy as np
import numpy.typing as npt

from edgekit.architectures.forward import Transformer, token_ids
from edgekit.artifact import Artifact
from edgekit.errors import ContextOverflowError, NonFiniteError, UnsupportedModelError, UsageError
from edgekit.runtime import chat
from edgekit.runtime._calls import Tools, after_thought, demanded_calls
from edgekit.runtime._dialects import Dialect, Thought, dialect_of, marks_of, thought_of, variables_of
from edgekit.runtime._parse import parts
from edgekit.runtime._structured import Grammar, Words
from edgekit.runtime._watch import MOST_SCORES, TokenScore, Watch, log_softmax, score
from edgekit.runtime.arguments import Prompt, Stop, integer, prompt_given, stop_texts
from edgekit.runtime.chat import Messages
from edgekit.runtime.generation import Generation, GenerationOptions, Sampling, SamplingOptions, until
from edgekit.runtime.reply import Reply, ReplyOptions
from edgekit.tokenizer._record import Tokenizer
from edgekit.tokenizer._vocabulary import TokenType
from edgekit.typing import F32, I64

#: Scores that `TextRuntime.scores` computes at once, tokens times vocabulary: 1 GiB.
MOST_PROMPT_SCORES = 1 << 28


class TextRuntime:
    """A base for runtimes that continue token ids; texts are tokenized with the artifact's tokenizer.

    A runtime that derives from it has `artifact`, and says what its model computes: `longest`, `vocabulary`, `after`
    and `rows`. It gets `context`, `tokens`, `logits`, `generate`, `stream`, `chat`, `prompt`, `encode` and others,
    which then behave as in all other runtimes. One that generates tokens by itself overrides `context` and `tokens`
    instead; one that tokenizes texts itself overrides `encode`, `prompt` and `pieces` together.

    Attributes:
        artifact: the model.
        most_context: largest number of tokens that was requested; None for as many as the model computes.
        lender: the runtime that holds the model, if this one computes with another's.
    """

    artifact: Artifact
    most_context: int | None = None
    lender: TextRuntime | None = None

    def longest(self) -> int:
        """Return the largest number of tokens of a sequence that the model computes.

        Raises:
            UnsupportedModelError: the model is no language model.
        """
        raise NotImplementedError

    def vocabulary(self) -> int:
        """Return the number of token ids that the model predicts.

        Raises:
            UnsupportedModelError: it predicts none, as an encoder.
        """
        raise NotImplementedError

    def after(self, ids: list[int]) -> F32:
        """Return the logits of the token after the ids, float32 [vocab]; states of earlier calls may be reused.

        Args:
            ids: at least one, all in the vocabulary, no more than the context holds.

        Raises:
            ResourceError: the device fails to compute, for example for lack of memory.
        """
        raise NotImplementedError

    def rows(self, ids: I64) -> F32:
        """Return the logits of every next token, float32 [batch, n, vocab], for ids [batch, n]; raises as `after`."""
        raise NotImplementedError

    @property
    def context(self) -> int:
        """The largest number of tokens: what the model computes, and at most as many as requested."""
        most = self.longest()
        return most if self.most_context is None else min(most, self.most_context)

    def tokens(
        self, prompt: Sequence[int], *, max_tokens: int | None = None, sampling: Sampling | None = None
    ) -> Iterator[int]:
        """Yield the token ids that continue a prompt; ends only after `max_tokens`, not at an end token.

        Invalid arguments raise here, before the first token is requested.

        Args:
            prompt: at least one id.
            max_tokens: how many; None for as many as the context has room for.
            sampling: how they are chosen; None takes the most likely one.

        Raises:
            UsageError: the prompt is empty, or its ids are not integers, or not in the vocabulary.
            ContextOverflowError: the prompt and `max_tokens` together are longer than the context.
            ResourceError: the device fails to compute, for example for lack of memory.
            UnsupportedModelError: the model is an encoder.
        """
        ids = self.checked_ids(prompt, self.vocabulary()).tolist()
        return self.continued(ids, self.room(len(ids), max_tokens), sampling or Sampling())

    def continued(self, ids: list[int], count: int, sampling: Sampling) -> Iterator[int]:
        """Yield tokens after a prompt that is checked, one at a time.

        Args:
            ids: the prompt.
            count: number of tokens.
            sampling: how they are chosen.
        """
        return self._continue(ids, count, sampling.sampler(ids))

    def _continue(self, ids: list[int], count: int, choose: Callable[[F32], int]) -> Iterator[int]:
        for _ in range(count):
            token = choose(self.after(ids))
            yield token
            ids.append(token)

    def close(self) -> None:
        """Release the model; may be called more than once."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def generate(self, prompt: Prompt, **options: Unpack[GenerationOptions]) -> str:
        """Continue a text until the model ends it.

        Args:
            prompt: the text so far, or its token ids.
            options: how long the text gets and how tokens are chosen; see `edgekit.runtime.GenerationOptions`.

        Returns:
            What follows the prompt.

        Raises:
            UsageError: an empty prompt, no tokenizer, an option out of range, or a grammar that nothing matches.
            ContextOverflowError: the prompt and `max_tokens` do not fit the model's context.
            MissingPluginError: a schema or grammar, and llguidance is not installed.
        """
        return "".join(self.stream(prompt, **options))

    def stream(self, prompt: Prompt, **options: Unpack[GenerationOptions]) -> Generation:
        """Generate as `generate`, piece by piece, in whole characters and without any part of a stop text."""
        asked = Asked.of(**options)
        return self._stream(self.prompt_ids(prompt), asked)

    def _stream(self, ids: list[int], asked: Asked, marks: Mapping[int, str] | None = None) -> Generation:
        if not ids:
            empty = "the prompt has no tokens; give at least one character"
            raise UsageError(empty, public=empty)
        watch = self._watch(asked)
        sampling = attrs.evolve(asked.sampling, step=watch) if watch else asked.sampling
        tokens = self.tokens(ids, max_tokens=asked.max_tokens, sampling=sampling)
        ended = frozenset(asked.stop_token_ids)

        def text(new: Iterator[int]) -> Iterator[str]:
            kept = self._kept(new, ended, watch, generation)
            return until(self._marked(ids, kept, marks) if marks else self.pieces(ids, kept), asked.stop)

        generation = Generation.counting(len(ids), tokens, text)
        return generation

    def _marked(self, ids: list[int], tokens: Iterator[int], marks: Mapping[int, str]) -> Iterator[str]:
        """Yield pieces of text in which some special tokens are shown by name."""
        found: list[int] = []

        def run() -> Iterator[int]:
            for token in tokens:
                if token in marks and not self.ends(token):
                    found.append(token)
                    return
                yield token

        before = ids
        while True:
            yield from self.pieces(before, run())
            if not found:
                return
            before = [found.pop()]
            yield marks[before[0]]

    def reply(self, messages: Messages | str, **options: Unpack[ReplyOptions]) -> Reply:
        """Answer messages: text, reasoning and calls of tools, as the model's family writes them.

        Args:
            messages: as of `prompt`; with calls of tools in ``tool_calls``, and their results in messages of role tool.
            options: see `edgekit.runtime.ReplyOptions`.

        Raises:
            As `prompt` and `generate`; UsageError: a malformed tool.
        """
        chosen = _Chosen.of(**options)
        template = self.template()
        variables = {**variables_of(chosen.effort), **chosen.variables}
        if chosen.tools is not None:
            variables["tools"] = list(chosen.tools.given)
        if variables or chosen.continue_final:
            prompt = self.prompt(messages, variables, continue_final=chosen.continue_final)
        else:
            prompt = self.prompt(messages)
        thought, dialect = thought_of(template), dialect_of(template)
        opened = thought is not None and prompt.rstrip().endswith(thought.begin.rstrip())
        grammar = self._held_to(chosen, dialect, thought, opened)
        asked = attrs.evolve(chosen.asked, grammar=grammar)
        marks = self._marks(marks_of(template, tools=chosen.tools is not None))
        generation = self._stream(self.prompt_ids(prompt, special=True), asked, marks)
        names = chosen.tools.names if chosen.tools is not None else None
        return Reply(generation, parts(generation, dialect, names, thought, opened))

    def _held_to(self, chosen: _Chosen, dialect: Dialect, thought: Thought | None, opened: bool) -> Grammar | None:
        """The grammar of an answer: that of a call that is demanded, or what was asked, with reasoning before it."""
        grammar = chosen.asked.grammar
        if chosen.tools is not None and chosen.tools.demanded:
            return demanded_calls(chosen.tools, dialect, thought, opened, self._mark)
        if grammar is None or grammar.rule is None or thought is None:
            return grammar
        return after_thought(grammar.rule, (), thought, opened, self._mark)

    def _mark(self, text: str) -> str:
        """A mark in a grammar: its token where it is a special one, else its text."""
        tokens = self.tokenizer().tokens
        begun = [number for number in self._words.special if tokens[number] and text.startswith(tokens[number])]
        if not begun:
            return json.dumps(text)
        number = max(begun, key=lambda number: len(tokens[number]))
        rest = text[len(tokens[number]) :]
        return f"<[{number}]>" + (f" {json.dumps(rest)}" if rest else "")

    def _marks(self, texts: Sequence[str]) -> dict[int, str]:
        """The special tokens among marks, by id; others are text anyway."""
        try:
            tokenizer = self.tokenizer()
        except UnsupportedModelError:
            return {}
        hidden = {number for number, kind in enumerate(tokenizer.types) if kind == TokenType.CONTROL}
        return {number: tokenizer.tokens[number] for number in hidden if tokenizer.tokens[number] in texts}

    def _watch(self, asked: Asked) -> Watch | None:
        if asked.grammar is None and asked.logprobs is None:
            return None
        matcher = None if asked.grammar is None else self._words.matcher(asked.grammar)
        return Watch(matcher, asked.logprobs, self.token_bytes)

    def _kept(
        self, tokens: Iterator[int], ended: frozenset[int], watch: Watch | None, generation: Generation
    ) -> Iterator[int]:
        """Yield tokens up to a stop token or the grammar's end, and keep their scores."""
        for number, token in enumerate(watch.until_complete(tokens) if watch else tokens):
            if token in ended:
                return
            if watch is not None and watch.logprobs is not None and not self.ends(token):
                generation.scores.append(watch.scores[number])
            yield token

    def chat(self, messages: Messages | str, **options: Unpack[GenerationOptions]) -> str:
        """Answer messages, with the model's own chat template; see `chat_stream`."""
        return "".join(self.chat_stream(messages, **options))

    def chat_stream(self, messages: Messages | str, **options: Unpack[GenerationOptions]) -> Generation:
        """Answer messages piece by piece; arguments as `prompt` and `generate`, and raises as both."""
        asked = Asked.of(**options)
        return self._stream(self.prompt_ids(self.prompt(messages), special=True), asked)

    def prompt_ids(self, prompt: Prompt, *, special: bool = False) -> list[int]:
        """Return the token ids of a prompt that is a text, or token ids already.

        Args:
            prompt: a text, or ids, which may be none.
            special: as of `encode`.

        Raises:
            UsageError: neither; or as `encode`.
            ContextOverflowError: a text that is too long by far.
        """
        given = prompt_given(prompt)
        if not isinstance(given, str):
            return given
        self.refuse_too_long(given)
        return self.encode(given, special=special)

    def checked_ids(self, tokens: npt.ArrayLike, vocab: int, *, batch: bool = False) -> I64:
        """Return token ids as an array, int64 [n] or, if `batch` is set, also [batch, n].

        Args:
            tokens: the ids.
            vocab: size of the vocabulary.
            batch: whether several sequences are allowed.

        Raises:
            UsageError: there are no ids, they are not integers or not in the vocabulary, or they have another shape.
        """
        ids = token_ids(tokens, vocab).astype(np.int64)
        if ids.ndim > 1 and not batch:
            raise UsageError(f"a prompt is one sequence of token ids [n]; got {list(ids.shape)}")
        return ids

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of token ids, special tokens by their names; bytes that are no UTF-8 become U+FFFD.

        Raises:
            UsageError: an id outside the vocabulary, or no tokenizer.
        """
        return b"".join(self.token_bytes(self._known(token)) for token in tokens).decode("utf-8", "replace")

    def _known(self, token: int) -> int:
        count = len(self.tokenizer().tokens)
        if not 0 <= token < count:
            wrong = f"token id {token}; ids are 0 to {count - 1}"
            raise UsageError(wrong, public=wrong)
        return token

    def scores(self, tokens: Sequence[int], logprobs: int = 0) -> list[TokenScore]:
        """Return the scores of a prompt's tokens, each given those before it.

        Args:
            tokens: ids; of the first nothing is known, so its score is NaN.
            logprobs: number of alternatives.

        Raises:
            UsageError: no tokens, ids outside the vocabulary, or more than fit in `MOST_PROMPT_SCORES`.
            ContextOverflowError: more tokens than the model's context.
        """
        count = len(self.tokenizer().tokens)
        if len(tokens) * count > MOST_PROMPT_SCORES:
            wrong = f"the scores of {len(tokens)} tokens; at most {MOST_PROMPT_SCORES // count} at once"
            raise UsageError(wrong, public=wrong)
        self.room(len(tokens), None)
        first = TokenScore(tokens[0], self.token_bytes(self._known(tokens[0])), math.nan)
        rows = self.logits(tokens[:-1]) if len(tokens) > 1 else ()
        later = zip(tokens[1:], rows, strict=True)
        return [first, *(score(log_softmax(row), token, logprobs, self.token_bytes) for token, row in later)]

    def logits(self, tokens: npt.ArrayLike) -> F32:
        """Return the logits of every next token, float32 [n, vocab] or [batch, n, vocab], for ids [n] or [batch, n].

        Raises:
            UsageError: there are no tokens, or they are not integers, or not in the vocabulary.
            ContextOverflowError: there are more tokens than the context holds.
            UnsupportedModelError: the model is an encoder.
        """
        ids = self.checked_ids(tokens, self.vocabulary(), batch=True)
        self.room(ids.shape[-1], None)
        return self.rows(np.atleast_2d(ids)).reshape(*ids.shape, -1)

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes that a token stands for, of a special token its name."""
        return self.tokenizer().piece(token, skip_special=False)

    def ends(self, token: int) -> bool:
        """Whether a token ends a text."""
        return token in self.tokenizer().end_ids

    @cached_property
    def _words(self) -> Words:
        if self.lender is not None:
            return self.lender._words
        tokenizer = self.tokenizer()
        kinds = (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.UNUSED)
        special = [number for number, kind in enumerate(tokenizer.types) if kind in kinds]
        count = len(tokenizer.tokens)
        ends = sorted(number for number in tokenizer.end_ids if 0 <= number < count)
        return Words([self.token_bytes(number) for number in range(count)], special, ends)

    def prompt(
        self, messages: Messages | str, variables: Mapping[str, Any] | None = None, *, continue_final: bool = False
    ) -> str:
        """Return the prompt that the model's chat template renders; see `edgekit.runtime.chat.prompt_of`."""
        given = {**self.special_texts(), **(variables or {})}
        return chat.render_answer(self.template(), messages, given, continue_final=continue_final)

    def template(self) -> str:
        """Return the source of the model's chat template.

        Raises:
            UsageError: it has none.
        """
        return chat.template_of(self.artifact)

    def special_texts(self) -> dict[str, str]:
        """Return the template variables for special tokens, ``bos_token`` and ``eos_token``."""
        tokenizer = self.artifact.tokenizer
        return chat.special_tokens(tokenizer) if tokenizer else {}

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Tokenize a text, with the token that the model expects at the beginning of every text.

        Args:
            text: any Unicode text; special tokens in it are recognised.
            special: whether a text that begins with the first token's name, as chat templates write it, gets no second.

        Raises:
            UsageError: no tokenizer, or half of a surrogate pair.
        """
        tokenizer = self.tokenizer()
        first = chat.special_tokens(tokenizer).get("bos_token")
        named = special and first is not None and text.startswith(first)
        ids = tokenizer.encode(text, add_special=not named)
        if tokenizer.add_eos and ids[-1:] == [tokenizer.eos]:  # the text is to go on
            del ids[-1]
        return ids

    def whole_ids(self, text: Prompt) -> list[int]:
        """Return the token ids of a text that nothing follows, with the token that ends it; of ids, these.

        An embedding model is trained on whole texts (BERT's ``[SEP]``, Qwen 3 Embedding's ``<|endoftext|>``).

        Raises:
            As `prompt_ids`.
        """
        ids, end = self.prompt_ids(text), self.end_of_text() if isinstance(text, str) else None
        return ids if end is None or ids[-1:] == [end] else [*ids, end]

    def end_of_text(self) -> int | None:
        """Return the token that the model expects at the end of every text, or None."""
        tokenizer = self.tokenizer()
        return tokenizer.eos if tokenizer.add_eos else None

    def refuse_too_long(self, text: str) -> None:
        """Raise, before tokenizing, if a text's length or beginning shows that it does not fit the context.

        Raises:
            ContextOverflowError: shorter texts may still have too many tokens; `room` raises for those.
        """
        context = self.context
        least = self.tokenizer().least_tokens(text, context)
        if least > context:
            raise self._overflow(f"at least {least} tokens of prompt", 0)

    def tokenizer(self) -> Tokenizer:
        """Return the artifact's tokenizer.

        Raises:
            UsageError: it has none.
        """
        tokenizer = self.artifact.tokenizer
        if tokenizer is None:
            raise self.lacks_tokenizer()
        return tokenizer

    def lacks_tokenizer(self) -> UsageError:
        """Return the error for a model without a tokenizer."""
        return UsageError(
            chat.no_tokenizer(self.artifact.path), public="the model has no tokenizer, so it cannot read texts"
        )

    def room(self, prompt: int, requested: int | None) -> int:
        """Return how many tokens to generate after a prompt of so many tokens; None fills the context.

        Raises:
            UsageError: a negative number, or none.
            ContextOverflowError: the prompt and the requested tokens do not fit the model's context.
        """
        if requested is not None:
            requested = integer("max_tokens", requested, 0)
        context = self.context
        if prompt + (requested or 0) > context:
            raise self._overflow(f"{prompt} tokens of prompt and {requested or 0} more", max(0, context - prompt))
        return context - prompt if requested is None else requested

    def _overflow(self, asked: str, most: int) -> ContextOverflowError:
        """Clients cannot reload the model with other options, so their message omits that cure."""
        return ContextOverflowError(
            f"{asked} {self.too_long(most)}", public=f"{asked} {TextRuntime.too_long(self, most)}"
        )

    def too_long(self, most: int) -> str:
        """Return the end of the message for a text that does not fit: the limit and the cure.

        Args:
            most: largest number of tokens that can be generated after this prompt.
        """
        cure = f"shorten the prompt, or ask for at most {most}" if most else "shorten the prompt"
        return f"do not fit the model's context of {self.context}; {cure}"

    def pieces(self, prompt: list[int], tokens: Iterator[int]) -> Iterator[str]:
        """Yield the text after the prompt in whole characters; ends at the end token."""
        tokenizer = self.tokenizer()
        # Decoded as what follows the prompt: on its own the first piece would lose its leading space.
        text = tokenizer.detokenizer(prompt)
        for token in tokens:
            if token in tokenizer.end_ids:
                break
            if piece := text.add(token):
                yield piece
        if rest := text.end():
            yield rest

    def pooled(self, states: F32) -> F32:
        """Return the embedding, float32 [dim] of length 1, of a text with those last states [n, width].

        As the model's files say (`edgekit.architectures.pooled`); the mean where they, or edgekit's reader, do not.

        Raises:
            NonFiniteError: it has a NaN or an infinity.
        """
        try:
            model = self.artifact.model
        except UnsupportedModelError:
            return self.unit(states.mean(axis=0, dtype=np.float64))
        return self.unit(Transformer(model).pooled(states))

    def unit(self, states: npt.ArrayLike) -> F32:
        """Return a vector [width] as an embedding: float32, normalized to length 1.

        Raises:
            NonFiniteError: it has a NaN or an infinity.
        """
        vector = np.asarray(states, np.float64)
        if not np.isfinite(vector).all():
            raise NonFiniteError(f"{self.artifact.path}: it computes values that are not finite")
        scaled: F32 = (vector / max(float(np.linalg.norm(vector)), 1e-30)).astype(np.float32)
        return scaled


@attrs.frozen
class Asked:
    """Generation options, checked.

    Attributes:
        max_tokens: at most so many; None for as many as the context has room for.
        sampling: how tokens are chosen.
        stop: texts at which to end.
        stop_token_ids: tokens at which to end.
        logprobs: alternatives whose scores are kept; None keeps no scores.
        grammar: what the text matches; None for any text.
    """

    max_tokens: int | None
    sampling: Sampling
    stop: tuple[str, ...]
    stop_token_ids: tuple[int, ...]
    logprobs: int | None
    grammar: Grammar | None

    @classmethod
    def of(
        cls,
        *,
        max_tokens: int | None = None,
        stop: Stop = (),
        stop_token_ids: Sequence[int] | None = None,
        logprobs: int | None = None,
        json_schema: Mapping[str, Any] | bool | str | None = None,
        regex: str | None = None,
        grammar: str | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Asked:
        """Return checked options; `max_tokens` is checked with the prompt.

        Raises:
            UsageError: an option out of range.
            MissingPluginError: a schema or grammar, and llguidance is not installed.
        """
        ids = tuple(integer("a stop token id", token, 0) for token in stop_token_ids or ())
        if logprobs is not None and integer("logprobs", logprobs, 0) > MOST_SCORES:
            raise UsageError(f"logprobs {logprobs}; choose 0 to {MOST_SCORES}, or None for no scores")
        follows = Grammar.of(json_schema=json_schema, regex=regex, grammar=grammar)
        return cls(max_tokens, Sampling(**sampling), stop_texts(stop), ids, logprobs, follows)


@attrs.frozen
class _Chosen:
    """The options of a reply, checked."""

    asked: Asked
    tools: Tools | None
    effort: str | None
    variables: Mapping[str, Any]
    continue_final: bool

    @classmethod
    def of(
        cls,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        parallel_tool_calls: bool = True,
        reasoning_effort: str | None = None,
        template_variables: Mapping[str, Any] | None = None,
        continue_final: bool = False,
        **options: Unpack[GenerationOptions],
    ) -> _Chosen:
        """Return checked options.

        Raises:
            UsageError: a malformed tool, an option out of range, or a schema besides a demanded call.
        """
        asked = Asked.of(**options)
        offered = Tools.of(tools, tool_choice, parallel_tool_calls)
        if offered is not None and offered.demanded and asked.grammar is not None:
            both = "tool_choice demands a call, and a schema or grammar is given; an answer follows one of them"
            raise UsageError(both, public=both)
        return cls(asked, offered, reasoning_effort, dict(template_variables or {}), continue_final)


__all__ = ["Asked", "TextRuntime"]
