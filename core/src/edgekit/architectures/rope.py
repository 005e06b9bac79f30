"""Rotary position embeddings, plain and stretched.

A pair of elements (i, i + r/2) of a head's first r = rotary_dim elements turns by ``position * f[i]``, where
``f[i] = theta ** (-2i / r)`` unless a scaling changes it. With c = original_context and s = factor:

========  ===============================================================================================
linear    f / s
dynamic   theta * g ** (r / (r - 2)) for theta, where g = 1 + s * (n / c - 1), in sequences of n > c tokens
llama3    f / s where the wavelength 2π/f is above c / low_freq_factor, f where it is below
          c / high_freq_factor, a blend of the two between
longrope  f / short_factors for sequences of up to c tokens, f / long_factors for longer ones
yarn      f / s where an element turns less than beta_slow times over c tokens, f where it turns more than
          beta_fast times, a ramp over the elements between
========  ===============================================================================================

longrope and yarn also multiply the rotated queries and keys by attention_factor.

Sources: Su et al., arXiv:2104.09864; Peng et al. (YaRN), arXiv:2309.00071; Ding et al. (LongRoPE),
arXiv:2402.13753; Llama 3.1's model card; transformers 5.23, ``modeling_rope_utils.py``, for what they leave open.
"""

from __future__ import annotations

import math

import attrs
import numpy as np

from edgekit.architectures._config import ModelConfig, RopeScaling
from edgekit.typing import F32, F64


@attrs.frozen
class Rope:
    """How the queries and keys of a layer rotate.

    Attributes:
        theta: base of the frequencies.
        dim: how many of a head's elements rotate.
        scaling: None for plain rotary embeddings.
        neighbours: whether a pair is two elements beside each other (Llama 4), not one of each half of `dim`.
    """

    theta: float
    dim: int
    scaling: RopeScaling | None = None
    neighbours: bool = False

    def frequencies(self, length: int) -> F64:
        """Radians a position for each pair, float64 [dim / 2], in a sequence of `length` tokens."""
        exponent = np.arange(0, self.dim, 2) / self.dim
        plain: F64 = self.theta**-exponent
        if self.scaling is None:
            return plain
        match self.scaling.kind:
            case "linear":
                return plain / self.scaling.factor
            case "dynamic":
                return plain * _dynamic(self.dim, self.scaling, length)
            case "llama3":
                return _llama3(plain, self.scaling)
            case "longrope":
                return plain / np.array(longrope_factors(self.scaling, length), np.float64)
            case "yarn":
                return _yarn(plain, self.theta, self.dim, self.scaling)

    def rotation(self, start: int, stop: int) -> Rotation:
        """The turns of positions ``start:stop`` of a sequence that ends at `stop`."""
        frequency = self.frequencies(stop).astype(np.float32)
        angle = np.arange(start, stop, dtype=np.float32)[:, None] * frequency
        factor = np.float32(1.0 if self.scaling is None else self.scaling.attention_factor)
        return Rotation(np.cos(angle) * factor, np.sin(angle) * factor, self.neighbours)


def rope_of(config: ModelConfig, sliding: bool = False) -> Rope:
    """The rotation of a layer; of one with a sliding window if `sliding` (Gemma 3 gives those a base of their own)."""
    if sliding and config.rope_theta_local is not None:
        return Rope(config.rope_theta_local, config.rotary_dim)
    return Rope(config.rope_theta, config.rotary_dim, config.rope_scaling)


@attrs.frozen(eq=False)
class Rotation:
    """The turns of consecutive positions: cos and sin, float32 [positions, rotary_dim / 2]."""

    cos: F32
    sin: F32
    neighbours: bool = False

    def __call__(self, x: F32) -> F32:
        """Rotate heads [..., positions, head_dim]; elements beyond rotary_dim stay as they are."""
        half = self.cos.shape[-1]
        if self.neighbours:
            a, b = x[..., : 2 * half : 2], x[..., 1 : 2 * half : 2]
            pairs = np.stack((a * self.cos - b * self.sin, b * self.cos + a * self.sin), axis=-1)
            return np.concatenate((pairs.reshape(*a.shape[:-1], -1), x[..., 2 * half :]), axis=-1)
        a, b = x[..., :half], x[..., half : 2 * half]
        turned = (a * self.cos - b * self.sin, b * self.cos + a * self.sin, x[..., 2 * half :])
        return np.concatenate(turned, axis=-1)


def rotation(config: ModelConfig, start: int, stop: int, sliding: bool = False) -> Rotation:
    """The turns of positions ``start:stop`` of a sequence that ends at `stop`.

    Args:
        config: of the model.
        start: first position.
        stop: position after the last.
        sliding: whether for a layer with a sliding window (Gemma 3 gives those a base of their own).
    """
    return rope_of(config, sliding).rotation(start, stop)


def frequencies(config: ModelConfig, length: int, local_theta: float | None = None) -> F64:
    """Radians a position for each pair of elements, float64 [rotary_dim / 2].

    Args:
        config: of the model.
        length: of the whole sequence (dynamic, longrope).
        local_theta: the base of sliding-window layers, to which no scaling applies.
    """
    scaling = config.rope_scaling if local_theta is None else None
    theta = config.rope_theta if local_theta is None else local_theta
    return Rope(theta, config.rotary_dim, scaling).frequencies(length)


def longrope_factors(scaling: RopeScaling, length: int) -> tuple[float, ...]:
    """The divisors for a sequence of that length."""
    return scaling.long_factors if length > scaling.original_context else scaling.short_factors


def turns_change(config: ModelConfig, before: int, after: int) -> bool:
    """Whether positions turn differently in a sequence of `after` tokens than in one of `before`."""
    scaling = config.rope_scaling
    if scaling is None or scaling.kind not in ("dynamic", "longrope") or before == 0:
        return False
    if scaling.kind == "longrope":
        return longrope_factors(scaling, before) is not longrope_factors(scaling, after)
    return after > max(before, scaling.original_context)


def _dynamic(rotary_dim: int, scaling: RopeScaling, length: int) -> F64:
    """What the larger base does to each frequency: nothing to the first, the whole growth to the last."""
    growth = 1 + scaling.factor * (max(length / scaling.original_context, 1) - 1)
    share: F64 = growth ** -(np.arange(0, rotary_dim, 2) / max(rotary_dim - 2, 1))
    return share


def _llama3(plain: F64, scaling: RopeScaling) -> F64:
    turns = scaling.original_context * plain / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    return _blend(plain, scaling.factor, np.clip((turns - low) / (high - low), 0, 1))


def _yarn(plain: F64, theta: float, dim: int, scaling: RopeScaling) -> F64:
    first, last = (_element(theta, dim, scaling, beta) for beta in (scaling.beta_fast, scaling.beta_slow))
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    width = last - first or 0.001
    return _blend(plain, scaling.factor, 1 - np.clip((np.arange(plain.size) - first) / width, 0, 1))


def _element(theta: float, dim: int, scaling: RopeScaling, turns: float) -> float:
    """Which pair of elements turns that many times over the original context."""
    wavelength = math.log(scaling.original_context / (turns * 2 * math.pi))
    return dim * wavelength / (2 * math.log(theta))


def _blend(plain: F64, factor: float, keep: F64) -> F64:
    """`keep` of the plain frequency, the rest of the stretched one."""
    return plain * keep + plain / factor * (1 - keep)


__all__ = ["Rope", "Rotation", "frequencies", "longrope_factors", "rope_of", "rotation", "turns_change"]
