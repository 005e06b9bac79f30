"""How byte-level BPE cuts a text into words before it merges, by the names that llama.cpp gives it.

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
    default         punctuation, GPT-2's expression, digits by three           files that name none

An expression cuts every piece that the one before it left, and what it does not match is a piece as well.

Sources: OpenAI's tiktoken (cl100k_base, o200k_base) and GPT-2 for the expressions; the tokenizer.json of each
family for which it uses; llama.cpp's `llama-vocab.cpp` for the names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
}
#: Other names for them.
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
}
#: Those that take a word as it is where the vocabulary has it, whatever the merges say.
WHOLE_WORDS = ("llama-bpe", "tekken")
#: Those whose texts are normalized to NFC.
NFC = ("qwen2", "qwen35")


def canonical(pre: str) -> str | None:
    """The name in `EXPRESSIONS`, or None."""
    name = ALIASES.get(pre, pre)
    return name if name in EXPRESSIONS else None


def to_json(pre: str) -> dict[str, Any]:
    """The ``pre_tokenizer`` of a tokenizer.json; `pre` is canonical."""
    splits = [
        {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}
        for expression in EXPRESSIONS[pre]
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [*splits, byte_level]}


def from_json(pre_tokenizer: Mapping[str, Any] | None, whole_words: bool) -> str:
    """The name of a tokenizer.json's ``pre_tokenizer``; empty where llama.cpp has no name for it.

    Args:
        pre_tokenizer: as parsed.
        whole_words: the model's ``ignore_merges``.
    """
    expressions = tuple(expression for step in _steps(pre_tokenizer) for expression in _expressions(step))
    names = [name for name, known in EXPRESSIONS.items() if known == expressions]
    return next((name for name in names if (name in WHOLE_WORDS) == whole_words), next(iter(names), ""))


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
    return ("",)  # matches no known sequence


def _plain(expression: str) -> str:
    """One way of writing contractions for the several in use."""
    spelled = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
    return expression.replace(spelled, _CONTRACTION).replace(r"(?:'s|'t|'re|'ve|'m|'ll|'d)", _CONTRACTION)
