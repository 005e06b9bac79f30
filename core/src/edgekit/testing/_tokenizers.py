"""Two small tokenizers, one of each kind, with every field set to something that is noticed when it is lost."""

from __future__ import annotations

import attrs

from edgekit.tokenizer import Tokenizer, TokenType

#: What a format has to bring back.
FIELDS = (
    "kind", "tokens", "types", "merges", "pre", "bos", "eos", "unk", "pad", "ends",
    "add_bos", "add_eos", "add_space_prefix", "chat_template", "chat_templates",
)  # fmt: skip
#: `urgency` stands for the scores: a format may keep their order alone, since nothing else decides.
TEMPLATE = "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}"


def spm() -> Tokenizer:
    """SentencePiece: specials, all bytes, letters, and pieces with scores."""
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
    """Byte-level BPE: all bytes in their alphabet, merges in an order that matters, and an end token."""
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


#: Several lines, quotes, other scripts, and blanks at both ends.
LONG_TEMPLATE = """ {%- for message in messages %}
{{ '<|' + message["role"] + "|>\\n" }}{{ message['content'] | trim }} 日本 ✓
{%- endfor %}
"""


def spm_without_space() -> Tokenizer:
    """As `spm`, with all that a reader might guess the other way round, and tokens in other scripts."""
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
    """As `bpe`, but BOS is added, and is no EOS; no chat template."""
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
    """The pieces of more than one character that scores put in order, the most urgent first."""
    if not tokenizer.scores:
        return []
    pieces = [
        (-score, token)
        for token, kind, score in zip(tokenizer.tokens, tokenizer.types, tokenizer.scores, strict=True)
        if kind == TokenType.NORMAL and len(token) > 1
    ]
    return [token for _, token in sorted(pieces)]


def _alphabet() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes, in the order of the bytes."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(value) if value in printable else chr(next(others)) for value in range(256)]
