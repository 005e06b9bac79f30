"""The numpy operations on arrays alone: norms, activations, attention, recurrences; all in float32."""

from __future__ import annotations

import math

import numpy as np

from edgekit.architectures.ops import Routing
from edgekit.typing import F32, Bools

#: Queries that attend at once; the scores of one block are heads x this x keys.
_QUERIES = 128
#: Tokens of the gated delta rule that are computed together, and how many are too few for it.
CHUNK, _FEW = 64, 8


def attend(
    queries: F32,
    keys: F32,
    values: F32,
    scale: float,
    cap: float | None,
    window: int | None,
    *,
    chunk: int | None = None,
    causal: bool = True,
    sinks: F32 | None = None,
) -> F32:
    """Attention with grouped queries, causal unless told otherwise.

    Args:
        queries: [batch, heads, n, head_dim], of the last n positions.
        keys: [batch, kv_heads, m, head_dim], of all m positions; each serves heads / kv_heads queries.
        values: as `keys`.
        scale: multiplies the scores.
        cap: soft cap of the scores, or None.
        window: how many positions back a query sees, its own included; None for all.
        chunk: a query sees the keys of its own chunk of so many positions only; None for all.
        causal: whether a query sees no later key; without, a window reaches to both sides.
        sinks: [heads], a score for each head that takes part in the softmax and has no value; None without.

    Returns:
        float32 [batch, n, heads * head_dim].
    """
    batch, heads, n, head_dim = queries.shape
    grouped = queries.reshape(batch, keys.shape[1], -1, n, head_dim)
    offset = keys.shape[2] - n
    sink = None if sinks is None else sinks.reshape(1, keys.shape[1], -1, 1, 1)
    attended = []
    for start in range(0, n, _QUERIES):
        block = grouped[..., start : start + _QUERIES, :]
        stop = offset + start + block.shape[-2]
        first = 0 if window is None else max(0, offset + start - window + 1)
        last = stop if causal else keys.shape[2]
        seen = _seen(offset + start, stop, first, last, window, chunk, causal)
        scores = _scores(block, keys[:, :, first:last], scale, cap)
        np.copyto(scores, -np.inf, where=~seen)
        attended.append(_mix(scores, values[:, :, first:last], sink))
    joined = np.concatenate(attended, axis=-2).reshape(batch, heads, n, head_dim)
    return joined.swapaxes(1, 2).reshape(batch, n, -1)


def _scores(queries: F32, keys: F32, scale: float, cap: float | None) -> F32:
    """Of grouped queries [batch, kv_heads, group, n, head_dim] with keys: [batch, kv_heads, group, n, m]."""
    # The queries of a group are rows of one product: few large ones suit BLAS better than many small ones.
    rows: F32 = queries.reshape(*queries.shape[:2], -1, queries.shape[-1]) * np.float32(scale)
    scores: F32 = (rows @ keys.swapaxes(-1, -2)).reshape(*queries.shape[:-1], -1)
    return scores if cap is None else softcap(scores, cap)


def _mix(scores: F32, values: F32, sink: F32 | None = None) -> F32:
    """``softmax(scores) @ values``, overwriting the scores and dividing last, where there is least to divide."""
    most = scores.max(axis=-1, keepdims=True)
    if sink is not None:
        most = np.maximum(most, sink)
    scores -= most
    weights: F32 = np.exp(scores, out=scores)
    rows = weights.reshape(*scores.shape[:2], -1, scores.shape[-1])
    mixed: F32 = (rows @ values).reshape(*scores.shape[:-1], -1)
    total = weights.sum(axis=-1, keepdims=True)
    if sink is not None:
        total = total + np.exp(sink - most)
    mixed /= total
    return mixed


def _seen(start: int, stop: int, first: int, last: int, window: int | None, chunk: int | None, causal: bool) -> Bools:
    """Whether queries at ``start:stop`` see keys at ``first:last``."""
    if causal and chunk is None:
        return visible(start, stop, first, window)
    queries, keys = np.arange(start, stop)[:, None], np.arange(first, last)
    back = queries - keys
    seen: Bools = back >= 0 if causal else np.ones(back.shape, np.bool_)
    if window is not None:
        seen = seen & (np.abs(back) < window)
    return seen if chunk is None else seen & (queries // chunk == keys // chunk)


def visible(start: int, stop: int, first: int, window: int | None) -> Bools:
    """Whether queries at ``start:stop`` see keys at ``first:stop``: [stop - start, stop - first]."""
    back = np.arange(start, stop)[:, None] - np.arange(first, stop)
    return (back >= 0) & (back < (stop if window is None else window))


def rms_norm(x: F32, eps: float) -> F32:
    """Divide by the root of the mean square over the last dimension."""
    normalized: F32 = x / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + np.float32(eps))
    return normalized


def softcap(x: F32, cap: float) -> F32:
    """``cap * tanh(x / cap)``."""
    capped: F32 = np.float32(cap) * np.tanh(x / np.float32(cap))
    return capped


def silu(x: F32) -> F32:
    """Return ``x * sigmoid(x)``."""
    with np.errstate(over="ignore"):  # exp(-x) of a very negative x is infinite, and x / inf is the right -0
        activated: F32 = x / (1 + np.exp(-x))
    return activated


def gelu_tanh(x: F32) -> F32:
    """The tanh approximation of GELU."""
    cube = x * x * x  # x**3 calls pow for every value, which takes longer than all matrix products of a small model
    inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * cube)
    activated: F32 = np.float32(0.5) * x * (1 + np.tanh(inner))
    return activated


def gelu(x: F32) -> F32:
    """GELU by the error function."""
    activated: F32 = np.float32(0.5) * x * (1 + erf(x * np.float32(math.sqrt(0.5))))
    return activated


#: Numerator and denominator of x² that give erf(x) / x, highest power first; beyond the edge erf(x) is ±1 in float32.
_ERF_ABOVE = (
    0.00022905065861350646,
    0.0034082910107109506,
    0.050955695062380861,
    0.18520832239976145,
    1.128379143519084,
)
_ERF_BELOW = (
    *(-1.1791602954361697e-7, 0.000023547966471313185, 0.0010179625278914885, 0.014070470171167667),
    *(0.11098505178285362, 0.49746925110067538, 1.0),
)
_ERF_EDGE = 3.832506856900711


def erf(x: F32) -> F32:
    """The error function within 4e-7: numpy has none.

    Source: the rational approximation of XLA (``xla/hlo/builder/lib/math.cc``, `ErfImpl32`).
    """
    x = np.clip(x, np.float32(-_ERF_EDGE), np.float32(_ERF_EDGE))
    square = np.square(x)
    above, below = (np.zeros_like(x) for _ in range(2))
    for factor in _ERF_ABOVE:
        above = above * square + np.float32(factor)
    for factor in _ERF_BELOW:
        below = below * square + np.float32(factor)
    result: F32 = x * above / below
    return result


def sigmoid(x: F32) -> F32:
    """Return ``1 / (1 + exp(-x))``."""
    with np.errstate(over="ignore"):
        activated: F32 = np.reciprocal(1 + np.exp(-x))
    return activated


def softplus(x: F32) -> F32:
    """Return ``log(1 + exp(x))``."""
    activated: F32 = np.logaddexp(x, np.float32(0))
    return activated


def relu2(x: F32) -> F32:
    """Return ``max(x, 0)²``."""
    activated: F32 = np.square(np.maximum(x, 0))
    return activated


def clipped_swiglu(gate: F32, up: F32) -> F32:
    """gpt-oss's gate: ``(clip(up, -7, 7) + 1) * g * sigmoid(1.702 g)`` with ``g = min(gate, 7)``."""
    g: F32 = np.minimum(gate, np.float32(7))
    between: F32 = np.asarray(up.clip(-7, 7) + 1, np.float32)
    out: F32 = between * (g * sigmoid(np.asarray(g * np.float32(1.702), np.float32)))
    return out


def route(scores: F32, how: Routing, bias: F32 | None) -> F32:
    """The weight of every expert, 0 for those not chosen; see `edgekit.architectures.ops.Ops.route`."""
    every = {"sigmoid": sigmoid, "softmax": _softmax, "chosen": _unchanged}[how.score](scores)
    ranked = every if bias is None else every + bias
    if how.groups > 1:
        ranked = np.where(_best_groups(ranked, how), ranked, -np.inf)
    chosen = np.argpartition(-ranked, how.used - 1, axis=-1)[..., : how.used]
    picked = np.take_along_axis(every, chosen, axis=-1)
    if how.score == "chosen":
        picked = _softmax(picked)
    elif how.normalized:
        picked = picked / np.maximum(picked.sum(axis=-1, keepdims=True), np.float32(how.floor))
    weights = np.zeros_like(scores)
    np.put_along_axis(weights, chosen, picked * np.float32(how.scale), axis=-1)
    return weights


def route_sparsely(scores: F32, jitter: float) -> F32:
    """The weights of two experts; see `edgekit.architectures.ops.Ops.route_sparsely`."""
    weights, left = np.zeros_like(scores), scores
    for _ in range(2):
        chosen = left.argmax(axis=-1, keepdims=True)
        top = np.take_along_axis(left, chosen, axis=-1)
        with np.errstate(invalid="ignore"):  # 0 / 0 is not far
            far = (top - scores) / np.maximum(np.abs(scores), top) > np.float32(2 * jitter)
        shares = _softmax(np.where(far, -np.inf, left))
        np.put_along_axis(weights, chosen, np.take_along_axis(shares, chosen, axis=-1), axis=-1)
        left = left.copy()
        np.put_along_axis(left, chosen, np.float32(-np.inf), axis=-1)
    return weights


def _best_groups(ranked: F32, how: Routing) -> Bools:
    """Whether an expert is of one of the best groups, by the sum of each group's best two."""
    apart = ranked.reshape(*ranked.shape[:-1], how.groups, -1)
    best = np.sort(apart, axis=-1)[..., -2:].sum(axis=-1)
    least = np.sort(best, axis=-1)[..., -how.groups_used, None]
    kept: Bools = np.repeat(best >= least, apart.shape[-1], axis=-1)
    return kept


def _softmax(x: F32) -> F32:
    shares: F32 = np.exp(x - x.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    return shares


def _unchanged(x: F32) -> F32:
    return x


def convolve(x: F32, kernel: F32, state: F32 | None) -> tuple[F32, F32]:
    """A causal convolution of each channel, and the next state.

    Args:
        x: [batch, n, channels].
        kernel: [channels, taps]; the last tap meets the newest input.
        state: the taps - 1 inputs before, [batch, taps - 1, channels]; None for zeros.
    """
    taps, n = kernel.shape[1], x.shape[1]
    before = np.zeros((len(x), taps - 1, x.shape[2]), np.float32) if state is None else state
    whole = np.concatenate([before, x], axis=1)
    out = sum(whole[:, tap : tap + n] * kernel[:, tap] for tap in range(taps))
    return np.asarray(out, np.float32), whole[:, n:]


def delta_rule(queries: F32, keys: F32, values: F32, decay: F32, beta: F32, state: F32 | None) -> tuple[F32, F32]:
    """The gated delta rule, and the next state: in chunks of `CHUNK` tokens, a few tokens one by one.

    Args:
        queries: [batch, heads, n, key_dim].
        keys: as `queries`.
        values: [batch, heads, n, value_dim].
        decay: [batch, n, heads].
        beta: as `decay`.
        state: [batch, heads, key_dim, value_dim]; None for zeros.
    """
    shape = (*keys.shape[:2], keys.shape[3], values.shape[3])
    s = np.zeros(shape, np.float32) if state is None else state
    if values.shape[2] > _FEW:
        return _delta_chunks(queries, keys, values, decay, beta, s)
    fading = np.exp(decay).swapaxes(1, 2)[..., None, None]
    rates = beta.swapaxes(1, 2)[..., None, None]
    out = np.empty_like(values)
    for t in range(values.shape[2]):
        s = s * fading[:, :, t]
        k, v = keys[:, :, t, :, None], values[:, :, t, None]
        s = s + k * (rates[:, :, t] * (v - k.swapaxes(2, 3) @ s))
        out[:, :, t] = (queries[:, :, t, None] @ s)[:, :, 0]
    return out, s


def _delta_chunks(q: F32, k: F32, v: F32, decay: F32, beta: F32, s: F32) -> tuple[F32, F32]:
    """The gated delta rule over chunks: what the tokens of a chunk do to each other is one triangular system.

    With ``g`` the decay summed from the chunk's begin, ``u_i = beta_i (v_i - sum_{j<i} exp(g_i - g_j) (k_i' k_j) u_j -
    exp(g_i) S' k_i)`` is what token i adds to the state with its key. The sum is over the chunk, S from before it.

    Source: Yang et al., arXiv:2412.06464, section 3.3, and ``torch_chunk_gated_delta_rule`` of transformers.
    """
    n, out = v.shape[2], np.empty_like(v)
    q, k, v, rate, decay = (_chunks(x) for x in (q, k, v, *(x.swapaxes(1, 2)[..., None] for x in (beta, decay))))
    g = np.cumsum(decay, axis=3)
    lower = np.tril(np.ones((CHUNK, CHUNK), bool))
    fading = np.exp(np.where(lower, g - g.swapaxes(3, 4), -np.inf))  # from token j to token i, 0 for later ones
    within = np.tril(rate * (k @ k.swapaxes(3, 4)) * fading, -1)
    solved = np.concatenate([rate * v, rate * np.exp(g) * k], axis=-1)
    for i in range(1, CHUNK):  # forward substitution: one row of all chunks at a time
        solved[..., i, :] -= (within[..., i, None, :i] @ solved[..., :i, :])[..., 0, :]
    added, from_state = np.split(solved, [v.shape[-1]], axis=-1)
    seen, faded = (q @ k.swapaxes(3, 4)) * fading, np.exp(g) * q
    rest = np.exp(g[..., -1:, :] - g) * k
    for chunk in range(v.shape[2]):
        start, stop = chunk * CHUNK, min((chunk + 1) * CHUNK, n)
        u = added[:, :, chunk] - from_state[:, :, chunk] @ s
        whole = faded[:, :, chunk] @ s + seen[:, :, chunk] @ u
        out[:, :, start:stop] = whole[:, :, : stop - start]
        s = np.exp(g[:, :, chunk, -1:]) * s + rest[:, :, chunk].swapaxes(2, 3) @ u
    return out, s


def _chunks(x: F32) -> F32:
    """[batch, heads, n, size] as [batch, heads, chunks, CHUNK, size]; zeros at the end change no state."""
    padded = np.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % CHUNK), (0, 0)))
    return padded.reshape(*x.shape[:2], -1, CHUNK, x.shape[3])


def scan(x: F32, step: F32, decay: F32, skip: F32, inputs: F32, outputs: F32, state: F32 | None) -> tuple[F32, F32]:
    """Mamba 2's selective scan, token by token, and the next state.

    Args:
        x: [batch, heads, n, head_dim].
        step: [batch, n, heads].
        decay: [heads, 1].
        skip: as `decay`.
        inputs: [batch, groups, n, state].
        outputs: as `inputs`.
        state: [batch, heads, head_dim, state]; None for zeros.
    """
    shared = x.shape[1] // inputs.shape[1]
    b, c = (np.repeat(each, shared, axis=1) for each in (inputs, outputs))
    s = np.zeros((*x.shape[:2], x.shape[3], b.shape[3]), np.float32) if state is None else state
    dt = step.swapaxes(1, 2)[..., None]
    fading = np.exp(dt * decay[None, :, :, None])
    out = x * skip[None, :, :, None]
    for t in range(x.shape[2]):
        s = s * fading[:, :, t, None] + (dt[:, :, t] * x[:, :, t])[..., None] * b[:, :, t, None]
        out[:, :, t] += (s @ c[:, :, t, :, None])[..., 0]
    return out, s


__all__ = [
    "CHUNK",
    "attend",
    "clipped_swiglu",
    "convolve",
    "delta_rule",
    "gelu",
    "gelu_tanh",
    "relu2",
    "rms_norm",
    "route",
    "scan",
    "sigmoid",
    "silu",
    "softcap",
    "softplus",
    "visible",
]
