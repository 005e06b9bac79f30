"""Reads and writes tokenizers in GGUF metadata.

| key under ``tokenizer.ggml.``         | content                                                        |
|---------------------------------------|----------------------------------------------------------------|
| model                                 | ``llama`` (SentencePiece), ``gpt2`` (byte-level BPE) or        |
|                                       | ``bert`` (WordPiece)                                           |
| pre                                   | name of the pre-tokenizer                                      |
| tokens, token_type                    | text and kind of each token                                    |
| scores (llama), merges (gpt2)         | priorities of merges                                           |
| bos_, eos_, unknown_, padding_token_id | special tokens; of WordPiece cls_ and seperator_token_id too  |
| normalizer.lowercase, .strip_accents  | WordPiece's normalization                                      |
| eot_token_id, eom_token_id            | further end tokens; llama.cpp recognises more by text          |
| add_bos_token, add_eos_token, add_space_prefix | what is added to every text                           |

In addition, ``tokenizer.chat_template`` holds the default template, ``tokenizer.chat_templates`` the names of the
others, and ``tokenizer.chat_template.NAME`` each of these. ``edgekit.end_token_ids`` lists all tokens that end a text,
in the few files whose end tokens llama.cpp's keys and rules do not cover.

Source: the GGUF specification (``docs/gguf.md``), defaults as in llama.cpp's ``llama-vocab.cpp``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from edgekit.errors import InvalidFileError, UnsupportedModelError
from edgekit.files.foreign import shown
from edgekit.tokenizer import Tokenizer, TokenType, pretokenizers
from edgekit.tokenizer.ends import TEXTS
from edgekit_gguf.metadata import Metadata, Value, f32s, flag, i32s, text, texts, u32

_PREFIX = "tokenizer.ggml."
_MODELS: dict[str, Literal["spm", "bpe", "wordpiece"]] = {"llama": "spm", "gpt2": "bpe", "bert": "wordpiece"}
_NAMES = {kind: model for model, kind in _MODELS.items()}
#: Gemma 4's: SentencePiece's pieces, and merges, whose order says what merges first.
_MERGED = "gemma4"
_NO_VOCABULARY = ("no_vocab", "none")
_IDS = {"bos": "bos_token_id", "eos": "eos_token_id", "unk": "unknown_token_id", "pad": "padding_token_id"}
#: llama.cpp's defaults for missing keys.
_DEFAULT_IDS: dict[str, dict[str, int]] = {
    "spm": {"bos": 1, "eos": 2, "unk": 0},
    "bpe": {"bos": 11, "eos": 11},
    "wordpiece": {"bos": 101, "eos": 102, "unk": 100, "pad": 0},
}
#: Keys of further end tokens: end of turn, end of message, and ends of fill-in-the-middle.
_ENDS = ("eot_token_id", "eom_token_id", "fim_pad_token_id", "fim_rep_token_id", "fim_sep_token_id")
_ALL_ENDS = "edgekit.end_token_ids"
_TEMPLATE, _TEMPLATES = "tokenizer.chat_template", "tokenizer.chat_templates"
#: Pre-tokenizers for which llama.cpp adds BOS even if the file does not request it.
_PRE_ADDS_BOS = ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "lfm2", "tekken", "chameleon")
#: Texts of Code Llama's fill-in-the-middle tokens.
_INFILL = {
    "▁<PRE>": "prefix_token_id",
    "▁<SUF>": "suffix_token_id",
    "▁<MID>": "middle_token_id",
    "▁<EOT>": "eot_token_id",
}


def to_metadata(tokenizer: Tokenizer | None, vocab: int) -> dict[str, Value]:
    """Return the metadata of a tokenizer; the tokens are padded or truncated to the embedding's `vocab` rows.

    Raises:
        UnsupportedModelError: the pre-tokenizer of byte-level BPE has no name in llama.cpp, or one that edgekit does
            not support.
    """
    if tokenizer is None:
        return {_PREFIX + "model": text("no_vocab")}
    if not tokenizer.pre:
        raise UnsupportedModelError(
            f"the tokenizer cuts words by {pretokenizers.described(tokenizer.json)}, which a GGUF file must call by "
            "llama.cpp's name, and edgekit has none for it; if llama.cpp has one, teach it with "
            "edgekit.tokenizer.pretokenizers.register(NAME, EXPRESSION), or have its convert_hf_to_gguf.py write the "
            "file, which edgekit then quantizes; else use another format"
        )
    missing = range(len(tokenizer.tokens), vocab)
    pairs = {
        "model": text(_NAMES[tokenizer.kind]),
        "pre": text(tokenizer.pre),
        "tokens": texts([*_tokens(tokenizer)[:vocab], *(f"[PAD{i}]" for i in missing)]),
        **_ranks(tokenizer, vocab),
        "token_type": i32s([*tokenizer.types[:vocab], *(TokenType.UNUSED for _ in missing)]),
        **{_IDS[name]: u32(number) for name, number in _special(tokenizer, vocab).items()},
        **_infill(tokenizer),
        **_ends(tokenizer, vocab),
        "add_bos_token": flag(tokenizer.add_bos),
        "add_eos_token": flag(tokenizer.add_eos),
    }
    if tokenizer.kind == "spm":
        pairs["add_space_prefix"] = flag(tokenizer.add_space_prefix)
    if tokenizer.kind == "wordpiece":
        pairs |= _wordpiece(tokenizer, vocab)
    typed = {_PREFIX + key: value for key, value in pairs.items()}
    return typed | _all_ends(tokenizer, vocab) | _templates(tokenizer)


def _tokens(tokenizer: Tokenizer) -> list[str]:
    """Return the tokens' texts; user-defined ones with spaces, since llama.cpp searches for them in the raw text."""
    if tokenizer.kind == "bpe":
        return list(tokenizer.tokens)
    pairs = zip(tokenizer.tokens, tokenizer.types, strict=True)
    if tokenizer.kind == "wordpiece":
        return [token if kind in _WHOLE else _spaced(token) for token, kind in pairs]
    return [token.replace("▁", " ") if kind is TokenType.USER_DEFINED else token for token, kind in pairs]


#: Types of WordPiece's tokens whose texts are stored unchanged.
_WHOLE = (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED, TokenType.UNUSED)


def _spaced(token: str) -> str:
    """Return a WordPiece token in llama.cpp's form, which marks the start of a word instead of its continuation."""
    return token.removeprefix("##") if token.startswith("##") else f"▁{token}"


def _marked(token: str) -> str:
    return token.removeprefix("▁") if token.startswith("▁") else f"##{token}"


def _wordpiece(tokenizer: Tokenizer, vocab: int) -> dict[str, Value]:
    ids = _special(tokenizer, vocab)
    roles = {"cls_token_id": "bos", "seperator_token_id": "eos"}  # llama.cpp's spelling
    mask = tokenizer.tokens.index("[MASK]") if "[MASK]" in tokenizer.tokens[:vocab] else None
    return {
        **{key: u32(ids[role]) for key, role in roles.items() if role in ids},
        **({} if mask is None else {"mask_token_id": u32(mask)}),
        "normalizer.lowercase": flag(tokenizer.lowercase),
        "normalizer.strip_accents": flag(tokenizer.strip_accents),
    }


def _ranks(tokenizer: Tokenizer, vocab: int) -> dict[str, Value]:
    if tokenizer.kind == "wordpiece":
        return {}
    if tokenizer.kind == "bpe":
        return {"merges": texts(tokenizer.merges)}
    return {"scores": f32s([*tokenizer.scores[:vocab], *[-10000.0] * (vocab - len(tokenizer.scores))])}


def _special(tokenizer: Tokenizer, vocab: int) -> dict[str, int]:
    """Return the special ids by role, without those beyond the embedding; EOS is then another end token."""
    ids = {name: getattr(tokenizer, name) for name in _IDS}
    special = {name: number for name, number in ids.items() if number is not None and number < vocab}
    ends = [number for number in tokenizer.ends if number < vocab]
    return special | ({"eos": ends[0]} if ends and "eos" not in special else {})


def _ends(tokenizer: Tokenizer, vocab: int) -> dict[str, Value]:
    """Return the keys of end tokens other than EOS: eot_token_id for the first, eom_token_id for the second."""
    eos = _special(tokenizer, vocab).get("eos")
    others = [number for number in tokenizer.ends if number != eos and number < vocab]
    return {key: u32(number) for key, number in zip(_ENDS[:2], others, strict=False)}


def _all_ends(tokenizer: Tokenizer, vocab: int) -> dict[str, Value]:
    """Return the key with all end tokens, if the other keys and llama.cpp's rules do not cover them; else nothing."""
    ends = {number for number in tokenizer.ends if number < vocab}
    numbers = {_special(tokenizer, vocab).get("eos"), *(value.data for value in _ends(tokenizer, vocab).values())}
    unsaid = {number for number in ends - numbers if tokenizer.tokens[number] not in TEXTS}
    return {_ALL_ENDS: i32s(sorted(ends))} if unsaid else {}


def _templates(tokenizer: Tokenizer) -> dict[str, Value]:
    pairs = {_TEMPLATE: text(tokenizer.chat_template)} if tokenizer.chat_template is not None else {}
    if tokenizer.chat_templates:
        pairs[_TEMPLATES] = texts(tokenizer.chat_templates)
    return pairs | {f"{_TEMPLATE}.{name}": text(source) for name, source in tokenizer.chat_templates.items()}


def _infill(tokenizer: Tokenizer) -> dict[str, Value]:
    if not _INFILL.keys() <= set(tokenizer.tokens):
        return {}
    return {key: u32(tokenizer.tokens.index(token)) for token, key in _INFILL.items()}


def from_metadata(metadata: Metadata, path: Path) -> Tokenizer | None:
    """Return the tokenizer of a file; None if it has none. Special ids that are out of range are ignored.

    Raises:
        UnsupportedModelError: the tokenizer is of another kind than the three supported ones.
        InvalidFileError: the lengths of lists differ, or a value has the wrong type.
    """
    model = metadata.get(_PREFIX + "model")
    if model is None or model in _NO_VOCABULARY:
        return None
    if model not in (*_MODELS, _MERGED):
        raise UnsupportedModelError(
            f"{path}: its tokenizer is of model {shown(model)}; supported are {', '.join(_MODELS)}"
        )
    kind = _MODELS.get(model, "spm")
    tokens = _list(metadata, "tokens", str, path)
    ids, types = _ids(metadata, kind, len(tokens), path), _types(metadata, len(tokens), path)
    if kind == "wordpiece":
        pairs = zip(tokens, types, strict=True)
        tokens = tuple(token if each in _WHOLE else _marked(token) for token, each in pairs)
    return Tokenizer(
        kind,
        tokens,
        types=types,
        scores=_scores(metadata, tokens, path) if kind == "spm" else (),
        merges=_list(metadata, "merges", str, path) if kind == "bpe" else (),
        pre=_one(metadata, "pre", str, "default", path),
        **ids,
        ends=_named_ends(metadata, len(tokens), ids["eos"]),
        **_habits(metadata, kind, path),
        chat_template=_template(metadata, _TEMPLATE),
        chat_templates=_named_templates(metadata),
        json=metadata.get("tokenizer.huggingface.json"),
    )


def _types(metadata: Metadata, count: int, path: Path) -> tuple[TokenType, ...]:
    if _PREFIX + "token_type" not in metadata:
        return (TokenType.NORMAL,) * count
    known = {int(member): member for member in TokenType}
    numbers = _list(metadata, "token_type", int, path, count)
    return tuple([known.get(number, TokenType.NORMAL) for number in numbers])


def _scores(metadata: Metadata, tokens: tuple[str, ...], path: Path) -> tuple[float, ...]:
    count = len(tokens)
    if metadata.get(_PREFIX + "model") == _MERGED:
        ranks: dict[str, int] = {}
        for rank, merge in enumerate(_list(metadata, "merges", str, path)):
            ranks.setdefault(merge.replace(" ", "", 1), rank)
        return tuple(-float(ranks.get(token, len(ranks))) for token in tokens)
    if _PREFIX + "scores" not in metadata:
        return (0.0,) * count
    return tuple(map(float, _list(metadata, "scores", (int, float), path, count)))


def _ids(metadata: Metadata, kind: str, count: int, path: Path) -> dict[str, Any]:
    """Return the special ids: the file's if in range, else llama.cpp's default if in range."""
    fields: dict[str, Any] = {}
    for name, key in _IDS.items():
        key = "seperator_token_id" if (kind, name) == ("wordpiece", "eos") else key
        candidates = (_one(metadata, key, int, None, path), _DEFAULT_IDS[kind].get(name))
        fields[name] = next((c for c in candidates if c is not None and 0 <= c < count), None)
    return fields


def _named_ends(metadata: Metadata, count: int, eos: int | None) -> tuple[int, ...]:
    """Return the ids of all end tokens that the file names, except EOS and those out of range."""
    listed = metadata.get(_ALL_ENDS)
    numbers = [metadata.get(_PREFIX + key) for key in _ENDS]
    numbers += listed if isinstance(listed, tuple) else ()
    return tuple(dict.fromkeys(n for n in numbers if type(n) is int and 0 <= n < count and n != eos))


def _template(metadata: Metadata, key: str) -> str | None:
    value = metadata.get(key)
    return value if isinstance(value, str) else None


def _named_templates(metadata: Metadata) -> dict[str, str]:
    """Return the named templates, including those that are missing in the list of names."""
    prefix = _TEMPLATE + "."
    keys = [key for key in metadata if key.startswith(prefix)]
    return {key.removeprefix(prefix): value for key in keys if (value := _template(metadata, key)) is not None}


def _habits(metadata: Metadata, kind: str, path: Path) -> dict[str, Any]:
    adds_bos = kind in ("spm", "wordpiece") or metadata.get(_PREFIX + "pre") in _PRE_ADDS_BOS
    lowercase = _one(metadata, "normalizer.lowercase", bool, True, path)
    return {
        "add_bos": _one(metadata, "add_bos_token", bool, adds_bos, path),
        "add_eos": kind == "wordpiece" or _one(metadata, "add_eos_token", bool, False, path),
        "lowercase": lowercase,
        "strip_accents": _one(metadata, "normalizer.strip_accents", bool, lowercase, path),
        "add_space_prefix": _one(metadata, "add_space_prefix", bool, kind == "spm", path),
    }


def _one(metadata: Mapping[str, Any], key: str, kind: type, default: Any, path: Path) -> Any:
    value = metadata.get(_PREFIX + key, default)
    if value is not default and not isinstance(value, kind):
        raise InvalidFileError(
            f"{path}: key {_PREFIX + key!r} holds {value!r:.40}, not of type {kind.__name__}; get the file again"
        )
    return value


def _list(
    metadata: Metadata, key: str, kind: type | tuple[type, ...], path: Path, count: int | None = None
) -> tuple[Any, ...]:
    value = metadata.get(_PREFIX + key, ())
    if not isinstance(value, tuple) or not all(issubclass(each, kind) for each in set(map(type, value))):
        raise InvalidFileError(f"{path}: key {_PREFIX + key!r} is not an array of the right type; get the file again")
    if count is not None and len(value) < count:
        raise InvalidFileError(
            f"{path}: key {_PREFIX + key!r} has {len(value)} items for {count} tokens; get the file again"
        )
    return value[:count]


__all__ = ["from_metadata", "to_metadata"]
