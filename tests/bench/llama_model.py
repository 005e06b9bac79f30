"""A random Llama as a GGUF file: what the benchmarks quantize and run. No framework but gguf-py writes it.

python tests/bench/llama_model.py FILE      writes the model of 225 MB (F16; 10 layers, width 768)
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import attrs
import numpy as np

#: Tokens that every SentencePiece vocabulary of Llama begins with: unknown, begin, end, and the bytes.
_FIRST = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6  # token types


@attrs.frozen
class Shape:
    """Hyper-parameters; the defaults make 112.6 million weights."""

    layers: int = 10
    width: int = 768
    ffn: int = 3072
    heads: int = 12
    kv_heads: int = 4
    vocab: int = 17_000
    context: int = 2048

    def matrices(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name and shape of every tensor."""
        keys = self.width // self.heads * self.kv_heads
        yield "token_embd.weight", (self.vocab, self.width)
        for layer in range(self.layers):
            for name, rows, cols in (
                ("attn_q", self.width, self.width),
                ("attn_k", keys, self.width),
                ("attn_v", keys, self.width),
                ("attn_output", self.width, self.width),
                ("ffn_gate", self.ffn, self.width),
                ("ffn_up", self.ffn, self.width),
                ("ffn_down", self.width, self.ffn),
            ):
                yield f"blk.{layer}.{name}.weight", (rows, cols)
            for name in ("attn_norm", "ffn_norm"):
                yield f"blk.{layer}.{name}.weight", (self.width,)
        yield "output_norm.weight", (self.width,)
        yield "output.weight", (self.vocab, self.width)


def write_llama(path: Path, shape: Shape | None = None, dtype: type = np.float16, seed: int = 0) -> Path:
    """Write random weights of a trained model's spread: normal, of deviation 1 / sqrt(columns); norms near 1."""
    from gguf import GGUFWriter

    shape = shape or Shape()
    writer = GGUFWriter(path, "llama")
    _describe(writer, shape)
    random = np.random.default_rng(seed)
    for name, size in shape.matrices():
        values = random.standard_normal(size, np.float32)
        if len(size) == 1:
            writer.add_tensor(name, 1 + np.float32(0.1) * values)
        else:
            writer.add_tensor(name, (values / np.float32(np.sqrt(size[-1]))).astype(dtype))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _describe(writer, shape: Shape) -> None:  # type: ignore[no-untyped-def]
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.width // shape.heads)
    writer.add_vocab_size(shape.vocab)
    writer.add_file_type(1)
    tokens = [*_FIRST, *(f"▁t{i}" for i in range(shape.vocab - len(_FIRST)))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(i) for i in range(shape.vocab)])
    kinds = [_UNKNOWN, _CONTROL, _CONTROL, *[_BYTE] * 256]
    writer.add_token_types([*kinds, *[_NORMAL] * (shape.vocab - len(kinds))])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


if __name__ == "__main__":
    print(write_llama(Path(sys.argv[1])).stat().st_size, "bytes")
