"""The tokenizer of a Hugging Face directory, from whichever of its files says most.

    tokenizer.json                 everything; scores come from tokenizer.model, or from the order of the merges
    tokenizer.model                SentencePiece, with added_tokens.json and tokenizer_config.json beside it
    vocab.json and merges.txt      byte-level BPE; tokenizer_config.json names the class, which decides the words

Special tokens are named in tokenizer_config.json, special_tokens_map.json, or by id in config.json.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import attrs

from edgekit.errors import InvalidFileError, UnsupportedModelError
from edgekit.files.foreign import member, read_bytes, read_object, shown, strict_json
from edgekit.tokenizer import pretokenizers, sentencepiece
from edgekit.tokenizer.record import Tokenizer, TokenType
from edgekit.tokenizer.sentencepiece import SentencePiece
from edgekit.tokenizer.text import byte_tokens
from edgekit.tokenizer.tokenizer_json import SPACE

#: A tokenizer.json of 256,000 tokens has 34 MiB.
TOKENIZER_LIMIT = 256 << 20
#: The largest id, and how many ids may be without a token: files that say more are not believed.
_LARGEST_ID, _HOLES = 1 << 22, 1 << 16
#: What other tokenizers leave in a directory.
_OTHERS = ("vocab.txt", "spiece.model", "tekken.json", "tokenizer.model.v3", "sentencepiece.bpe.model")
_CLASSES = {"Qwen2Tokenizer": "qwen2", "GPT2Tokenizer": "gpt-2", "CodeGenTokenizer": "gpt-2"}


def read(directory: Path) -> Tokenizer | None:
    """The directory's tokenizer; see `edgekit.tokenizer.from_hf_directory`."""
    files = _Files.of(directory)
    parsed = files.tokenizer_json()
    if parsed is not None:
        return _from_json(files, *parsed)
    model = files.sentencepiece()
    if model is not None:
        return _from_sentencepiece(files, model)
    if member(directory, "vocab.json") and member(directory, "merges.txt"):
        return _from_vocab(files)
    others = [name for name in _OTHERS if member(directory, name)]
    if others:
        raise UnsupportedModelError(
            f"{directory}: its tokenizer is in {others[0]}; edgekit reads tokenizer.json, a SentencePiece "
            "tokenizer.model, or vocab.json with merges.txt; save it with transformers' AutoTokenizer to get the first"
        )
    return None


@attrs.frozen
class _Files:
    """The files of a directory that are read whatever the tokenizer's kind."""

    directory: Path
    config: Mapping[str, Any]
    special: Mapping[str, Any]
    model_config: Mapping[str, Any]

    @classmethod
    def of(cls, directory: Path) -> _Files:
        names = ("tokenizer_config.json", "special_tokens_map.json", "config.json")
        return cls(directory, *(read_object(directory, name, TOKENIZER_LIMIT) or {} for name in names))

    def tokenizer_json(self) -> tuple[str, dict[str, Any]] | None:
        """The text of tokenizer.json, and what it says."""
        content = read_bytes(self.directory, "tokenizer.json", TOKENIZER_LIMIT)
        if content is None:
            return None
        path = self.directory / "tokenizer.json"
        parsed = strict_json(content, path, "the file")
        if not (isinstance(parsed, dict) and isinstance(parsed.get("model"), dict)):
            raise InvalidFileError(f"{path}: describes no model; fetch it again")
        return content.decode("utf-8"), parsed

    def sentencepiece(self) -> SentencePiece | None:
        """What tokenizer.model says, where there is one."""
        content = read_bytes(self.directory, "tokenizer.model", TOKENIZER_LIMIT)
        return None if content is None else sentencepiece.parse(content, self.directory / "tokenizer.model")

    def added(self) -> dict[int, tuple[str, bool]]:
        """Id to (token, whether it is special), from the files beside a vocabulary."""
        path = self.directory / "tokenizer_config.json"
        found: dict[int, tuple[str, bool]] = {}
        for token, number in (read_object(self.directory, "added_tokens.json", TOKENIZER_LIMIT) or {}).items():
            found[_checked(number, path.with_name("added_tokens.json"))] = (token, token in self._named())
        decoder = self.config.get("added_tokens_decoder") or {}
        if not isinstance(decoder, dict):
            raise InvalidFileError(f"{path}: added_tokens_decoder is no object; fetch it again")
        for key, entry in decoder.items():
            number = int(key) if key.isascii() and key.isdigit() and len(key) < 10 else -1
            found[_checked(number, path)] = _content(entry, path)
        return found

    def name(self, role: str) -> str | None:
        """The token that plays a role (``bos_token``)."""
        for source in (self.config, self.special):
            entry = source.get(role)
            token = entry.get("content") if isinstance(entry, dict) else entry
            if isinstance(token, str) and token:
                return token
        return None

    def _named(self) -> set[str]:
        roles = ("bos_token", "eos_token", "unk_token", "pad_token")
        others = self.special.get("additional_special_tokens")
        return {name for role in roles if (name := self.name(role))} | {
            t for t in (others if isinstance(others, list) else ()) if isinstance(t, str)
        }

    def special_ids(self, ids: Mapping[str, int], count: int, fallback: Mapping[str, int | None]) -> dict[str, Any]:
        """Ids of the special tokens: by name, else by number in config.json, else as the vocabulary has them."""
        found: dict[str, int | None] = {}
        for role in ("bos", "eos", "unk", "pad"):
            name = self.name(f"{role}_token")
            number = self.model_config.get(f"{role}_token_id")
            number = number[0] if isinstance(number, list) and number else number
            if name is not None and name in ids:
                found[role] = ids[name]
            elif f"{role}_token" not in self.config and type(number) is int and 0 <= number < count:
                found[role] = number
            else:
                found[role] = fallback.get(role)
        return found

    def flag(self, key: str, default: bool) -> bool:
        """A flag of tokenizer_config.json."""
        value = self.config.get(key)
        return value if isinstance(value, bool) else default

    def chat_template(self) -> str | None:
        """Jinja source, from the newest place that holds it."""
        content = read_bytes(self.directory, "chat_template.jinja", TOKENIZER_LIMIT)
        if content is not None:
            try:
                return content.decode("utf-8")
            except UnicodeDecodeError as error:
                path = self.directory / "chat_template.jinja"
                raise InvalidFileError(f"{path}: not UTF-8 at byte {error.start:,}; fetch it again") from error
        beside = read_object(self.directory, "chat_template.json", TOKENIZER_LIMIT) or {}
        for template in (self.config.get("chat_template"), beside.get("chat_template")):
            if isinstance(template, list):
                named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
                template = named.get("default", next(iter(named.values()), None))
            if isinstance(template, str):
                return template
        return None


def _content(entry: Any, path: Path) -> tuple[str, bool]:
    if not (isinstance(entry, dict) and isinstance(entry.get("content"), str)):
        raise InvalidFileError(f"{path}: an added token without content; fetch it again")
    return entry["content"], entry.get("special") is True


def _checked(number: Any, path: Path) -> int:
    if not (type(number) is int and 0 <= number <= _LARGEST_ID):
        raise InvalidFileError(f"{path}: {shown(number)} is no token id; fetch it again")
    return number


# --- tokenizer.json ---------------------------------------------------------------------------------------------


def _from_json(files: _Files, text: str, parsed: Mapping[str, Any]) -> Tokenizer:
    path, model = files.directory / "tokenizer.json", parsed["model"]
    kind = _kind(parsed, path)
    words = _vocabulary(model.get("vocab"), path)
    added = _added(parsed.get("added_tokens"), path)
    tokens, types = _list(words | {number: token for number, (token, _) in added.items()}, path)
    ids = {token: number for number, token in enumerate(tokens)}
    _mark(types, tokens, added, model, kind)
    merges = _merges(model.get("merges"), path)
    bos, eos = _template(parsed.get("post_processor"))
    special = files.special_ids(ids, len(tokens), {"unk": ids.get(str(model.get("unk_token")))})
    return Tokenizer(
        kind,
        tuple(tokens),
        tuple(types),
        scores=_scores(files, tokens, merges) if kind == "spm" else (),
        merges=tuple(" ".join(pair) for pair in merges) if kind == "bpe" else (),
        pre="default" if kind == "spm" else _pre(parsed, model),
        **special,
        add_bos=files.flag("add_bos_token", bos is not None and bos == _token(tokens, special["bos"])),
        add_eos=files.flag("add_eos_token", eos is not None and eos == _token(tokens, special["eos"])),
        add_space_prefix=kind == "spm" and _prepends(parsed),
        chat_template=files.chat_template(),
        json=text,
    )


def _token(tokens: list[str], number: int | None) -> str | None:
    return None if number is None else tokens[number]


def _kind(parsed: Mapping[str, Any], path: Path) -> Literal["spm", "bpe"]:
    model = parsed["model"]
    name = model.get("type") or ("BPE" if "merges" in model else "of no type")
    if name == "BPE":
        if _steps(parsed, "pre_tokenizer", "ByteLevel") or _steps(parsed, "decoder", "ByteLevel"):
            return "bpe"
        if model.get("byte_fallback") or _prepends(parsed) or _steps(parsed, "normalizer", "Replace"):
            return "spm"
        name = "BPE over characters"
    raise UnsupportedModelError(
        f"{path}: its model is {name}; edgekit knows byte-level BPE, and SentencePiece's BPE with bytes as fallback"
    )


def _steps(parsed: Mapping[str, Any], component: str, kind: str) -> list[Mapping[str, Any]]:
    """The steps of that type in a component, which is one step or a sequence."""
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


def _vocabulary(vocab: Any, path: Path) -> dict[int, str]:
    if not (isinstance(vocab, dict) and vocab):
        raise InvalidFileError(f"{path}: its vocabulary is no mapping of tokens to ids; fetch it again")
    words = {_checked(number, path): token for token, number in vocab.items()}
    if len(words) < len(vocab):
        raise InvalidFileError(f"{path}: two tokens share an id; fetch it again")
    return words


def _added(entries: Any, path: Path) -> dict[int, tuple[str, bool]]:
    if not (isinstance(entries, list | None) and all(isinstance(e, dict) for e in entries or ())):
        raise InvalidFileError(f"{path}: added_tokens is no list of objects; fetch it again")
    return {_checked(entry.get("id"), path): _content(entry, path) for entry in entries or ()}


def _list(words: Mapping[int, str], path: Path) -> tuple[list[str], list[TokenType]]:
    """Tokens and types by id; ids without a token are filled with unused ones."""
    count = max(words) + 1
    if count - len(words) > _HOLES:
        raise InvalidFileError(f"{path}: {len(words)} tokens have ids up to {count - 1}; fetch it again")
    tokens = [words.get(number, f"[PAD{number}]") for number in range(count)]
    return tokens, [TokenType.NORMAL if number in words else TokenType.UNUSED for number in range(count)]


def _mark(
    types: list[TokenType],
    tokens: list[str],
    added: Mapping[int, tuple[str, bool]],
    model: Mapping[str, Any],
    kind: str,
) -> None:
    """Say which tokens are bytes, added, or unknown."""
    if kind == "spm":
        _mark_bytes(types, tokens)
    for number, (_, special) in added.items():
        types[number] = TokenType.CONTROL if special else TokenType.USER_DEFINED
    unknown = model.get("unk_token")
    if isinstance(unknown, str) and unknown in tokens:
        types[tokens.index(unknown)] = TokenType.UNKNOWN


def _mark_bytes(types: list[TokenType], tokens: list[str]) -> None:
    for number, token in enumerate(tokens):
        if token in byte_tokens():
            types[number] = TokenType.BYTE


def _merges(merges: Any, path: Path) -> list[tuple[str, str]]:
    """Pairs, from ``["left right"]`` or ``[["left", "right"]]``."""
    pairs = [
        tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) if isinstance(merge, list) else ()
        for merge in (merges if isinstance(merges, list) else [None])
    ]
    if not all(len(pair) == 2 and all(isinstance(part, str) for part in pair) for pair in pairs):
        raise InvalidFileError(f"{path}: its merges are no list of pairs; fetch it again")
    return pairs  # type: ignore[return-value]


def _template(processor: Any) -> tuple[str | None, str | None]:
    """The special tokens that a post-processor puts before and after a single text."""
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


def _scores(files: _Files, tokens: list[str], merges: Iterable[tuple[str, str]]) -> tuple[float, ...]:
    """Scores of tokenizer.model where it has the same pieces; else a piece scores by its first merge."""
    model = files.sentencepiece()
    if model is not None and [piece for piece, _, _ in model.pieces] == tokens[: len(model.pieces)]:
        own = [score for _, score, _ in model.pieces]
        return (*own, *(0.0 for _ in tokens[len(own) :]))
    ranks: dict[str, int] = {}
    for left, right in merges:
        ranks.setdefault(left + right, len(ranks))
    # Single characters are never the result of a merge; their scores order nothing.
    return tuple(-float(ranks.get(token, len(ranks))) for token in tokens)


# --- tokenizer.model, and vocab.json with merges.txt ------------------------------------------------------------


def _from_sentencepiece(files: _Files, model: SentencePiece) -> Tokenizer:
    path = files.directory / "tokenizer.model"
    if model.model_type != sentencepiece.BPE or model.charsmap:
        kind = "normalizes texts by a table" if model.charsmap else f"is of type {model.model_type}, not BPE (2)"
        raise UnsupportedModelError(f"{path}: this SentencePiece model {kind}; edgekit knows BPE without such a table")
    added = {number: entry for number, entry in files.added().items() if number >= len(model.pieces)}
    words = dict(enumerate(piece for piece, _, _ in model.pieces)) | {n: token for n, (token, _) in added.items()}
    tokens, types = _list(words, path)
    types[: len(model.pieces)] = [TokenType(kind) for _, _, kind in model.pieces]
    for number, (_, special) in added.items():
        types[number] = TokenType.CONTROL if special else TokenType.USER_DEFINED
    own = {"bos": model.bos, "eos": model.eos, "unk": model.unk, "pad": model.pad}
    return Tokenizer(
        "spm",
        tuple(tokens),
        tuple(types),
        scores=tuple([score for _, score, _ in model.pieces] + [0.0] * (len(tokens) - len(model.pieces))),
        **files.special_ids({token: number for number, token in enumerate(tokens)}, len(tokens), own),
        add_bos=files.flag("add_bos_token", True),
        add_eos=files.flag("add_eos_token", False),
        add_space_prefix=model.add_space_prefix,
        chat_template=files.chat_template(),
    )


def _from_vocab(files: _Files) -> Tokenizer:
    path = files.directory / "vocab.json"
    pre = _CLASSES.get(str(files.config.get("tokenizer_class")).removesuffix("Fast"))
    if pre is None:
        named = shown(files.config.get("tokenizer_class"))
        raise UnsupportedModelError(
            f"{path}: tokenizer_config.json names the class {named}; edgekit knows "
            f"{', '.join(_CLASSES)} without a tokenizer.json; save it with transformers' AutoTokenizer to get one"
        )
    added = files.added()
    words = _vocabulary(read_object(files.directory, "vocab.json", TOKENIZER_LIMIT), path)
    tokens, types = _list(words | {number: token for number, (token, _) in added.items()}, path)
    _mark(types, tokens, added, {}, "bpe")
    return Tokenizer(
        "bpe",
        tuple(tokens),
        tuple(types),
        merges=tuple(" ".join(pair) for pair in _merges(_merge_lines(files.directory), path.with_name("merges.txt"))),
        pre=pre,
        **files.special_ids({token: number for number, token in enumerate(tokens)}, len(tokens), {}),
        add_bos=files.flag("add_bos_token", False),
        add_eos=files.flag("add_eos_token", False),
        add_space_prefix=False,
        chat_template=files.chat_template(),
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
