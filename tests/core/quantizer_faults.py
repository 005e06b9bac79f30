"""Wrong quantizers, as real projects had them, in their numbers.

`FAULTS` is the table: what is wrong, on which precision, which checks are right to find it, what the message says.
`quantizer_faults_outside` adds to it what does not show in the numbers of a single small call.
"""

import sys
import threading
import time
import warnings
from typing import ClassVar

import attrs
import numpy as np

from edgekit.numerics.bits import pack_lsb, unpack_lsb
from edgekit.precision import find_precision
from edgekit.reference import Traits, reference

AFFINE, ASYM, SMALL = "affine:int4-sym-g32", "affine:int4-asym-g32", "affine:int8-sym-g32"
BOUNDED = "half a step of each group's scale"


def right(x, precision, importance=None):
    found = find_precision(precision)
    return reference(found).encode(np.ascontiguousarray(x), found, importance)


@attrs.define(eq=False)
class Faulty:
    """A quantizer whose `wrong(x, precision, importance)` stands in for the reference."""

    wrong: object
    precision: object
    claim: str = "exact"
    traits: ClassVar[Traits] = Traits()

    def encode(self, x, importance=None):
        return self.wrong(x, getattr(self.precision, "name", self.precision), importance)


FAULTS = {}


def fault(what, checks, precision=AFFINE, says="", claim="exact", kind=Faulty):
    def add(wrong):
        FAULTS[what] = (kind(wrong, precision, claim), checks, says)
        return wrong

    return add


def symmetric(x, n=7, rounding=np.rint, scale=None, bits=4, clip=True):
    """affine:int<bits>-sym-g32 with its parts exposed to mistakes."""
    groups = x.reshape(len(x), -1, 32)
    with np.errstate(all="ignore"):
        s = (np.abs(groups).max(axis=2) / np.float32(n)).astype(np.float32) if scale is None else scale(groups)
        q = rounding(np.where(s[..., None] > 0, groups / s[..., None], 0))
    q = np.clip(np.nan_to_num(q), -n, n) if clip else q
    codes = (q.astype(np.int64) + 2 ** (bits - 1)).astype(np.uint8).reshape(x.shape)
    return {"codes": pack_lsb(codes & np.uint8(2**bits - 1), bits), "scale": s}


def half_scale(groups):
    scale = np.abs(groups).max(axis=2) / np.float32(127)
    return scale.astype(np.float16).astype(np.float32)


def by_reciprocal(x):
    groups = x.reshape(len(x), -1, 32)
    with np.errstate(all="ignore"):
        scale = np.abs(groups).max(axis=2) / np.float32(127)
        inverse = np.where(scale > 0, np.float32(1) / scale, np.float32(0))
        q = np.clip(np.rint(np.nan_to_num(groups * inverse[..., None])), -127, 127)
    return {"codes": (q + 128).astype(np.uint8).reshape(x.shape), "scale": scale}


def dithered(x):
    pattern = (np.arange(x.size) % 2).reshape(len(x), -1, 32) * np.float32(0.9) - np.float32(0.45)
    return symmetric(x, rounding=lambda v: np.where(v == 0, v, np.rint(v + pattern)))


def on_blocks(function):
    """A fault of whole groups of 32; ragged rows are right."""

    def wrong(x, precision, importance):
        return right(x, precision) if x.shape[1] % 32 else function(x)

    return wrong


def changed(key, function):
    """A fault in one part."""

    def wrong(x, precision, importance):
        parts = right(x, precision, importance)
        return {**parts, key: function(parts[key])}

    return wrong


# Zero points and zeros.
fault("zero point off by one, GPTQ v1 against v2", {"check_exact"}, ASYM, "zero_point")(
    changed("zero_point", lambda z: z - np.uint8(1))
)
fault("a stored zero point of 0 becomes 15", {"check_exact", "check_zeros"}, ASYM, "zero_point")(
    changed("zero_point", lambda z: np.where(z == 0, np.uint8(15), z))
)


@fault("NaN scale from an all-zero group", {"check_zeros"}, says="scale of zero")
def nan_from_zeros(x, precision, importance):
    parts = right(x, precision)
    return {**parts, "scale": np.where(parts["scale"] == 0, np.float32(np.nan), parts["scale"])}


@fault("a floor of 1e-5 under the scale, as PyTorch quantizers have it", {"check_zeros", "check_subnormals"})
def floor_under_the_scale(x, precision, importance):
    parts = right(x, precision)
    return {**parts, "scale": np.maximum(parts["scale"], np.float32(1e-5))}


@fault("the sign bit of -0.0 becomes a code", {"check_zeros"}, "affine:int1-sym-g32")
def signed_zero(x, precision, importance):
    parts = right(x, precision)
    return {**parts, "codes": pack_lsb((~np.signbit(x)).astype(np.uint8), 1)}


@fault("sign(0) taken as negative", {"check_zeros"}, "affine:int1-sym-g32")
def sign_of_zero(x, precision, importance):
    return {**right(x, precision), "codes": pack_lsb((x > 0).astype(np.uint8), 1)}


# Packing and order.
fault("the two codes of a byte are swapped", {"check_exact"}, says="two codes of every byte are swapped")(
    changed("codes", lambda c: (c << 4) | (c >> 4))
)
fault("rows in another order", {"check_exact"}, says="another order")(changed("codes", lambda c: c[::-1].copy()))
fault("codes stored signed, without the offset", {"check_exact"})(changed("codes", lambda c: c ^ np.uint8(0x88)))


@fault("the most significant bit first", {"check_exact"}, "affine:int3-sym-g32")
def msb_first(x, precision, importance):
    parts = right(x, precision)
    codes = unpack_lsb(parts["codes"], 3, x.shape[1])
    bits = np.unpackbits(codes[..., None], axis=2)[..., 5:].reshape(len(x), -1)
    return {**parts, "codes": np.packbits(bits, axis=1)}


@fault("groups run down the columns", {"check_exact"}, says="differ")
def groups_down_the_columns(x, precision, importance):
    turned = (
        np.ascontiguousarray(x.reshape(len(x), -1, 32).swapaxes(1, 2)).reshape(x.shape) if x.shape[1] % 32 == 0 else x
    )
    return right(turned, precision)


@fault("rows padded to four bytes", {"check_parts"}, says="shape")
def padded_rows(x, precision, importance):
    parts = right(x, precision)
    return {**parts, "codes": np.pad(parts["codes"], ((0, 0), (0, -parts["codes"].shape[1] % 4)))}


fault("codes transposed, as [in, out] wants them", {"check_parts"}, says="shape")(
    changed("codes", lambda c: np.ascontiguousarray(c.T))
)
fault("codes as int8", {"check_parts"}, says="int8; uint8 is expected")(changed("codes", lambda c: c.view(np.int8)))
fault("scales stored as float16", {"check_parts"}, says="float16; float32 is expected")(
    changed("scale", lambda s: np.clip(s, None, 60000).astype(np.float16))
)


@fault("the zero points forgotten", {"check_parts"}, ASYM, "the parts are")
def no_zero_points(x, precision, importance):
    parts = right(x, precision)
    del parts["zero_point"]
    return parts


# Scales and rounding.
fault("the full range -8..7 where -7..7 is the format's", {"check_exact"})(on_blocks(lambda x: symmetric(x, n=8)))
fault("half away from zero, where half to even is right", {"check_ties"}, says="by one")(
    on_blocks(lambda x: symmetric(x, rounding=lambda v: np.trunc(v + np.copysign(np.float32(0.5), v))))
)
fault("rounding by adding a half and truncating", {"check_ties"})(
    on_blocks(lambda x: symmetric(x, rounding=lambda v: np.floor(v + np.float32(0.5))))
)
fault("truncation in place of rounding", {"check_exact"})(on_blocks(lambda x: symmetric(x, rounding=np.trunc)))
fault("the scale's reciprocal multiplied, in place of a division", {"check_exact", "check_ties"}, SMALL)(
    on_blocks(by_reciprocal)
)
fault("the scale rounded to float16 before the codes were computed", {"check_exact"}, SMALL)(
    on_blocks(lambda x: {**symmetric(x, 127, bits=8, scale=half_scale), "scale": symmetric(x, 127, bits=8)["scale"]})
)
fault("a scale of max/128, where it is max/127", {"check_exact"}, SMALL, "'scale'")(
    on_blocks(lambda x: symmetric(x, 127, bits=8, scale=lambda g: np.abs(g).max(axis=2) / np.float32(128)))
)


@fault("contraction: product and sum rounded once, in asymmetric codes", {"check_exact", "check_ties"}, ASYM)
def contracted(x, precision, importance):
    parts = right(x, precision)
    if x.shape[1] % 32:
        return parts
    wide, scale = x.reshape(len(x), -1, 32).astype(np.float64), parts["scale"][..., None].astype(np.float64)
    with np.errstate(all="ignore"):
        q = np.where(scale > 0, wide / scale, 0) + parts["zero_point"][..., None]
    codes = np.clip(np.rint(np.nan_to_num(q)), 0, 15).astype(np.uint8).reshape(x.shape)
    return {**parts, "codes": pack_lsb(codes, 4)}


@fault("contraction in the search of a K-quant: float64 where ggml has float32", {"check_exact"}, "ggml:Q8_0")
def unrounded_search(x, precision, importance):
    wide = x.reshape(len(x), -1, 32).astype(np.float64)
    scale = np.abs(wide).max(axis=2) / 127 * (1 + 2.0**-11)
    with np.errstate(all="ignore"):
        codes = np.trunc(wide / scale[..., None] + np.copysign(0.5, wide))
    blocks = np.empty((*scale.shape, 34), np.uint8)
    with np.errstate(all="ignore"):
        blocks[..., :2] = scale.astype(np.float16)[..., None].view(np.uint8).reshape(*scale.shape, 2)
    blocks[..., 2:] = np.clip(np.nan_to_num(codes), -127, 127).astype(np.int8).view(np.uint8)
    return {"blocks": blocks.reshape(len(x), -1)}


@fault("float16 scales truncated, not rounded", {"check_exact"}, "ggml:Q8_0")
def truncated_scales(x, precision, importance):
    blocks = right(x, precision)["blocks"].reshape(len(x), -1, 34).copy()
    exact = np.abs(x.reshape(len(x), -1, 32)).max(axis=2) / np.float32(127)
    stored = np.ascontiguousarray(blocks[..., :2]).view(np.float16)[..., 0]
    bits = stored.view(np.uint16) - (stored.astype(np.float32) > exact).astype(np.uint16)
    blocks[..., :2] = bits[..., None].view(np.uint8).reshape(*bits.shape, 2)
    return {"blocks": blocks.reshape(len(x), -1)}


@fault("half to even, where ggml rounds half away from zero", {"check_ties"}, "ggml:Q8_0")
def half_even_in_ggml(x, precision, importance):
    parts = right(x, precision)
    blocks = parts["blocks"].reshape(len(x), -1, 34).copy()
    groups = x.reshape(len(x), -1, 32)
    with np.errstate(all="ignore"):
        scale = np.abs(groups).max(axis=2) / np.float32(127)
        inverse = np.where(scale > 0, np.float32(1) / scale, np.float32(0))
        codes = np.clip(np.nan_to_num(np.rint(groups * inverse[..., None])), -128, 127).astype(np.int8)
        usual = np.isfinite(inverse)
    blocks[..., 2:] = np.where(usual[..., None], codes.view(np.uint8), blocks[..., 2:])
    return {"blocks": blocks.reshape(len(x), -1)}


@fault("float16 scales below the normal numbers flushed to zero", {"check_subnormals", "check_zeros"}, "ggml:Q8_0")
def flushed_scales(x, precision, importance):
    blocks = right(x, precision)["blocks"].reshape(len(x), -1, 34).copy()
    scale = np.ascontiguousarray(blocks[..., :2]).view(np.float16)[..., 0]
    small = (scale.astype(np.float32) < 2.0**-14)[..., None]
    blocks[..., :2] = np.where(small, 0, blocks[..., :2])
    return {"blocks": blocks.reshape(len(x), -1)}


@fault("subnormal inputs flushed to zero by the processor", {"check_subnormals"})
def flush_to_zero(x, precision, importance):
    return right(np.where(np.abs(x) < 2.0**-126, np.float32(0), x), precision)


# The ends.
@fault("no clip at the top: 16 wraps around to 0", {"check_ties", "check_saturation"}, "ggml:Q4_0")
def wraps_around(x, precision, importance):
    blocks = right(x, precision)["blocks"].reshape(-1, 18).copy()
    groups = x.reshape(-1, 32)
    peak = np.take_along_axis(groups, np.abs(groups).argmax(axis=1)[:, None], 1)
    top = (groups == -peak) & (peak != 0)
    codes = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=1)
    codes = np.where(top, 0, codes).astype(np.uint8)
    blocks[:, 2:] = codes[:, :16] | codes[:, 16:] << 4
    return {"blocks": blocks.reshape(len(x), -1)}


@fault("the last of two equal magnitudes gives the scale its sign", {"check_ties", "check_saturation"}, "ggml:Q4_0")
def last_peak(x, precision, importance):
    groups = x.reshape(-1, 32)
    magnitude = np.abs(groups)
    first, last = magnitude.argmax(axis=1), 31 - magnitude[:, ::-1].argmax(axis=1)
    moved, rows = groups.copy(), np.arange(len(groups))
    other = groups[rows, first] == -groups[rows, last]
    moved[rows, first] = np.where(other & (first != last), groups[rows, last], groups[rows, first])
    return right(moved.reshape(x.shape), precision)


@fault("max - min overflows float32", {"check_saturation"}, ASYM)
def overflowing_range(x, precision, importance):
    parts = right(x, precision)
    if x.shape[1] % 32:
        return parts
    groups = x.reshape(len(x), -1, 32)
    with np.errstate(over="ignore"):
        reach = np.maximum(groups.max(axis=2), 0) - np.minimum(groups.min(axis=2), 0)
    return {**parts, "scale": np.where(np.isinf(reach), np.float32(np.inf), parts["scale"])}


@fault("a range that need not hold zero", {"check_constants", "check_one_sided"}, ASYM)
def range_without_zero(x, precision, importance):
    parts = right(x, precision)
    if x.shape[1] % 32:
        return parts
    groups = x.reshape(len(x), -1, 32)
    one_sided = (groups.min(axis=2) > 0) | (groups.max(axis=2) < 0)
    narrow = ((groups.max(axis=2) - groups.min(axis=2)) / np.float32(15)).astype(np.float32)
    return {**parts, "scale": np.where(one_sided, narrow, parts["scale"])}


@fault("a constant group divides by zero", {"check_constants"}, "mlx:int4-g32")
def constant_group(x, precision, importance):
    parts = right(x, precision)
    groups = x.reshape(len(x), -1, 32).astype(np.float32)
    flat = (groups.min(axis=2) == groups.max(axis=2)) & (groups[..., 0] != 0)
    return {**parts, "scales": np.where(flat, np.array(np.nan, parts["scales"].dtype), parts["scales"])}


@fault("the scale of an all-negative group from its maximum", {"check_one_sided", "check_constants"})
def maximum_for_magnitude(x, precision, importance):
    parts = right(x, precision)
    if x.shape[1] % 32:
        return parts
    groups = x.reshape(len(x), -1, 32)
    negative = groups.max(axis=2) < 0
    return {**parts, "scale": np.where(negative, np.abs(groups.max(axis=2)) / np.float32(7), parts["scale"])}


# Ragged tails, rows, chunks.
@fault("a ragged tail takes the scale of the group before it", {"check_shapes"})
def tail_takes_the_wrong_group(x, precision, importance):
    parts = right(x, precision)
    if x.shape[1] % 32 and x.shape[1] > 32:
        parts["scale"][:, -1] = parts["scale"][:, -2]
    return parts


@fault("a ragged tail is not encoded", {"check_shapes"})
def tail_forgotten(x, precision, importance):
    parts, whole = right(x, precision), x.shape[1] // 32 * 32
    parts["codes"][:, whole // 2 :] = 0
    return parts


@fault("one scale for the rows of a chunk", {"check_exact"}, "affine:int4-sym-channel")
def scale_of_the_chunk(x, precision, importance):
    return {**right(x, precision), "scale": np.full((len(x), 1), np.abs(x).max() / 7, np.float32)}


@fault("rows after the first thousand take the scale of an earlier chunk", {"check_large"})
def stale_chunk(x, precision, importance):
    parts = right(x, precision)
    parts["scale"][1000:] = parts["scale"][: len(parts["scale"][1000:])]
    return parts


# Manners.
@fault("the input is scaled in place", {"check_inputs_unwritten"}, says="wrote to its input")
def scaled_in_place(x, precision, importance):
    parts = right(x, precision)
    if x.flags.writeable:
        x *= np.float32(2)
    return parts


@fault("the importance is normalised in place", {"check_inputs_unwritten"}, "ggml:Q4_K", "importance")
def importance_in_place(x, precision, importance):
    parts = right(x, precision, importance)
    if importance is not None and importance.flags.writeable:
        importance /= importance.sum()
    return parts


def reused_buffers():
    kept = {}

    def wrong(x, precision, importance):
        parts = right(x, precision)
        for key, part in parts.items():
            if key not in kept or kept[key].shape[1:] != part.shape[1:] or len(kept[key]) < len(part):
                kept[key] = part
            kept[key][: len(part)] = part
        return {key: kept[key][: len(part)] for key, part in parts.items()}

    return wrong


fault("results lie in a buffer that the next call overwrites", {"check_pure"}, says="a later call changed")(
    reused_buffers()
)


def running_maximum():
    seen = [np.float32(0)]

    def wrong(x, precision, importance):
        seen[0] = np.float32(0.9) * seen[0] + np.float32(0.1) * np.abs(x).max()
        parts = right(x, precision)
        return {**parts, "scale": np.maximum(parts["scale"], seen[0] / np.float32(64))}

    return wrong


fault("a moving average of maxima, kept from calibration", {"check_pure"}, says="keeps state")(running_maximum())


@fault("stochastic rounding", {"check_pure"}, claim="one step of each group's scale")
def stochastic(x, precision, importance):
    noise = np.random.default_rng(time.perf_counter_ns()).uniform(-0.5, 0.5, x.shape).astype(np.float32)
    return right(x * (1 + noise / 100), precision)


def shared_scratch():
    scratch = type("Scratch", (), {"x": None})()

    def wrong(x, precision, importance):
        scratch.x = x
        time.sleep(0.001 if threading.current_thread() is not threading.main_thread() else 0)
        return right(scratch.x if scratch.x.shape == x.shape else x, precision)

    return wrong


fault("threads share a scratch buffer", {"check_executors"}, says="threads")(shared_scratch())


@fault("a division warns", {"check_quiet"}, says="RuntimeWarning")
def warns(x, precision, importance):
    if not x.any():
        warnings.warn("invalid value encountered in divide", RuntimeWarning, stacklevel=2)
    return right(x, precision)


@fault("progress on stdout", {"check_quiet"}, says="stdout")
def prints(x, precision, importance):
    sys.stdout.write("quantizing\n")
    return right(x, precision)


# Importance, source types, infinities, sizes.
@fault("the importance matrix is ignored", {"check_importance"}, "ggml:Q4_K")
def importance_ignored(x, precision, importance):
    return right(x, precision)


@fault("importance where the format has none", {"check_importance"}, "ggml:Q8_0")
def importance_invented(x, precision, importance):
    return right(x if importance is None else x * np.sqrt(importance + np.float32(0.1)), precision)


@fault("columns that never fired divide by zero", {"check_importance"}, "ggml:Q4_K")
def silent_columns(x, precision, importance):
    parts = right(x, precision, importance)
    silent = importance is not None and (importance == 0).any()
    return {"blocks": np.where(silent, np.uint8(255), parts["blocks"])}


@fault("float16 sources widened, where MLX computes in their type", {"check_source_types"}, "mlx:int4-g32")
def widened_source(x, precision, importance):
    return right(x.astype(np.float32), precision)


class Widening(Faulty):
    """Takes rows of 16 bits."""

    traits = Traits(widens=True)


@fault("subnormal float16 widened to zero", {"check_source_types"}, "ggml:Q8_0", "rows of float16", kind=Widening)
def flushed_source(x, precision, importance):
    if x.dtype == np.float16:
        x = np.where(np.abs(x) < np.finfo(np.float16).smallest_normal, np.float16(0), x)
    return right(x.astype(np.float32), precision)


@fault("NaN refused, infinity encoded", {"check_nonfinite"}, says="not one policy")
def half_a_policy(x, precision, importance):
    if np.isnan(x).any():
        raise ValueError("NaN")
    return right(np.nan_to_num(x), precision)


@fault("one NaN spoils every row", {"check_nonfinite"}, says="other rows")
def nan_spreads(x, precision, importance):
    return right(x if np.isfinite(x).all() else np.zeros_like(x), precision)


fault(
    "stores more bits a weight than it states",
    {"check_size"},
    attrs.evolve(find_precision(AFFINE), bits_per_weight=4),
    "5 bits a weight are stored, 4 are stated",
)(lambda x, precision, importance: right(x, precision))


# Bounds that do not hold.
@attrs.define(eq=False)
class HalfStep(Faulty):
    steps = 0.5

    def bound(self, x, parts):
        return np.repeat(parts["scale"], 32, axis=1)[:, : x.shape[1]] * (self.steps + 0.01) + 1e-44


class WholeStep(HalfStep):
    steps = 1.0


fault(
    "outliers clipped at a percentile", {"check_error_within_bound"}, claim=BOUNDED, says="the bound is", kind=HalfStep
)(on_blocks(lambda x: symmetric(x, scale=lambda g: np.quantile(np.abs(g), 0.9, axis=2).astype(np.float32) / 7)))
fault("the ends of the grid change their sign", {"check_error_within_bound"}, claim=BOUNDED)(
    on_blocks(
        lambda x: symmetric(x, clip=False, rounding=lambda v: np.where(np.abs(v) == 7, -v, np.rint(np.nan_to_num(v))))
    )
)
fault("a margin on the scale, so that it grows each time", {"check_idempotent"}, claim=BOUNDED)(
    on_blocks(lambda x: symmetric(x, scale=lambda g: np.abs(g).max(axis=2) / np.float32(6.9)))
)


fault(
    "dithering moves small values to the other side of zero",
    {"check_signs", "check_order"},
    claim=BOUNDED,
    kind=WholeStep,
)(on_blocks(dithered))


@attrs.define(eq=False)
class OwnDecode(Faulty):
    """Its own decode forgets the offset of the zero point."""

    def decode(self, parts, shape):
        moved = {**parts, "zero_point": parts["zero_point"] + np.uint8(1)}
        return reference(find_precision(ASYM)).decode(moved, find_precision(ASYM), shape)


@attrs.define(eq=False)
class WideDecode(Faulty):
    def decode(self, parts, shape):
        return reference(find_precision(ASYM)).decode(parts, find_precision(ASYM), shape).astype(np.float64)


fault("its decode is off by one zero point", {"check_error_within_bound"}, ASYM, "comes back as", kind=OwnDecode)(
    lambda x, precision, importance: right(x, precision)
)
fault("its decode gives float64", {"check_decoding"}, ASYM, "float64", kind=WideDecode)(
    lambda x, precision, importance: right(x, precision)
)


@attrs.define(eq=False)
class Unchecked(Faulty):
    """Its encode_checked looks at nothing."""

    def encode_checked(self, x, importance=None):
        return self.encode(x, importance)


@attrs.define(eq=False)
class OtherwiseChecked(Faulty):
    """Its encode_checked forgets the last row."""

    def encode_checked(self, x, importance=None):
        if not (np.abs(x) <= 65504).all():
            return None
        parts = self.encode(x, importance)
        return {name: np.concatenate([part[:-1], part[:1]]) for name, part in parts.items()}


fault("its encode_checked does not check", {"check_checked"}, says="returns parts for rows with nan", kind=Unchecked)(
    lambda x, precision, importance: right(np.nan_to_num(x, nan=0, posinf=0, neginf=0), precision)
)
fault(
    "its encode_checked differs from encode",
    {"check_checked"},
    says="encode_checked differs from encode",
    kind=OtherwiseChecked,
)(lambda x, precision, importance: right(x, precision))
