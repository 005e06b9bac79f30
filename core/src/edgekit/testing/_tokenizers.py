"""Small tokenizers of both kinds (SentencePiece, byte-level BPE) in which every field differs from its default."""

from __future__ import annotations

import attrs

from edgekit.tokenizer import Tokenizer, TokenType

#: Attributes of a tokenizer that a format must preserve.
FIELDS = (
    "kind", "tokens", "types", "merges", "pre", "bos", "eos", "unk", "pad", "ends",
    "add_bos", "add_eos", "add_space_prefix", "chat_template", "chat_templates",
)  # fmt: skip
#: `urgency` replaces the scores: a format may preserve only their order, since nothing else affects the tokenization.
TEMPLATE = "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}"


def spm() -> Tokenizer:
    """Return a SentencePiece tokenizer with special tokens, all bytes, letters, and pieces with scores."""
    special = ["<unk>", "<s>", "</s>"]
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    letters = ["▁", *"abcdehilnorstuw"]
    pieces = ["▁t", "he", "▁the", "in", "er", "▁a", "on", "▁s", "re", "▁w"]
    tokens = [*special, *bytes_, *letters, *pieces]
    types = (
        [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL]
        + [TokenType.BYTE] * 256
        + [TokenType.NORMAL] * (len(letters) + len(pieces))
    )
    scores = [0.0] * (3 + 256) + [-20.0] * len(letters) + [-float(n) / 2 for n in range(len(pieces))]
    return Tokenizer(
        "spm",
        tuple(tokens),
        tuple(types),
        scores=tuple(scores),
        bos=1,
        eos=2,
        unk=0,
        add_bos=True,
        chat_template=TEMPLATE,
    )


def bpe() -> Tokenizer:
    """Return a byte-level BPE tokenizer with all 256 bytes, merges whose order matters, and an end token."""
    merges = ["t h", "Ġ t", "Ġt h", "Ġth e", "h e", "i n", "e r", "Ġ a", "o n", "r e", "in g"]
    tokens = [*_alphabet(), *(merge.replace(" ", "") for merge in merges), "<|end|>"]
    return Tokenizer(
        "bpe",
        tuple(tokens),
        (TokenType.NORMAL,) * (len(tokens) - 1) + (TokenType.CONTROL,),
        merges=tuple(merges),
        pre="gpt-2",
        bos=len(tokens) - 1,
        eos=len(tokens) - 1,
        add_bos=False,
        add_space_prefix=False,
        chat_template=TEMPLATE,
    )


#: A chat template with several lines, quotes, other scripts, and spaces at both ends.
LONG_TEMPLATE = """ {%- for message in messages %}
{{ '<|' + message["role"] + "|>\\n" }}{{ message['content'] | trim }} 日本 ✓
{%- endfor %}
"""


def spm_without_space() -> Tokenizer:
    """Return `spm` with the opposite of every default that a reader may assume, and tokens in other scripts."""
    first = spm()
    added = ("日本", "👩\u200d🚀", "é", "<|user|>", "<pad>")
    types = (*first.types, *[TokenType.NORMAL] * 3, TokenType.USER_DEFINED, TokenType.CONTROL)
    return attrs.evolve(
        first,
        tokens=(*first.tokens, *added),
        types=types,
        scores=(*first.scores, -6.25, -6.5, -6.75, 0.0, 0.0),
        add_bos=False,
        add_eos=True,
        add_space_prefix=False,
        pad=len(types) - 1,
        ends=(len(types) - 2,),
        chat_template=LONG_TEMPLATE,
        chat_templates={"tool_use": TEMPLATE, "rag": LONG_TEMPLATE},
    )


def bpe_with_bos() -> Tokenizer:
    """Return `bpe` with a BOS token that is added to texts and differs from EOS, and without a chat template."""
    first = bpe()
    tokens = (*first.tokens, "<|begin|>", "<|pad|>")
    return attrs.evolve(
        first,
        tokens=tokens,
        types=(*first.types, TokenType.CONTROL, TokenType.CONTROL),
        bos=len(tokens) - 2,
        pad=len(tokens) - 1,
        add_bos=True,
        chat_template=None,
    )


def urgency(tokenizer: Tokenizer) -> list[str]:
    """Return the pieces of more than one character by descending score, the order in which they are merged."""
    if not tokenizer.scores:
        return []
    pieces = [
        (-score, token)
        for token, kind, score in zip(tokenizer.tokens, tokenizer.types, tokenizer.scores, strict=True)
        if kind == TokenType.NORMAL and len(token) > 1
    ]
    return [token for _, token in sorted(pieces)]


def _alphabet() -> list[str]:
    """Return the printable characters that represent the 256 bytes in GPT-2's vocabulary, in byte order."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(value) if value in printable else chr(next(others)) for value in range(256)]
