"""Texts that follow a JSON schema, a regular expression or a Lark grammar: which tokens may come next.

llguidance compiles the grammar and computes a mask over the vocabulary before each token; every runtime's sampler
applies it. Source: https://github.com/guidance-ai/llguidance (the syntax of its grammars: ``docs/syntax.md``).
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import attrs
import numpy as np

from edgekit.errors import MissingPluginError, UsageError
from edgekit.typing import F32

#: Largest grammar in characters, a schema counted as JSON.
LARGEST = 1 << 18
#: Seconds that compiling may take; llguidance's own limits end the work soon after.
PATIENCE = 5.0
#: Between the parts of a JSON text: as llama.cpp allows it, so that no text is whitespace without end.
WHITESPACE = r"( |\n{1,2}[ \t]{0,20})?"
#: Limits of llguidance: fuel for a grammar's regular expressions and for each token, and symbols of a grammar.
_LIMITS = {"initial_lexer_fuel": 1_000_000, "step_lexer_fuel": 200_000, "max_grammar_size": 200_000}
_MISSING = "texts that follow a schema or grammar need llguidance; pip install 'edgekit-core[structured]'"


@attrs.frozen
class Grammar:
    """What a text has to match, as llguidance reads it.

    Attributes:
        source: a grammar of llguidance's, as JSON or Lark.
        rule: the same as the right side of a rule of Lark; None where it is a whole grammar.
    """

    source: str = attrs.field(repr=False)
    rule: str | None = attrs.field(default=None, repr=False)

    @classmethod
    def of(
        cls, *, json_schema: Mapping[str, Any] | bool | str | None, regex: str | None, grammar: str | None
    ) -> Grammar | None:
        """Return the one that is given, or None.

        Raises:
            UsageError: more than one, of another type, or too long.
            MissingPluginError: llguidance is not installed.
        """
        given = {"json_schema": json_schema, "regex": regex, "grammar": grammar}
        named = {name: value for name, value in given.items() if value is not None}
        if len(named) > 1:
            both = f"{' and '.join(named)} are given; a text follows one of them"
            raise UsageError(both, public=both)
        for name, value in named.items():
            return cls.from_json_schema(value) if name == "json_schema" else cls._from_text(name, value)
        return None

    @classmethod
    def from_json_schema(cls, schema: Mapping[str, Any] | bool | str) -> Grammar:
        """Return the grammar of JSON texts that a schema accepts.

        Args:
            schema: as an object, true or false, or as JSON.

        Raises:
            UsageError: no JSON schema.
        """
        text = schema_text(schema)
        if json.loads(text) is False:
            _refuse("json_schema", "nothing satisfies false")
        options = {"whitespace_flexible": True, "whitespace_pattern": WHITESPACE, "coerce_one_of": True}
        try:
            rule = None if text == "true" else f"%json {json.dumps({**json.loads(text), 'x-guidance': options})}"
            return cls(_library().LLMatcher.grammar_from_json_schema(text, overrides=options), rule)
        except ValueError as error:
            message = f"json_schema: {error!s:.200}"
            raise UsageError(message, public=message) from error

    @classmethod
    def _from_text(cls, name: str, text: object) -> Grammar:
        if not isinstance(text, str) or not text:
            _refuse(name, "it must be a text, not empty")
        if len(text) > LARGEST:
            _refuse(name, f"it has {len(text):,} characters; at most {LARGEST:,}")
        matcher = _library().LLMatcher
        if name == "regex":
            return cls(matcher.grammar_from_regex(text), "/" + re.sub(r"(?<!\\)/", r"\/", text) + "/")
        return cls(matcher.grammar_from_lark(text))


def schema_text(schema: Mapping[str, Any] | bool | str) -> str:
    """Return a schema as JSON.

    Raises:
        UsageError: it is neither an object nor true or false, or too large.
    """
    try:
        found = json.loads(schema) if isinstance(schema, str) else schema
        text = json.dumps(dict(found) if isinstance(found, Mapping) else found, ensure_ascii=False, allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:
        message = f"json_schema: it is not JSON ({str(error)[:100]})"
        raise UsageError(message, public=message) from error
    if not isinstance(found, Mapping | bool):
        _refuse("json_schema", "it must be an object, or true or false")
    if len(text) > LARGEST:
        _refuse("json_schema", f"it has {len(text):,} characters; at most {LARGEST:,}")
    return text


def _refuse(name: str, why: str) -> NoReturn:
    raise UsageError(f"{name}: {why}", public=f"{name}: {why}")


@attrs.frozen(eq=False)
class Words:
    """A vocabulary as a grammar sees it.

    Attributes:
        texts: the bytes of each token.
        special: ids that stand for no text of an answer; a grammar names them ``<[id]>``.
        ends: ids that end a text.
    """

    texts: Sequence[bytes] = attrs.field(repr=False)
    special: Sequence[int] = attrs.field(repr=False)
    ends: Sequence[int]
    _compiled: list[Any] = attrs.field(factory=list, init=False, repr=False)

    def matcher(self, grammar: Grammar) -> Matcher:
        """Compile a grammar for one text.

        Raises:
            UsageError: malformed, too large, or nothing matches it.
        """
        library, found = _library(), list[Any]()
        work = threading.Thread(
            target=lambda: found.append(
                library.LLMatcher(
                    self._tokenizer(), grammar.source, log_level=0, limits=library.LLParserLimits(**_LIMITS)
                )
            ),
            daemon=True,
        )
        work.start()
        work.join(PATIENCE)
        if not found:
            _refuse("the schema or grammar", f"it was not compiled within {PATIENCE:g} seconds; make it smaller")
        return Matcher(found[0]).checked()

    def _tokenizer(self) -> Any:
        """The tokenizer of llguidance, made once: it takes a second for the largest vocabularies."""
        if not self._compiled:
            library = _library()
            # A vocabulary without an end token gets one beyond its last.
            texts = [*self.texts] if self.ends else [*self.texts, b"<end>"]
            ends = [*self.ends] if self.ends else [len(self.texts)]
            wrapper = library.TokenizerWrapper(_Vocabulary(texts, [*self.special, *ends], ends[0]))
            self._compiled.append(library.LLTokenizer(wrapper, eos_token=ends))
        return self._compiled[0]


class _Vocabulary:
    """What llguidance asks of a tokenizer."""

    bos_token_id = None

    def __init__(self, tokens: list[bytes], special: list[int], end: int) -> None:
        self.tokens, self.special_token_ids, self.eos_token_id = tokens, sorted(set(special)), end
        self._single = {text: number for number, text in enumerate(tokens) if len(text) == 1}

    def __call__(self, text: str | bytes) -> list[int]:
        """Byte by byte: it is asked for tokens that are forced, which are not used here."""
        data = text.encode() if isinstance(text, str) else text
        return [self._single[bytes([byte])] for byte in data if bytes([byte]) in self._single]


class Matcher:
    """Which tokens may come next in one text."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def checked(self) -> Matcher:
        """Return this matcher if some text matches.

        Raises:
            UsageError: the grammar is malformed, too complex, or nothing matches it.
        """
        self._refuse_error()
        accepting = self._matcher.is_accepting()
        self._matcher.compute_bitmask()
        if self._matcher.is_stopped() and not accepting:
            _refuse("the schema or grammar", "nothing matches it")
        return self

    def allowed(self, logits: F32) -> F32 | None:
        """Return logits with -infinity for tokens that may not follow; None where the text is complete.

        Raises:
            UsageError: the grammar got too complex.
        """
        bits = self._matcher.compute_bitmask()
        if self._matcher.is_error():
            self._refuse_error()
        # `count` also fills up where the output matrix has spare rows.
        may = np.unpackbits(np.frombuffer(bits, np.uint8), count=len(logits), bitorder="little").view(np.bool_)
        return np.where(may, logits, np.float32(-np.inf)) if may.any() else None

    def chosen(self, token: int) -> None:
        """Note the next token, one of those allowed."""
        self._matcher.consume_token(token)

    def _refuse_error(self) -> None:
        if self._matcher.is_error():
            text = self._matcher.get_error().partition("<state>")[0].strip() or "it is too complex"
            _refuse("the schema or grammar", text[:300])


def _library() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise MissingPluginError(_MISSING) from error
    return llguidance


__all__ = ["LARGEST", "PATIENCE", "WHITESPACE", "Grammar", "Matcher", "Words", "schema_text"]
