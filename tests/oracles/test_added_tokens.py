"""Tokens that only other files than tokenizer.json name, against transformers: many directories, the same ids."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from edgekit.errors import InvalidFileError
from edgekit.tokenizer import TokenType, from_hf_directory

CONTENTS = ("<|im_start|>", "<|im_end|>", "<stat>", "[PAD]", "li", "</s>", "<|tool|>", "née", " two words ")
ROLES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token", "image_token")
TEXTS = (
    "<|im_start|>user\nOnce <stat> upon a time<|im_end|>\n",
    "the [PAD] </s><|tool|>x née two words  two words  Née <|im_end|>",
    " <|im_end|> <stat>  <|tool|> little",
)


@pytest.fixture(scope="module")
def base() -> str:
    """A byte-level BPE with one added token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(["the time there was the little girl named Lily and it is the end"] * 4, trainer)
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", special=True, normalized=False)])
    return tokenizer.to_str()


def flags(rng: random.Random, special: bool) -> dict[str, Any]:
    return {
        "single_word": rng.random() < 0.2,
        "lstrip": rng.random() < 0.3,
        "rstrip": rng.random() < 0.3,
        "normalized": rng.random() < 0.5,
        "special": special,
    }


def directory(tmp_path: Path, base: str, rng: random.Random) -> Path:
    """Files that name some tokens, as people's directories do; ids as transformers would give them, or with gaps."""
    parsed = json.loads(base)
    vocabulary = parsed["model"]["vocab"]
    free, config, special = len(vocabulary) + 1, {}, {}
    chosen = rng.sample(CONTENTS, rng.randrange(1, 6))
    ids = {}
    for content in chosen:
        ids[content] = vocabulary.get(content, free)
        free += content not in vocabulary
    form = rng.choice(("decoder", "added_tokens.json", "roles", "all"))
    if form in ("decoder", "all"):
        config["added_tokens_decoder"] = {
            str(n): {"content": c, **flags(rng, rng.random() < 0.5)} for c, n in ids.items()
        }
    if form in ("added_tokens.json", "all"):
        (tmp_path / "added_tokens.json").write_text(json.dumps(ids))
    for role in rng.sample(ROLES, rng.randrange(0, 4)):
        entry = rng.choice((*chosen, "<|endoftext|>", "<new>"))
        config[role] = entry
        if role != "image_token" and rng.random() < 0.5:
            special[role] = {"content": rng.choice((entry, "<other>")), "lstrip": rng.random() < 0.5}
    if rng.random() < 0.5:
        extra = rng.sample(("<extra>", *chosen), rng.randrange(1, 3))
        # transformers 5.23 does not call the tokens of added_tokens.json special that special_tokens_map.json's list
        # names, as transformers 4 does and the file says; edgekit does.
        listed = special if rng.random() < 0.5 and form != "added_tokens.json" else config
        listed["additional_special_tokens"] = extra
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    (tmp_path / "tokenizer.json").write_text(base)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(special))
    return tmp_path


@pytest.mark.parametrize("seed", range(120))
def test_tokens_are_merged_as_transformers_merges_them(tmp_path: Path, base: str, seed: int) -> None:
    place = directory(tmp_path, base, random.Random(seed))
    theirs, ours = AutoTokenizer.from_pretrained(place), from_hf_directory(place)
    assert ours is not None
    assert len(ours.tokens) == len(theirs)
    added = theirs.added_tokens_decoder
    assert {n: ours.tokens[n] for n in added} == {n: token.content for n, token in added.items()}
    for number, token in added.items():
        expected = {True: (TokenType.CONTROL, TokenType.UNKNOWN), False: (TokenType.USER_DEFINED, TokenType.UNKNOWN)}
        assert ours.types[number] in expected[token.special], token
    for text in TEXTS:
        assert ours.encode(text, add_special=False) == theirs(text, add_special_tokens=False)["input_ids"], text
    for role in ("bos", "eos", "pad"):
        number = getattr(theirs, f"{role}_token_id")
        assert number is None or getattr(ours, role) == number, role


def put(place: Path, base: str, config: dict[str, Any], **files: Any) -> Path:
    (place / "tokenizer.json").write_text(base)
    (place / "tokenizer_config.json").write_text(json.dumps(config))
    for name, content in files.items():
        (place / f"{name}.json").write_text(json.dumps(content))
    return place


def test_a_token_with_two_ids_is_an_error_that_shows_both(tmp_path: Path, base: str) -> None:
    number = json.loads(base)["model"]["vocab"]["he"]
    put(tmp_path, base, {"added_tokens_decoder": {"299": {"content": "he"}}})
    message = (
        f"{tmp_path}: the files of its tokenizer contradict each other: token 'he' is {number} in tokenizer.json and 299 "
        "in tokenizer_config.json's added_tokens_decoder; take all of them from one place, or remove the one that is "
        "wrong"
    )
    with pytest.raises(InvalidFileError) as error:
        from_hf_directory(tmp_path)
    assert str(error.value) == message


def test_an_id_with_two_tokens_is_an_error_that_shows_both(tmp_path: Path, base: str) -> None:
    put(tmp_path, base, {}, added_tokens={"<|im_end|>": 5})
    with pytest.raises(InvalidFileError, match=r"id 5 is '&' in tokenizer\.json and '<\|im_end\|>' in added_tokens\.j"):
        from_hf_directory(tmp_path)


def test_a_long_token_is_shortened_in_the_message(tmp_path: Path, base: str) -> None:
    put(tmp_path, base, {}, added_tokens={"a" * 5000: 5})
    with pytest.raises(InvalidFileError, match=r"id 5 is '&' in tokenizer\.json and 'a{76}\.\.\. in added") as error:
        from_hf_directory(tmp_path)
    assert len(str(error.value)) < 500


def test_two_files_besides_the_vocabulary_may_not_disagree(tmp_path: Path, base: str) -> None:
    count = json.loads(base)["added_tokens"][0]["id"] + 1
    config = {"added_tokens_decoder": {str(count): {"content": "<a>"}, str(count + 1): {"content": "<b>"}}}
    put(tmp_path, base, config, added_tokens={"<b>": count, "<a>": count + 1})
    with pytest.raises(
        InvalidFileError, match=r"token '<a>' is .* in added_tokens\.json and .* in tokenizer_config\.json"
    ):
        from_hf_directory(tmp_path)


# --- tokenizer.model alone, with tokens beyond it and names for its placeholders ----------------------------------


@pytest.fixture(scope="module")
def model_file() -> bytes:
    """A SentencePiece BPE that keeps two pieces for later, at ids 4 and 5."""
    content = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the time there was the little girl named Lily and it is the end"] * 40),
        model_writer=content,
        model_type="bpe",
        vocab_size=310,
        byte_fallback=True,
        pad_id=3,
        user_defined_symbols=["<unused0>", "<unused1>"],
        normalization_rule_name="identity",
        minloglevel=2,
    )
    return content.getvalue()


def with_model(place: Path, content: bytes, named: dict[int, str], kind: str) -> Path:
    decoder = {str(number): {"content": token, "special": True, "normalized": False} for number, token in named.items()}
    config = {"tokenizer_class": kind, "add_bos_token": True, "added_tokens_decoder": decoder, "eos_token": "</s>"}
    place.mkdir()
    (place / "tokenizer.model").write_bytes(content)
    (place / "config.json").write_text('{"model_type": "llama"}')
    (place / "tokenizer_config.json").write_text(json.dumps(config))
    return place


def test_tokens_behind_a_sentencepiece_model_are_as_in_transformers(tmp_path: Path, model_file: bytes) -> None:
    named = {310: "<|im_start|>", 311: "<|im_end|>"}
    place = with_model(tmp_path / "m", model_file, named, "LlamaTokenizer")
    theirs, ours = AutoTokenizer.from_pretrained(place), from_hf_directory(place)
    assert ours is not None
    assert len(ours.tokens) == len(theirs) == 312
    for text in ("<|im_start|>", "<|im_start|><|im_end|>", "the time<|im_end|>", "Lily"):
        assert ours.encode(text) == theirs(text)["input_ids"], text
    assert (ours.merged, ours.remarks) == (2, ())


def test_placeholders_keep_their_ids_where_transformers_leaves_the_matrix(tmp_path: Path, model_file: bytes) -> None:
    """The files say 4, 5 and 310, and the embedding has 311 rows.

    transformers 5 gives a LlamaTokenizer 310, 311 and 312, which its own model cannot look up; a
    PreTrainedTokenizerFast of the same files has the ids that they say, and so has edgekit.
    """
    named = {4: "<|im_start|>", 5: "<|im_end|>", 310: "<stat>"}
    theirs = AutoTokenizer.from_pretrained(with_model(tmp_path / "llama", model_file, named, "LlamaTokenizer"))
    assert theirs.convert_tokens_to_ids(list(named.values())) == [310, 311, 312]
    same = AutoTokenizer.from_pretrained(with_model(tmp_path / "fast", model_file, named, "PreTrainedTokenizerFast"))
    for folder in ("llama", "fast"):
        ours = from_hf_directory(tmp_path / folder)
        assert ours is not None
        assert len(ours.tokens) == 311
        assert [ours.tokens.index(token) for token in named.values()] == [4, 5, 310]
        assert same.convert_tokens_to_ids(list(named.values())) == [4, 5, 310]
        assert ours.remarks == (
            "tokens that tokenizer.model keeps for later have the names of tokenizer_config.json or added_tokens.json "
            "('<unused0>' is '<|im_start|>', '<unused1>' is '<|im_end|>'); transformers may number such tokens anew, "
            "beyond the model's rows",
        )
