"""Pre-tokenizers: how byte-level BPE splits a text into words before merging, by llama.cpp's names.

    name            cut at                                                     used by
    gpt-2           GPT-2's expression                                         GPT-2, Phi-2
    smollm          each digit, then GPT-2's expression                        SmolLM, StarCoder
    llama-bpe       cl100k's expression; whole words before merges             Llama 3
    dbrx            cl100k's expression                                        DBRX, Phi-4
    qwen2           cl100k's expression with digits one by one                 Qwen 2, Qwen 3
    qwen35          the same, marks counting as letters                        Qwen 3.5
    tekken          o200k's expression with digits one by one, no contractions Mistral NeMo and later
    gpt-4o          o200k's expression                                         Phi-4-mini
    deepseek-coder  line ends, letters, punctuation, ideographs, digits        DeepSeek Coder
    deepseek-llm    line ends, cased letters, marks, ideographs, digits        DeepSeek LLM
    deepseek-v3     digits by three, ideographs, words                         DeepSeek V3 and R1, Hunyuan
    seed-coder      cl100k's expression with digits one by one                 Seed Coder
    falcon          punctuation, GPT-2's expression, digits by three           Falcon
    bloom           what lies between spaces and marks                         BLOOM, Poro
    viking          the same, digits one by one                                Viking
    default         punctuation, GPT-2's expression, digits by three           files that name none

Each expression splits every piece of the one before; text that it does not match is a piece, too.

Sources: OpenAI's tiktoken (cl100k_base, o200k_base) and GPT-2 for the expressions; the tokenizer.json of each
family for which it uses; llama.cpp's `llama-vocab.cpp` for the names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from edgekit.errors import UsageError

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_CL100K = _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACES
_QWEN2 = _CL100K.replace(r"\p{N}{1,3}", r"\p{N}")
_QWEN35 = _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|" + _SPACES
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTION}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTION}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _SPACES
)
_TEKKEN = _O200K.replace(_CONTRACTION + "?", "").replace(r"\p{N}{1,3}", r"\p{N}")
#: DeepSeek's letters: those of scripts with capitals, in `regex` of 2023.
_CASED = (
    r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-"
    r"ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ"
    r"-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+"
)
_PUNCTUATED = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"""
_MARKS = r"\s?[!-/:-~！-／：-～‘-‟\u3000-。]+".replace(r"\u3000", "\u3000")
_SENTENCES = r" ?[^(\s|.,!?…。，、।۔،)]+"

#: The expressions of each pre-tokenizer, one after the other.
EXPRESSIONS: dict[str, tuple[str, ...]] = {
    "gpt-2": (_GPT2,),
    "smollm": (r"\p{N}", _GPT2),
    "llama-bpe": (_CL100K,),
    "dbrx": (_CL100K,),
    "qwen2": (_QWEN2,),
    "qwen35": (_QWEN35,),
    "tekken": (_TEKKEN,),
    "gpt-4o": (_O200K,),
    "deepseek-coder": (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"),
    "deepseek-llm": (r"[\r\n]", _CASED, _MARKS, r"\s+$", "[一-龥ࠀ-一가-\ud7ff]+", r"\p{N}+"),
    "deepseek-v3": (
        r"\p{N}{1,3}",
        "[一-龥\u3040-ゟ゠-ヿ]+",
        _PUNCTUATED + r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    "seed-coder": (
        _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    "falcon": (r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]"),
    "bloom": (_SENTENCES,),
    "viking": (_SENTENCES, r"\p{N}"),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
}
#: Other names of the pre-tokenizers.
ALIASES = {
    "llama3": "llama-bpe",
    "llama-v3": "llama-bpe",
    "falcon3": "llama-bpe",
    "pixtral": "llama-bpe",
    "smaug-bpe": "dbrx",
    "deepseek-r1-qwen": "qwen2",
    "kormo": "qwen2",
    "phi-2": "gpt-2",
    "olmo": "gpt-2",
    "mpt": "gpt-2",
    "jais": "gpt-2",
    "gigachat": "gpt-2",
    "llama4": "gpt-4o",
    "starcoder": "smollm",
    "refact": "smollm",
    "command-r": "smollm",
    "codeshell": "smollm",
    "exaone": "smollm",
    "exaone4": "gpt-2",
    "modern-bert": "gpt-2",
    "roberta-bpe": "gpt-2",
    "trillion": "gpt-2",
    "granite-docling": "gpt-2",
    "mellum": "gpt-2",
    "a.x-4.0": "gpt-2",
    "jina-es": "gpt-2",
    "jina-de": "gpt-2",
    "jina-v1-en": "gpt-2",
    "jina-v2-es": "gpt-2",
    "jina-v2-de": "gpt-2",
    "jina-v2-code": "gpt-2",
    "mellum2": "smollm",
    "minerva-7b": "smollm",
    "chatglm-bpe": "dbrx",
    "glm4": "dbrx",
    "glm5": "dbrx",
    "falcon-h1": "llama-bpe",
    "lfm2": "llama-bpe",
    "midm-2.0": "llama-bpe",
    "jina-v5-nano": "llama-bpe",
    "stablelm2": "qwen2",
    "hunyuan": "qwen2",
    "megrez": "qwen2",
    "solar-open": "qwen2",
    "f2llmv2": "qwen2",
    "kanana2": "gpt-4o",
    "minimax-m2": "gpt-4o",
    "talkie": "gpt-4o",
    "poro-chat": "bloom",
    "gpt3-finnish": "bloom",
    "hunyuan-dense": "deepseek-v3",
    "joyai-llm": "deepseek-v3",
    "hy_v4": "deepseek-v3",
}
#: Largest number of characters of an expression in a message.
_SHOWN = 120
#: Pre-tokenizers with which a word of the vocabulary is one token, regardless of the merges.
WHOLE_WORDS = {"llama-bpe", "tekken"}
#: Pre-tokenizers whose texts are normalized to NFC.
NFC = {"qwen2", "qwen35"}


def register(name: str, *expressions: str, whole_words: bool = False, nfc: bool = False) -> None:
    """Teach edgekit a pre-tokenizer that it does not know, for this process; a plugin calls it when it is loaded.

    Args:
        name: as llama.cpp has it.
        expressions: one after the other; each splits every piece of the one before.
        whole_words: whether a word of the vocabulary is one token, regardless of the merges.
        nfc: whether texts are normalized to NFC.

    Raises:
        UsageError: no name, no expression, or a name that stands for other expressions.

    Example:
        >>> register("first-letters", r"[a-z]+", r"[0-9]")  # doctest: +SKIP
    """
    known = canonical(name)
    if not name or not expressions:
        raise UsageError("a pre-tokenizer needs llama.cpp's name and at least one expression")
    if known is not None and EXPRESSIONS[known] != expressions:
        raise UsageError(
            f"pre-tokenizer {name} has other expressions in edgekit already; choose llama.cpp's name for these"
        )
    EXPRESSIONS.setdefault(known or name, expressions)
    if known is None:
        WHOLE_WORDS.update({name} if whole_words else ())
        NFC.update({name} if nfc else ())


def canonical(pre: str) -> str | None:
    """Return the name in `EXPRESSIONS`, or None."""
    name = ALIASES.get(pre, pre)
    return name if name in EXPRESSIONS else None


def to_json(pre: str) -> dict[str, Any]:
    """Return the ``pre_tokenizer`` of a tokenizer.json; `pre` is canonical."""
    splits = [
        {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}
        for expression in EXPRESSIONS[pre]
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [*splits, byte_level]}


def from_json(pre_tokenizer: Mapping[str, Any] | None, whole_words: bool) -> str:
    """Return llama.cpp's name of a tokenizer.json's ``pre_tokenizer``; empty if it has none.

    Args:
        pre_tokenizer: as parsed.
        whole_words: the model's ``ignore_merges``.
    """
    expressions = tuple(expression for step in _steps(pre_tokenizer) for expression in _expressions(step))
    names = [name for name, known in EXPRESSIONS.items() if known == expressions]
    return next((name for name in names if (name in WHOLE_WORDS) == whole_words), next(iter(names), ""))


def described(text: str | None) -> str:
    """Return the expressions of a tokenizer.json, or the types of its steps, shortened for a message."""
    steps = _steps(json.loads(text).get("pre_tokenizer") if text else None)
    names = [next(filter(None, _expressions(step)), str(step.get("type"))) for step in steps]
    shown = ", ".join(repr(each) if len(each) <= _SHOWN else repr(each[:_SHOWN]) + "…" for each in names)
    return shown or "no rule"


def _steps(pre_tokenizer: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if not isinstance(pre_tokenizer, Mapping):
        return []
    if pre_tokenizer.get("type") != "Sequence":
        return [pre_tokenizer]
    steps = pre_tokenizer.get("pretokenizers")
    return [step for step in steps if isinstance(step, Mapping)] if isinstance(steps, list) else []


def _expressions(step: Mapping[str, Any]) -> tuple[str, ...]:
    match step.get("type"):
        case "ByteLevel":
            return (_GPT2,) if step.get("use_regex", True) else ()
        case "Digits":
            return (r"\p{N}",) if step.get("individual_digits") else (r"\p{N}+",)
        case "Split":
            pattern = step.get("pattern")
            expression = pattern.get("Regex") if isinstance(pattern, Mapping) else None
            return (_plain(expression),) if isinstance(expression, str) else ("",)
    return ("",)  # equals no known sequence


def _plain(expression: str) -> str:
    """Return an expression with its contractions in one of the several spellings in use."""
    spelled = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
    return expression.replace(spelled, _CONTRACTION).replace(r"(?:'s|'t|'re|'ve|'m|'ll|'d)", _CONTRACTION)


__all__ = ["ALIASES", "EXPRESSIONS", "NFC", "WHOLE_WORDS", "canonical", "described", "from_json", "register", "to_json"]
