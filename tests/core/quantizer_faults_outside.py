"""Wrong quantizers, continued: what shows only from outside a single small call.

The process and its settings, memory that is kept, threads, large sizes, claimed bounds and decoders.
"""

import contextlib
import os
import random
import socket
import sys
import warnings
from pathlib import Path

import attrs
import numpy as np
from quantizer_faults import AFFINE, BOUNDED, FAULTS, Faulty, changed, fault, on_blocks, right, symmetric

from edgekit.precision import find_precision
from edgekit.reference import reference

__all__ = ["FAULTS"]


def kept_per_shape():
    kept = {}

    def wrong(x, precision, importance):
        parts = right(x, precision)
        buffers = kept.setdefault(x.shape, {key: part.copy() for key, part in parts.items()})
        for key, part in parts.items():
            buffers[key][...] = part
        return dict(buffers)

    return wrong


def two_buffers_in_turn():
    kept, calls = {}, [0]

    def wrong(x, precision, importance):
        parts = right(x, precision)
        calls[0] += 1
        buffers = kept.setdefault((calls[0] % 2, x.shape), {key: part.copy() for key, part in parts.items()})
        for key, part in parts.items():
            buffers[key][...] = part
        return dict(buffers)

    return wrong


def remembered_by_address():
    kept = {}

    def wrong(x, precision, importance):
        key = (x.ctypes.data, x.shape)
        if key not in kept:
            kept.clear()
            kept[key] = right(x, precision)
        return {name: part.copy() for name, part in kept[key].items()}

    return wrong


def last_importance():
    last = [None]

    def wrong(x, precision, importance):
        if importance is not None:
            last[0] = importance.copy()
        fits = last[0] is not None and len(last[0]) == x.shape[1]
        return right(x, precision, importance if importance is not None else last[0] if fits else None)

    return wrong


def every_seventh_call():
    calls = [0]

    def wrong(x, precision, importance):
        calls[0] += 1
        parts = right(x, precision)
        return parts if calls[0] % 7 else {**parts, "codes": parts["codes"] ^ np.uint8(1)}

    return wrong


def scratch_without_a_pause():
    scratch = {}

    def wrong(x, precision, importance):
        buffer = scratch.setdefault(x.shape, np.empty(x.shape, np.float32))
        buffer[...] = x
        return right(buffer, precision)

    return wrong


def banner():
    said = []

    def wrong(x, precision, importance):
        if not said:
            said.append(True)
            sys.stdout.write("kernel 1.0, AVX2\n")
        return right(x, precision)

    return wrong


fault("one buffer for each shape, returned every time", {"check_pure"}, says="a later call changed")(kept_per_shape())
fault("two buffers in turn", {"check_pure"}, says="a later call changed")(two_buffers_in_turn())
# What it is told depends on which address the allocator gives out again: "remembers addresses", or "keeps state".
fault("results remembered by the address of the rows", {"check_pure"})(remembered_by_address())
fault("the importance of the last call is used again", {"check_pure"}, "ggml:Q4_K", "keeps state")(last_importance())
fault("every seventh call is wrong", {"check_pure", "check_exact"})(every_seventh_call())
fault("a scratch buffer for each shape, shared by threads", {"check_executors"}, says="share memory")(
    scratch_without_a_pause()
)
fault("a banner at the first call", {"check_quiet"}, says="kernel 1.0")(banner())


@fault("native code prints to stdout", {"check_quiet"}, says="ggml: quantizing")
def prints_from_c(x, precision, importance):
    os.write(1, b"ggml: quantizing\n")
    return right(x, precision)


@fault("parts in Fortran order", {"check_parts"}, says="not C-contiguous")
def fortran_parts(x, precision, importance):
    parts = right(x, precision)
    return {**parts, "codes": np.asfortranarray(parts["codes"])}


fault("scales in the other byte order", {"check_parts"}, says=">f4", claim=BOUNDED)(
    changed("scale", lambda s: s.astype(">f4"))
)


def beside(effect):
    """Right bytes, and something done to the process."""

    def wrong(x, precision, importance):
        effect()
        return right(x, precision)

    return wrong


def connect():
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", 9), timeout=0.2).close()


EFFECTS = {
    "numpy's error state is set for good": (lambda: np.seterr(all="ignore"), "np.seterr"),
    "numpy's print options are set for good": (lambda: np.set_printoptions(precision=3), "print options"),
    "all warnings are silenced for good": (lambda: warnings.simplefilter("ignore"), "warning filters"),
    "the number of threads is set in the environment": (
        lambda: os.environ.__setitem__("OMP_NUM_THREADS", "7"), "environment",
    ),
    "numpy's global stream is seeded": (lambda: np.random.seed(0), "numpy's global random stream"),
    "Python's stream is seeded": (lambda: random.seed(0), "Python's random stream"),
    "a log is written beside the caller's files": (lambda: Path("kernel.log").write_text("x"), "kernel.log"),
    "a socket is opened": (connect, "uses the network"),
}  # fmt: skip


for _what, (_effect, _says) in EFFECTS.items():
    fault(_what, {"check_side_effects"}, says=_says)(beside(_effect))


@fault("rounding draws from numpy's global stream, which it seeds", {"check_global_state", "check_side_effects"})
def seeded_stream(x, precision, importance):
    np.random.seed(0)
    return right(x, precision)


@fault("underflow raises where the application lets errors raise", {"check_global_state"}, says="it raises on")
def unguarded(x, precision, importance):
    np.divide(x, np.float32(1e30))
    return right(x, precision)


@fault("another rounding under another error state", {"check_global_state"}, says="encoded otherwise")
def looks_at_the_error_state(x, precision, importance):
    parts = right(x, precision)
    return parts if np.geterr()["under"] == "ignore" else {**parts, "codes": parts["codes"] ^ np.uint8(1)}


@fault("memory read as if the rows were contiguous", {"check_strides"}, "ggml:Q8_0", "encoded otherwise")
def raw_memory(x, precision, importance):
    given = x if x.flags.c_contiguous else np.ascontiguousarray(x)[::-1]
    return right(given, precision)


@fault("an index overflows beyond a million elements", {"check_large"}, says="differs from the same row")
def index_overflows(x, precision, importance):
    parts = right(x, precision)
    if x.size > 2**20:
        parts["codes"].reshape(-1)[2**19 :] ^= 1
    return parts


@fault("one row in the middle of many", {"check_large"}, says="row 777 of")
def one_row_of_many(x, precision, importance):
    parts = right(x, precision)
    if len(x) > 1000:
        parts["codes"][777] ^= 1
    return parts


@fault("the last partial chunk of sixteen rows", {"check_shapes", "check_row_slices"})
def partial_chunk(x, precision, importance):
    parts, whole = right(x, precision), len(x) // 16 * 16
    if whole and whole < len(x):
        parts["codes"][whole:] ^= 1
    return parts


@fault("columns beyond a buffer of 4096 take the first scale", {"check_shapes"})
def column_buffer(x, precision, importance):
    parts = right(x, precision)
    if x.shape[1] > 4096:
        parts["scale"][:, 128:] = parts["scale"][:, :1]
    return parts


@fault("an odd number of groups: the last takes the scale before it", {"check_shapes"})
def odd_groups(x, precision, importance):
    parts = right(x, precision)
    groups = parts["scale"].shape[1]
    if groups > 1 and groups % 2 and x.shape[1] % 32 == 0:
        parts["scale"][:, -1] = parts["scale"][:, -2]
    return parts


@fault("the fifth bits of a block in another byte order", {"check_exact"}, "ggml:Q5_0")
def fifth_plane(x, precision, importance):
    blocks = right(x, precision)["blocks"].reshape(-1, 22).copy()
    blocks[:, 2:6] = blocks[:, 5:1:-1]
    return {"blocks": blocks.reshape(len(x), -1)}


@fault("float16 scales in the other byte order", {"check_exact"}, "ggml:Q4_0")
def swapped_scale(x, precision, importance):
    blocks = right(x, precision)["blocks"].reshape(-1, 18).copy()
    blocks[:, :2] = blocks[:, 1::-1]
    return {"blocks": blocks.reshape(len(x), -1)}


@fault("-128 becomes 127", {"check_saturation", "check_exact", "check_ties"}, "openvino:int8-sym-channel")
def lowest_code(x, precision, importance):
    parts = right(x, precision)
    codes = parts["codes"].view(np.int8)
    return {**parts, "codes": np.where(codes == -128, np.int8(127), codes).view(parts["codes"].dtype)}


@fault("an entry of the codebook one unit off", {"check_ties"}, "openvino:nf4-g32", "both sides of a threshold")
def codebook_entry(x, precision, importance):
    with np.errstate(all="ignore"):
        return right(np.nextafter(x, np.float32(np.inf)), precision)


@fault("the importance of the first block for every block", {"check_importance"}, "ggml:Q4_K")
def first_importance(x, precision, importance):
    weights = None if importance is None else np.tile(importance[:256], len(importance) // 256)
    return right(x, precision, weights)


# Claimed bounds and decoders.


@attrs.define(eq=False)
class WithBound(Faulty):
    """States a bound of its own."""

    stated: object = None

    def bound(self, x, parts):
        return self.stated(x, parts, reference(find_precision(self.precision)))


def stating(stated):
    return lambda wrong, precision, claim: WithBound(wrong, precision, claim, stated)


INT4 = find_precision(AFFINE)
BOUNDS = {
    "half of the true bound is claimed": (
        lambda x, parts, found: found.bound(x, parts, INT4) / 2, "check_error_within_bound", "the bound is",
    ),
    "an infinite bound": (lambda x, parts, found: np.full(x.shape, np.inf), "check_bound", "finite numbers"),
    "its own error for a bound": (
        lambda x, parts, found: np.abs(x.astype(np.float64) - found.decode(parts, INT4, x.shape)),
        "check_bound", "other values are within its bound",
    ),
    "one number for a bound": (lambda x, parts, found: np.abs(x).max(), "check_bound", "has shape ()"),
}  # fmt: skip
for _what, (_stated, _check, _says) in BOUNDS.items():
    fault(_what, {_check}, says=_says, claim=BOUNDED, kind=stating(_stated))(lambda x, p, w: right(x, p))


def scale_of_the_row(x):
    scale = np.repeat(np.abs(x).max(axis=1, keepdims=True) / np.float32(7), x.shape[1] // 32, axis=1)
    return symmetric(x, scale=lambda groups: scale)


fault(
    "the scale of the row in every group, within half a step of it",
    {"check_error_like_reference"},
    says="is the scale the block's own?",
    claim=BOUNDED,
)(on_blocks(scale_of_the_row))


@attrs.define(eq=False)
class Decoding(Faulty):
    """Decodes through `change(values, parts, shape)`."""

    change: object = None

    def decode(self, parts, shape):
        found = find_precision(self.precision)
        return self.change(reference(found).decode(parts, found, shape), parts, shape)


def decoding(change):
    return lambda wrong, precision, claim: Decoding(wrong, precision, claim, change)


def swapped_back(values, parts, shape):
    codes = parts["codes"]
    return reference(INT4).decode({**parts, "codes": codes << 4 | codes >> 4}, INT4, shape)


def tail_forgotten_in_decode(values, parts, shape):
    values[:, shape[1] // 32 * 32 :] = 0
    return values


def eats_its_parts(values, parts, shape):
    parts["codes"][...] = 0
    return values


def code_that_never_comes(values, parts, shape):
    codes = np.ascontiguousarray(parts["blocks"]).reshape(-1, 34)[:, 2:].reshape(shape)
    return np.where(codes == 128, np.float32(0), values)


fault(
    "nibbles swapped, and swapped back by its own decode",
    {"check_decoding"},
    says="its codes mean something else",
    claim=BOUNDED,
    kind=decoding(swapped_back),
)(changed("codes", lambda c: c << 4 | c >> 4))
fault("its decode forgets the ragged tail", {"check_decoding", "check_bound_everywhere"}, says="decodes to",
    kind=decoding(tail_forgotten_in_decode))(lambda x, p, w: right(x, p))  # fmt: skip
fault("its decode flushes small values", {"check_decoding"}, "ggml:Q8_0", "decodes to 0",
    kind=decoding(lambda values, parts, shape: np.where(np.abs(values) < 1e-20, np.float32(0), values)),
)(right)  # fmt: skip
fault("its decode writes to the parts", {"check_decoding"}, says="writes to the parts", kind=decoding(eats_its_parts))(
    lambda x, p, w: right(x, p)
)
fault("its decode knows no code that its encoder never makes", {"check_decoding"}, "ggml:Q8_0", "random bytes",
    kind=decoding(code_that_never_comes))(right)  # fmt: skip


class Hasty(Faulty):
    """Claims to be faster than the reference."""

    speed = 10


@fault("claims a speed that it does not have", {"check_speed"}, says="speed=10", kind=Hasty)
def dawdles(x, precision, importance):
    for _ in range(4):
        parts = right(x, precision, importance)
    return parts
