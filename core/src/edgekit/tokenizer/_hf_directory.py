"""The tokenizer of a Hugging Face directory, from the most complete of its files.

    tokenizer.json                 complete; scores come from tokenizer.model, or from the order of the merges
    tokenizer.model                SentencePiece, with added_tokens.json and tokenizer_config.json beside it
    vocab.json and merges.txt      byte-level BPE; tokenizer_config.json names the class and so the pre-tokenizer
    vocab.txt                      WordPiece; tokenizer_config.json says whether it lowers case
    tekken.json                    Mistral's byte-level BPE

Special tokens are named in tokenizer_config.json, special_tokens_map.json, or by id in config.json; tokens that these
files or added_tokens.json name are added (`edgekit.tokenizer._added_tokens`). All end tokens of
generation_config.json and config.json are used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from edgekit.errors import InvalidFileError, UnsupportedModelError
from edgekit.files.foreign import member, read_bytes, read_object, shown
from edgekit.tokenizer import _sentencepiece, _tekken, _wordpiece, pretokenizers
from edgekit.tokenizer._added_tokens import AddedToken, contradiction, merge
from edgekit.tokenizer._hf_files import TOKENIZER_LIMIT, Files, added_token, checked_id
from edgekit.tokenizer._record import Tokenizer
from edgekit.tokenizer._sentencepiece import SentencePiece
from edgekit.tokenizer._vocabulary import SPACE, TokenType, byte_tokens

#: Largest number of ids without a token; files with more are refused.
_HOLES = 1 << 16
#: Files of unsupported tokenizers.
_OTHERS = ("spiece.model", "tokenizer.model.v3", "sentencepiece.bpe.model")
_CLASSES = {"Qwen2Tokenizer": "qwen2", "GPT2Tokenizer": "gpt-2", "CodeGenTokenizer": "gpt-2"}


def from_hf_directory(directory: Path) -> Tokenizer | None:
    """Return the tokenizer of a Hugging Face directory: SentencePiece, byte-level BPE or WordPiece; None without one.

    Raises:
        UnsupportedModelError: another kind of tokenizer (Unigram), or a file that is not supported.
        InvalidFileError: a file is malformed, too large, or a link to a place outside the directory.
    """
    files = Files.of(Path(directory))
    parsed = files.tokenizer_json()
    if parsed is not None:
        return _from_json(files, *parsed)
    model = files.sentencepiece()
    if model is not None:
        return _from_sentencepiece(files, model)
    if member(directory, "vocab.json") and member(directory, "merges.txt"):
        return _from_vocab(files)
    if member(directory, "vocab.txt"):
        return _wordpiece.from_vocabulary(files)
    if member(directory, _tekken.NAME):
        return _tekken.from_tekken(files)
    others = [name for name in _OTHERS if member(directory, name)]
    if others:
        raise UnsupportedModelError(
            f"{directory}: its tokenizer is in {others[0]}; edgekit reads tokenizer.json, a SentencePiece "
            "tokenizer.model, vocab.json with merges.txt, WordPiece's vocab.txt, or Mistral's tekken.json; save it "
            "with transformers' AutoTokenizer to get the first"
        )
    return None


# --- tokenizer.json ---------------------------------------------------------------------------------------------


def _from_json(files: Files, text: str, parsed: dict[str, Any]) -> Tokenizer:
    path, model = files.directory / "tokenizer.json", parsed["model"]
    kind = _kind(parsed, path)
    words = _vocabulary(model.get("vocab"), path)
    entries = _added(parsed.get("added_tokens"), path)
    added = merge({token: n for n, token in words.items()}, entries, files.named_tokens(), str(files.directory))
    tokens, types = _list(words | {number: token.content for number, token in added.items()}, path)
    ids = {token: number for number, token in enumerate(tokens)}
    _mark(types, tokens, added, model, kind)
    merges = [] if kind == "wordpiece" else _merges(model.get("merges"), path)
    bos, eos = _template(parsed.get("post_processor"))
    fallback = {"unk": ids.get(str(model.get("unk_token")))}
    if kind == "wordpiece":
        bos, eos = (bos, eos) if bos else _wordpiece.ends_of(parsed.get("post_processor"))
        fallback |= {"bos": ids.get(bos or ""), "eos": ids.get(eos or "")}
    special = files.special_ids(ids, len(tokens), fallback)
    template, templates = files.chat_templates()
    return Tokenizer(
        kind,
        tuple(tokens),
        tuple(types),
        scores=_scores(files, tokens, merges) if kind == "spm" else (),
        merges=tuple(" ".join(pair) for pair in merges) if kind == "bpe" else (),
        pre=_PRE[kind](parsed, model),
        **(_wordpiece.habits(parsed) if kind == "wordpiece" else {}),
        **special,
        ends=files.ends(types, special["eos"]),
        add_bos=files.flag("add_bos_token", bos is not None and bos == _token(tokens, special["bos"])),
        add_eos=files.flag("add_eos_token", eos is not None and eos == _token(tokens, special["eos"])),
        add_space_prefix=kind == "spm" and _prepends(parsed),
        chat_template=template,
        chat_templates=templates,
        json=text if list(added.values()) == sorted(entries, key=_by_id) else _with_added(parsed, added.values()),
        merged=len(added.keys() - words.keys() - {token.id for token in entries}),
        remarks=tuple(files.invalid_ends(len(tokens))),
    )


def _by_id(token: AddedToken) -> int:
    return token.id or 0


def _with_added(parsed: dict[str, Any], added: Iterable[AddedToken]) -> str:
    """Return the text of the tokenizer.json with all added tokens."""
    return json.dumps(parsed | {"added_tokens": [token.to_json() for token in added]}, ensure_ascii=False)


def _token(tokens: list[str], number: int | None) -> str | None:
    return None if number is None else tokens[number]


def _kind(parsed: Mapping[str, Any], path: Path) -> Literal["spm", "bpe", "wordpiece"]:
    model = parsed["model"]
    name = model.get("type") or ("BPE" if "merges" in model else "of no type")
    if name == "WordPiece":
        return "wordpiece"
    if name == "BPE":
        if _steps(parsed, "pre_tokenizer", "ByteLevel") or _steps(parsed, "decoder", "ByteLevel"):
            return "bpe"
        if model.get("byte_fallback") or _prepends(parsed) or _steps(parsed, "normalizer", "Replace"):
            return "spm"
        name = "BPE over characters"
    raise UnsupportedModelError(
        f"{path}: its model is {name}; edgekit supports byte-level BPE, SentencePiece's BPE with bytes as fallback, "
        "and WordPiece"
    )


def _steps(parsed: Mapping[str, Any], component: str, kind: str) -> list[Mapping[str, Any]]:
    """Return the steps of a type in a component, which is one step or a sequence."""
    top = parsed.get(component)
    if not isinstance(top, dict):
        return []
    steps = next(
        (s for key in ("normalizers", "pretokenizers", "decoders", "processors") if (s := top.get(key))), [top]
    )
    return [
        step
        for step in (steps if isinstance(steps, list) else ())
        if isinstance(step, dict) and step.get("type") == kind
    ]


def _prepends(parsed: Mapping[str, Any]) -> bool:
    if any(step.get("prepend") == SPACE for step in _steps(parsed, "normalizer", "Prepend")):
        return True
    metaspace = _steps(parsed, "pre_tokenizer", "Metaspace")
    return any(s.get("prepend_scheme", "always") != "never" and s.get("add_prefix_space", True) for s in metaspace)


def _pre(parsed: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    return pretokenizers.from_json(parsed.get("pre_tokenizer"), model.get("ignore_merges") is True)


_PRE: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any]], str]] = {
    "spm": lambda parsed, model: "default",
    "bpe": _pre,
    "wordpiece": _wordpiece.pre,
}


def _vocabulary(vocab: Any, path: Path) -> dict[int, str]:
    if not (isinstance(vocab, dict) and vocab):
        raise InvalidFileError(f"{path}: its vocabulary is not a mapping of tokens to ids; fetch it again")
    words = {checked_id(number, path): token for token, number in vocab.items()}
    if len(words) < len(vocab):
        raise InvalidFileError(f"{path}: two tokens share an id; fetch it again")
    return words


def _added(entries: Any, path: Path) -> list[AddedToken]:
    if not (isinstance(entries, list | None) and all(isinstance(e, dict) for e in entries or ())):
        raise InvalidFileError(f"{path}: added_tokens is not a list of objects; fetch it again")
    return [added_token(entry, checked_id(entry.get("id"), path), path, path.name) for entry in entries or ()]


def _list(words: Mapping[int, str], path: Path) -> tuple[list[str], list[TokenType]]:
    """Return tokens and types by id; ids without a token get unused ones."""
    count = max(words) + 1
    if count - len(words) > _HOLES:
        raise InvalidFileError(f"{path}: {len(words)} tokens have ids up to {count - 1}; fetch it again")
    tokens = [words.get(number, f"[PAD{number}]") for number in range(count)]
    return tokens, [TokenType.NORMAL if number in words else TokenType.UNUSED for number in range(count)]


def _mark(
    types: list[TokenType],
    tokens: list[str],
    added: Mapping[int, AddedToken],
    model: Mapping[str, Any],
    kind: str,
) -> None:
    """Set the types of bytes, added tokens and the unknown token."""
    if kind == "spm":
        _mark_bytes(types, tokens)
    for number, token in added.items():
        types[number] = _type(token)
    unknown = model.get("unk_token")
    if isinstance(unknown, str) and unknown in tokens:
        types[tokens.index(unknown)] = TokenType.UNKNOWN


def _type(token: AddedToken) -> TokenType:
    return TokenType.CONTROL if token.special else TokenType.USER_DEFINED


def _mark_bytes(types: list[TokenType], tokens: list[str]) -> None:
    for number, token in enumerate(tokens):
        if token in byte_tokens():
            types[number] = TokenType.BYTE


def _merges(merges: Any, path: Path) -> list[tuple[str, str]]:
    """Return pairs from ``["left right"]`` or ``[["left", "right"]]``."""
    pairs = [
        tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) if isinstance(merge, list) else ()
        for merge in (merges if isinstance(merges, list) else [None])
    ]
    if not all(len(pair) == 2 and all(isinstance(part, str) for part in pair) for pair in pairs):
        raise InvalidFileError(f"{path}: its merges are not a list of pairs; fetch it again")
    return pairs  # type: ignore[return-value]


def _template(processor: Any) -> tuple[str | None, str | None]:
    """Return the special tokens that a post-processor adds before and after a single text."""
    for step in _steps({"post_processor": processor}, "post_processor", "TemplateProcessing"):
        single = step.get("single")
        pieces = (
            [next(iter(p.items())) for p in single if isinstance(p, dict) and p] if isinstance(single, list) else []
        )
        kinds = [kind for kind, _ in pieces]
        if "Sequence" in kinds:
            middle = kinds.index("Sequence")
            return _special(pieces[:middle], 0), _special(pieces[middle + 1 :], -1)
    return None, None


def _special(pieces: list[tuple[str, Any]], which: int) -> str | None:
    tokens = [value.get("id") for kind, value in pieces if kind == "SpecialToken" and isinstance(value, dict)]
    return tokens[which] if tokens else None


def _scores(files: Files, tokens: list[str], merges: Iterable[tuple[str, str]]) -> tuple[float, ...]:
    """Return the scores of tokenizer.model if it has the same pieces; else the rank of each piece's first merge."""
    model = files.sentencepiece()
    if model is not None and [piece for piece, _, _ in model.pieces] == tokens[: len(model.pieces)]:
        scores = [score for _, score, _ in model.pieces]
        return (*scores, *(0.0 for _ in tokens[len(scores) :]))
    ranks: dict[str, int] = {}
    for left, right in merges:
        ranks.setdefault(left + right, len(ranks))
    # Single characters are never the result of a merge; their scores have no effect.
    return tuple(-float(ranks.get(token, len(ranks))) for token in tokens)


# --- tokenizer.model, and vocab.json with merges.txt ------------------------------------------------------------


def _from_sentencepiece(files: Files, model: SentencePiece) -> Tokenizer:
    path = files.directory / "tokenizer.model"
    if model.model_type != _sentencepiece.BPE or model.charsmap:
        kind = "normalizes texts by a table" if model.charsmap else f"is of type {model.model_type}, not BPE (2)"
        raise UnsupportedModelError(
            f"{path}: this SentencePiece model {kind}; edgekit supports BPE without such a table"
        )
    pieces = {number: piece for number, (piece, _, _) in enumerate(model.pieces)}
    named = files.named_tokens()
    renamed = _rename(pieces, model, named, files.directory)
    added = _beside({token: number for number, token in pieces.items()}, named, files.directory, path.name)
    tokens, types = _list(pieces | {number: token.content for number, token in added.items()}, path)
    types[: len(pieces)] = [TokenType(kind) for _, _, kind in model.pieces]
    for number, token in added.items():
        if types[number] is not TokenType.UNKNOWN:
            types[number] = _type(token)
    ids_of_roles = {"bos": model.bos, "eos": model.eos, "unk": model.unk, "pad": model.pad}
    special = files.special_ids({token: number for number, token in enumerate(tokens)}, len(tokens), ids_of_roles)
    template, templates = files.chat_templates()
    return Tokenizer(
        "spm",
        tuple(tokens),
        tuple(types),
        scores=tuple([score for _, score, _ in model.pieces] + [0.0] * (len(tokens) - len(model.pieces))),
        **special,
        ends=files.ends(types, special["eos"]),
        add_bos=files.flag("add_bos_token", True),
        add_eos=files.flag("add_eos_token", False),
        add_space_prefix=model.add_space_prefix,
        chat_template=template,
        chat_templates=templates,
        merged=len(added.keys() - pieces.keys()),
        remarks=(*renamed, *files.invalid_ends(len(tokens))),
    )


#: Renamed pieces that a remark shows.
_NAMED = 3
#: Names of reserved pieces in vocabularies.
_PLACEHOLDER = re.compile(r"[<\[].*[>\]]")


def _rename(pieces: dict[int, str], model: SentencePiece, named: Iterable[AddedToken], directory: Path) -> list[str]:
    """Rename reserved pieces (``<unused0>``) to the tokens that other files assign to their ids.

    transformers 5 appends such tokens to the vocabulary instead when it makes a LlamaTokenizer or a GemmaTokenizer of
    tokenizer.model, so that its ids lie beyond the model's rows; with a PreTrainedTokenizerFast it keeps the ids.

    Returns:
        A remark, if any was renamed.

    Raises:
        InvalidFileError: a file assigns another token to the id of a text piece.
    """
    known = set(pieces.values())
    renamed: list[str] = []
    for token in named:
        if token.id not in pieces or pieces[token.id] == token.content or token.content in known:
            continue
        piece, kind = pieces[token.id], TokenType(model.pieces[token.id][2])
        if kind is TokenType.BYTE or (kind is TokenType.NORMAL and not _PLACEHOLDER.fullmatch(piece)):
            first = (f"id {token.id} is", shown(piece), "tokenizer.model")
            raise contradiction(str(directory), first, (shown(token.content), token.source))
        renamed.append(f"{shown(piece)} is {shown(token.content)}")
        pieces[token.id] = token.content
    if not renamed:
        return []
    more = f" and {len(renamed) - _NAMED} more" if len(renamed) > _NAMED else ""
    return [
        f"tokens that tokenizer.model keeps for later have the names of tokenizer_config.json or added_tokens.json "
        f"({', '.join(renamed[:_NAMED])}{more}); transformers may number such tokens anew, beyond the model's rows"
    ]


def _beside(ids: Mapping[str, int], named: list[AddedToken], directory: Path, source: str) -> dict[int, AddedToken]:
    """Return the added tokens of a vocabulary without a tokenizer.json, whose files state every id."""
    added = [token for token in named if token.id is not None and token.content not in ids]
    return merge(ids, added, named, str(directory), source)


def _from_vocab(files: Files) -> Tokenizer:
    path = files.directory / "vocab.json"
    pre = _CLASSES.get(str(files.config.get("tokenizer_class")).removesuffix("Fast"))
    if pre is None:
        named = shown(files.config.get("tokenizer_class"))
        raise UnsupportedModelError(
            f"{path}: tokenizer_config.json names the class {named}; edgekit supports "
            f"{', '.join(_CLASSES)} without a tokenizer.json; save it with transformers' AutoTokenizer to get one"
        )
    words = _vocabulary(read_object(files.directory, "vocab.json", TOKENIZER_LIMIT), path)
    added = _beside({token: n for n, token in words.items()}, files.named_tokens(), files.directory, path.name)
    tokens, types = _list(words | {number: token.content for number, token in added.items()}, path)
    template, templates = files.chat_templates()
    special = files.special_ids({token: number for number, token in enumerate(tokens)}, len(tokens), {})
    _mark(types, tokens, added, {}, "bpe")
    return Tokenizer(
        "bpe",
        tuple(tokens),
        tuple(types),
        merges=tuple(" ".join(pair) for pair in _merges(_merge_lines(files.directory), path.with_name("merges.txt"))),
        pre=pre,
        **special,
        ends=files.ends(types, special["eos"]),
        add_bos=files.flag("add_bos_token", False),
        add_eos=files.flag("add_eos_token", False),
        add_space_prefix=False,
        chat_template=template,
        chat_templates=templates,
        merged=len(added.keys() - words.keys()),
        remarks=tuple(files.invalid_ends(len(tokens))),
    )


def _merge_lines(directory: Path) -> list[str]:
    content = read_bytes(directory, "merges.txt", TOKENIZER_LIMIT) or b""
    try:
        lines = content.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise InvalidFileError(
            f"{directory / 'merges.txt'}: not UTF-8 at byte {error.start:,}; fetch it again"
        ) from error
    return [
        line.rstrip("\r")
        for number, line in enumerate(lines)
        if line.strip() and not (number == 0 and line.startswith("#version"))
    ]


__all__ = ["from_hf_directory"]
