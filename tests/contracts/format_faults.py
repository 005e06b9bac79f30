"""Wrong formats: the project's formats, each with one fault. `FORMATS` says which check is right, and what it says."""

import itertools
import json
from pathlib import Path

import attrs
import numpy as np

from edgekit.artifact import Artifact
from edgekit.errors import EdgekitError
from edgekit.formats.hf import HuggingFaceFormat
from edgekit.tensor import EncodedTensor, Tensor


class Opened(HuggingFaceFormat):
    """Changes the artifact that it opens."""

    def change(self, artifact):
        return artifact

    def open(self, path):
        return self.change(super().open(path))


def with_model(function):
    """A format whose artifacts have another model."""

    def change(self, artifact):
        return attrs.evolve(artifact, load_model=lambda: function(artifact.load_model()))

    return type("Changed", (Opened,), {"change": change})


def with_tokenizer(**changes):
    def change(self, artifact):
        return attrs.evolve(artifact, load_tokenizer=lambda: evolved(artifact.load_tokenizer(), changes))

    return type("Changed", (Opened,), {"change": change})


def evolved(record, changes):
    return record and attrs.evolve(
        record, **{k: v(getattr(record, k)) if callable(v) else v for k, v in changes.items()}
    )


def with_config(**changes):
    return with_model(lambda model: attrs.evolve(model, config=evolved(model.config, changes)))


def with_tensor(name, function):
    def change(model):
        values = function(model.tensors[name].float32())
        return attrs.evolve(model, tensors={**model.tensors, name: Tensor.of(name, np.ascontiguousarray(values))})

    return with_model(change)


def halves_for_pairs(q):
    """The rows of each head in the other rotary order."""
    return q.reshape(-1, 2, 8, q.shape[1]).swapaxes(1, 2).reshape(q.shape)


class MatchesAll(HuggingFaceFormat):
    def matches(self, path):
        return True


class Careless(HuggingFaceFormat):
    """Its writer is wrapped; `wrap` says in what."""

    def writer(self, path, layout, plan, manifest):
        return self.wrap(super().writer(path, layout, plan, manifest), path)


@attrs.define
class Wrapped:
    inner: object
    path: Path

    @property
    def done(self):
        return self.inner.done

    def write(self, tensor):
        self.inner.write(tensor)

    def commit(self):
        self.inner.commit()

    def close(self, keep=False):
        self.inner.close(keep)


class ShowsEarly(Wrapped):
    def write(self, tensor):
        self.path.mkdir(exist_ok=True)
        super().write(tensor)


class LeavesScraps(Wrapped):
    def close(self, keep=False):
        super().close(keep)
        self.path.with_name("model.tmp").write_text("left")


class Clocked(Wrapped):
    clock = itertools.count()

    def commit(self):
        super().commit()
        (self.path / "config.json").write_text((self.path / "config.json").read_text() + " " * next(self.clock))


class Incomplete(Wrapped):
    """Takes what comes, in any order, and fills up what is missing."""

    def commit(self):
        try:
            super().commit()
        except EdgekitError:
            self.path.mkdir(exist_ok=True)

    def write(self, tensor):
        try:
            super().write(tensor)
        except EdgekitError:
            return


class StartsAgain(Wrapped):
    @property
    def done(self):
        return max(0, self.inner.done - 1)


class SwapsNibbles(Wrapped):
    def write(self, tensor):
        if "codes" in tensor.parts:
            codes = tensor.parts["codes"]
            tensor = attrs.evolve(
                tensor, parts={**tensor.parts, "codes": (codes << 4 | codes >> 4).astype(codes.dtype)}
            )
        super().write(tensor)


class RowsUpsideDown(Wrapped):
    """Slices of rows come last row first."""

    def write_rows(self, rows, first):
        parts = {key: part[::-1] if part.ndim else part for key, part in rows.parts.items()}
        self.inner.write_rows(attrs.evolve(rows, parts=parts), first)


class Rounds(Wrapped):
    """Stores every float32 in float16's precision."""

    def write(self, tensor):
        if tensor.precision.kind == "F32":
            values = tensor.parts["values"].astype(np.float16).astype(np.float32)
            tensor = attrs.evolve(tensor, parts={"values": values})
        super().write(tensor)


def careless(wrapper):
    return type("Careless", (Careless,), {"wrap": staticmethod(wrapper)})


def wrong_slices(model):
    """Slices that do not begin at the first row come one row late."""

    def late(tensor):
        def read_rows(start, stop, read=tensor.read_rows):
            return read(max(0, start - 1), stop - 1) if start else read(start, stop)

        return attrs.evolve(tensor, read_rows=read_rows)

    return attrs.evolve(model, tensors={name: late(tensor) for name, tensor in model.tensors.items()})


class Trusting(HuggingFaceFormat):
    """Fills up with zeros what a file lacks."""

    def open(self, path):
        file = path / "model.safetensors"
        data = file.read_bytes()
        try:
            return super().open(path)
        except EdgekitError:
            length = int.from_bytes(data[:8].ljust(8, b"\0"), "little")
            if length > len(data):
                raise
            file.write_bytes(data + bytes(1 << 20))
            try:
                return super().open(path)
            except EdgekitError:
                return Artifact(path, "hf", (file,), {}, {}, lambda: None, lambda: None)


class Untyped(HuggingFaceFormat):
    """Lets Python's own exceptions out."""

    def open(self, path):
        try:
            return super().open(path)
        except EdgekitError as error:
            raise KeyError("tensors") from error


def lost(name):
    return with_model(lambda m: attrs.evolve(m, tensors={k: v for k, v in m.tensors.items() if k != name}))


FORMATS = {
    "rows of a rotary projection in the other order": (
        with_tensor("blk.0.attn_q.weight", halves_for_pairs), "check_tensors", "rows in another order",
    ),
    "a matrix transposed": (with_tensor("blk.0.ffn_up.weight", np.transpose), "check_tensors", "rows|comes back|shape"),
    "the output matrix lost, as if it were tied": (lost("output.weight"), "check_tensors", "is gone"),
    "a norm off by one, as Gemma has it": (with_tensor("output_norm.weight", lambda w: w + 1), "check_tensors", ""),
    "float32 stored in float16's precision": (careless(Rounds), "check_tensors", "comes back as"),
    "the norm's epsilon lost": (with_config(norm_eps=1e-6), "check_config", "norm_eps was 1e-05"),
    "the rotary base lost": (with_config(rope_theta=10000.0), "check_config", "rope_theta"),
    "key and value heads taken for heads": (with_config(kv_heads=lambda n: n * 2), "check_config", "kv_heads"),
    "a context of the default length": (with_config(context=2048), "check_config", "context"),
    "merges lost": (with_tokenizer(merges=()), "check_tokenizer", "merges of the bpe tokenizer"),
    "merges in another order": (with_tokenizer(merges=lambda m: m[::-1]), "check_tokenizer", "number 0"),
    "scores in another order": (with_tokenizer(scores=lambda s: s[::-1]), "check_tokenizer", "another order"),
    "the end token off by one": (with_tokenizer(eos=lambda n: n + 1), "check_tokenizer", "eos"),
    "a BOS that nobody asked for": (with_tokenizer(add_bos=True), "check_tokenizer", "add_bos"),
    "the chat template lost": (with_tokenizer(chat_template=None), "check_tokenizer", "chat_template"),
    "control tokens taken for text": (with_tokenizer(types=lambda t: (t[-1],) * len(t)), "check_tokenizer", "types"),
    "no tokenizer": (
        type("Mute", (Opened,), {"change": lambda s, a: attrs.evolve(a, load_tokenizer=lambda: None)}),
        "check_tokenizer", "is gone",
    ),
    "every file taken for its own": (MatchesAll, "check_matches", "for its own"),
    "the target shows before commit": (careless(ShowsEarly), "check_atomic", "before commit|behind"),
    "scraps are left behind": (careless(LeavesScraps), "check_atomic", "model.tmp"),
    "a clock in the file": (careless(Clocked), "check_deterministic", "config.json differs"),
    "missing tensors accepted": (careless(Incomplete), "check_complete", "nothing was said"),
    "resuming begins one tensor too early": (careless(StartsAgain), "check_resumes", ""),
    "nibbles swapped on the way to the file": (careless(SwapsNibbles), "check_precisions", "two codes of every byte"),
    "slices of rows written upside down": (careless(RowsUpsideDown), "check_written_rows", "in slices of 7 rows"),
    "row slices one row late": (with_model(wrong_slices), "check_row_slices", "slices"),
    "truncation filled up with zeros": (Trusting, "check_truncated", "as if it were whole"),
    "Python's own exceptions for bad files": (Untyped, "check_truncated", "KeyError"),
}  # fmt: skip

# What a reader guesses, forgets, or does besides.


class Forgets(Opened):
    """Gives no manifest."""

    def change(self, artifact):
        return attrs.evolve(artifact, manifest=None)


class NoManifest(Wrapped):
    def commit(self):
        super().commit()
        (self.path / "edgekit.manifest.json").unlink()


class ClockInManifest(Wrapped):
    clock = itertools.count()

    def commit(self):
        super().commit()
        file = self.path / "edgekit.manifest.json"
        file.write_text(file.read_text() + " " * next(self.clock))


class NoZeroPoint(Wrapped):
    """GPTQ's 0 that becomes 15."""

    def write(self, tensor):
        if "zero_point" in tensor.parts:
            zero = tensor.parts["zero_point"]
            tensor = attrs.evolve(
                tensor, parts={**tensor.parts, "zero_point": np.where(zero == 0, zero.dtype.type(15), zero)}
            )
        super().write(tensor)


class LosesOddEnds(Wrapped):
    """Tensors whose size is no multiple of 32 end one element early."""

    def write(self, tensor):
        values = tensor.parts.get("values")
        if values is not None and values.size % 32:
            values = values.copy()
            values.reshape(-1)[-1] = 0
            tensor = attrs.evolve(tensor, parts={"values": values})
        super().write(tensor)


class Allocates(HuggingFaceFormat):
    """Takes the header's word for its length."""

    def open(self, path):
        file = path / "model.safetensors"
        if file.exists():
            length = int.from_bytes(file.read_bytes()[:8], "little")
            np.empty(min(length, 1 << 30), np.uint8)
        return super().open(path)


class WritesOnOpen(HuggingFaceFormat):
    def open(self, path):
        (path / "opened.log").write_text("opened")
        return super().open(path)


class RaisesOnStrangers(HuggingFaceFormat):
    def matches(self, path):
        return json.loads((path / "config.json").read_text()) is not None


def with_all_values(function):
    """A format that passes every tensor's values through a function."""

    def change(model):
        tensors = {name: Tensor.of(name, function(t.float32()).reshape(t.shape)) for name, t in model.tensors.items()}
        return attrs.evolve(model, tensors=tensors)

    return with_model(change)


def flushed(values):
    return np.where((np.abs(values) < 2.0**-126) & (values != 0), np.copysign(np.float32(0), values), values)


def encoded_late(model):
    """Slices of encoded tensors that do not begin at the first row come one row late."""

    def late(tensor):
        if not isinstance(tensor, EncodedTensor):
            return tensor
        read = tensor.read_parts
        return attrs.evolve(tensor, read_parts=lambda a, b: read(max(0, a - 1), b - 1) if a else read(a, b))

    return attrs.evolve(model, tensors={name: late(tensor) for name, tensor in model.tensors.items()})


def without(what):
    return with_model(
        lambda m: attrs.evolve(
            m,
            config=attrs.evolve(m.config, qkv_bias=False) if what == ".bias" else m.config,
            tensors={name: tensor for name, tensor in m.tensors.items() if what not in name},
        )
    )


def guessed(field):
    """A tokenizer's field taken from its kind."""

    def change(self, artifact):
        def load():
            tokenizer = artifact.load_tokenizer()
            return tokenizer and attrs.evolve(tokenizer, **{field: tokenizer.kind == "spm"})

        return attrs.evolve(artifact, load_tokenizer=load)

    return type("Guesses", (Opened,), {"change": change})


FORMATS |= {
    "the manifest is not given back": (Forgets, "check_manifest", "the manifest is gone"),
    "the manifest is not written": (careless(NoManifest), "check_manifest", "the manifest is gone"),
    "a clock in the manifest": (careless(ClockInManifest), "check_deterministic", "edgekit.manifest.json differs"),
    "EOS that is added, lost": (with_tokenizer(add_eos=False), "check_tokenizer", "add_eos"),
    "whether BOS is added guessed from the kind": (guessed("add_bos"), "check_tokenizer", "add_bos"),
    "the leading space guessed from the kind": (guessed("add_space_prefix"), "check_tokenizer", "add_space_prefix"),
    "the padding token lost": (with_tokenizer(pad=None), "check_tokenizer", "pad of the"),
    "the lines of the chat template joined": (
        with_tokenizer(chat_template=lambda text: text and text.replace("\n", " ").strip()),
        "check_tokenizer", "chat_template",
    ),
    "subnormal weights flushed": (with_all_values(flushed), "check_values", "comes back as"),
    "the sign of zeros lost": (
        with_all_values(lambda w: np.where(w == 0, np.float32(0), w)), "check_values", "-0 comes back as 0",
    ),
    "the end of a tensor of an odd size lost": (careless(LosesOddEnds), "check_values", "comes back as 0"),
    "biases lost": (without(".bias"), "check_families", "qkv_bias was True"),
    "the norms of queries and keys lost": (without("q_norm"), "check_families", "is gone"),
    "rope scaling lost": (with_config(rope_scaling=None), "check_families", "rope_scaling was"),
    "the sliding window lost": (with_config(sliding_window=None), "check_families", "sliding_window was 32"),
    "soft caps lost": (with_config(attention_softcap=None), "check_families", "attention_softcap was 50.0"),
    "every activation taken for SiLU": (with_config(activation="silu"), "check_families", "gelu_tanh"),
    "the embeddings' scale lost": (with_config(embedding_scale=1.0), "check_families", "embedding_scale was 8.0"),
    "tied embeddings opened as two": (with_config(tied=False), "check_families", "tied was True"),
    "the size of a head computed from the width": (
        with_model(lambda m: attrs.evolve(m, config=attrs.evolve(m.config, head_dim=m.config.width // m.config.heads))),
        "check_config", "head_dim was 32",
    ),
    "a stored zero point of 0 becomes 15": (careless(NoZeroPoint), "check_precisions", "zero_point"),
    "slices of encoded tensors one row late": (with_model(encoded_late), "check_row_slices", "slices of 1 rows"),
    "memory for whatever length the header says": (Allocates, "check_hostile", "allocates"),
    "opening writes beside the model": (WritesOnOpen, "check_opening_writes_nothing", "writes opened.log"),
    "matches raises on what is no model": (RaisesOnStrangers, "check_matches", "NotADirectoryError"),
}  # fmt: skip
