"""The tokens that end a text: those that a model's files name, and those that llama.cpp recognises by their text.

Files often name one end token although a model has several: a chat model ends its turn with one token and a document
with another. llama.cpp therefore also recognises the usual texts; every runtime of edgekit does the same, so that all
of them stop at the same token.

Source: `llama_vocab::impl::load` in ``llama-vocab.cpp``, llama-cpp-python 0.3.36 (``special_eog_ids``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

#: Ends of a text, of a turn, and of a message.
_ENDS = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
    "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>",
    "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "[e~[",
)  # fmt: skip
#: Ends of a text that is filled in (fill in the middle): padding, the next repository, the next file.
_INFILL = (
    "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]", "<|fim_repo|>", "<|repo_name|>", "<fim-repo>",
    "<REPO>", "<reponame>", "<|file_sep|>",
)  # fmt: skip
TEXTS = frozenset((*_ENDS, *_INFILL))


def end_ids(tokens: Sequence[str], named: Iterable[int]) -> frozenset[int]:
    """Return the ids at which a text ends.

    Args:
        tokens: the vocabulary.
        named: ids that the model's files name.
    """
    ids = set(named) | {number for number, token in enumerate(tokens) if token in TEXTS}
    ends = {number: tokens[number] for number in ids if 0 <= number < len(tokens)}
    present = set(ends.values())
    not_ends = set()
    # OpenAI's open models end each message of a turn with <|end|>, and go on.
    if {"<|return|>", "<|call|>"} <= present or {"<|calls|>", "<|flush|>"} <= present:
        not_ends.add("<|end|>")
    if "<|tool_response>" in present:  # Gemma 4, in whose vocabulary </s> is the HTML tag
        not_ends.add("</s>")
    return frozenset(number for number in ids if ends.get(number) not in not_ends)


__all__ = ["TEXTS", "end_ids"]
