"""How the next token is chosen: options, their checks, and the sampler that applies them.

The order of the steps is that of transformers and vLLM: bias and penalties, then what a grammar allows, then
temperature, `top_k`, `min_p` and `top_p`.
"""

from __future__ import annotations

import math
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypedDict, cast

import attrs
import numpy as np

from edgekit.errors import UsageError
from edgekit.runtime._draw import Drawer
from edgekit.runtime.arguments import integer
from edgekit.typing import F32, F64

#: Tokens that `logit_bias` may name, and the largest value, as in OpenAI's API.
MOST_BIASES, LARGEST_BIAS = 1024, 100.0


class SamplingOptions(TypedDict, total=False):
    """How the next token is chosen, as keyword arguments; `Sampling` says what they mean, and checks them."""

    temperature: float
    top_k: int
    top_p: float
    seed: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]


class Step(Protocol):
    """Takes part in the choice of each token of one text: masks logits before it, and sees the result."""

    def allowed(self, logits: F32) -> F32:
        """Return logits [vocab] with -infinity for tokens that may not follow; the argument is left as it is."""
        ...

    def chosen(self, logits: F32, token: int) -> None:
        """Note a token.

        Args:
            logits: [vocab], as the model computed them.
            token: the one chosen.
        """
        ...


def _drawn(seed: int) -> int:
    """Return the seed to use: -1 draws a random one, as in llama.cpp."""
    number = integer("seed", seed, -1)
    return secrets.randbits(32) if number == -1 else number


def _biases(given: Mapping[int, float] | Mapping[str, float] | None) -> dict[int, float]:
    """Return biases by token id; JSON writes the ids as texts."""
    if given is None:
        return {}
    if not isinstance(given, Mapping) or len(given) > MOST_BIASES:
        raise UsageError(f"logit_bias {given!r:.80}; give a mapping from at most {MOST_BIASES} token ids to numbers")
    return dict(_bias(token, value) for token, value in given.items())


def _bias(token: object, value: Any) -> tuple[int, float]:
    number = int(token) if isinstance(token, str) and token.isascii() and token.isdigit() and len(token) < 10 else token
    if not (_is_number(value) and abs(value) <= LARGEST_BIAS):
        raise UsageError(
            f"logit_bias {value!r:.80} of token {token!r:.20}; choose -{LARGEST_BIAS:g} to {LARGEST_BIAS:g}"
        )
    return integer("a token id of logit_bias", number, 0), float(value)


@attrs.frozen
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 takes the most likely token; above, probabilities are softmax(logits / temperature).
        top_k: only the k most likely tokens; 0 for all.
        top_p: only the most likely tokens that together reach this probability, of those that `top_k` and `min_p` keep.
        seed: of the random numbers; the same seed gives the same text. -1 draws one, which is then the seed here.
        min_p: only tokens at least this times as likely as the most likely one; 0 for all.
        repetition_penalty: divides positive logits and multiplies negative ones of tokens in the prompt or the text; 1
            changes nothing. Source: Keskar et al. 2019, CTRL, section 4.1, as in transformers and vLLM.
        presence_penalty: subtracted from the logits of tokens in the generated text; -2 to 2.
        frequency_penalty: subtracted for each time that a token is in the generated text; -2 to 2.
        logit_bias: added to the logits of these tokens; -100 to 100.
        step: takes part in the choice of one text's tokens; not for two texts.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = attrs.field(default=0, converter=_drawn)
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = attrs.field(factory=dict, converter=_biases)
    step: Step | None = attrs.field(default=None, repr=False, eq=False, kw_only=True)

    def __attrs_post_init__(self) -> None:
        if not (_is_number(self.temperature) and 0 <= self.temperature < math.inf):
            raise UsageError(f"temperature {self.temperature!r:.80}; choose 0 or more")
        if not (_is_number(self.top_k) and self.top_k >= 0 and self.top_k == int(self.top_k)):
            raise UsageError(f"top_k {self.top_k!r:.80}; choose 0 (all tokens) or more")
        if not (_is_number(self.top_p) and 0 < self.top_p <= 1):
            raise UsageError(f"top_p {self.top_p!r:.80}; choose above 0 and at most 1")
        if not (_is_number(self.min_p) and 0 <= self.min_p <= 1):
            raise UsageError(f"min_p {self.min_p!r:.80}; choose 0 (all tokens) to 1")
        if not (_is_number(self.repetition_penalty) and 0 < self.repetition_penalty < math.inf):
            raise UsageError(f"repetition_penalty {self.repetition_penalty!r:.80}; choose above 0; 1 changes nothing")
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            if not (_is_number(value) and -2 <= value <= 2):
                raise UsageError(f"{name} {value!r:.80}; choose -2 to 2; 0 changes nothing")

    @property
    def greedy(self) -> bool:
        """Whether each token is that of the largest logit and nothing else is asked: a runtime may do that natively."""
        return self.temperature == 0 and not self.adjusts and self.step is None

    @property
    def adjusts(self) -> bool:
        """Whether logits are changed by a bias or a penalty."""
        return bool(self.logit_bias) or self.penalizes

    @property
    def penalizes(self) -> bool:
        """Whether earlier tokens change the logits."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0

    def options(self) -> SamplingOptions:
        """Return it as keyword arguments, without `step`."""
        given = attrs.asdict(self, filter=lambda attribute, _: attribute.name != "step")
        return cast(SamplingOptions, given)

    def sampler(self, prompt: Sequence[int] = ()) -> Sampler:
        """Return a function from logits [vocab] to the next token, with a new random generator.

        Args:
            prompt: token ids before the text, for `repetition_penalty`.
        """
        return Sampler(self, prompt)

    def probabilities(self, logits: F32) -> F64:
        """Return the probability with which `sampler` chooses the first token, float64 [vocab], by sorting.

        Args:
            logits: [vocab], finite or -infinity; penalties and `step` are left out.
        """
        if self.logit_bias:
            logits = _biased(logits.copy(), self.logit_bias)
        order = np.argsort(-logits, kind="stable")[: int(self.top_k) or None]
        with np.errstate(over="ignore"):  # a tiny temperature makes exp(-inf), which is correctly 0
            shares = np.exp((logits[order].astype(np.float64) - logits.max()) / (self.temperature or 1e-300))
        shares[shares < self.min_p] = 0
        shares /= shares.sum()
        # A token stays while those before it have not reached top_p; the first always does.
        shares[shares.cumsum() - shares >= self.top_p] = 0
        probabilities = np.zeros(len(logits))
        probabilities[order] = shares / shares.sum()
        return probabilities


class Sampler:
    """Chooses the tokens of one text, from logits [vocab] at a time."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int] = ()) -> None:
        self._sampling, self._drawer = sampling, Drawer(np.random.default_rng(sampling.seed))
        self._adjusts, self._penalizes, self._step = sampling.adjusts, sampling.penalizes, sampling.step
        self._prompt = set(map(int, prompt)) if sampling.repetition_penalty != 1 else set()
        self._counts: Counter[int] = Counter()

    def __call__(self, logits: F32) -> int:
        """Return the next token.

        Raises:
            NonFiniteError: logits that are not finite.
        """
        if not (self._adjusts or self._step):
            return self._choose(logits)
        scores = self._adjusted(logits) if self._adjusts else logits
        if self._step is None:
            token = self._choose(scores)
        else:
            token = self._choose(self._step.allowed(scores))
            self._step.chosen(logits, token)
        if self._penalizes:
            self._counts[token] += 1
        return token

    def _adjusted(self, logits: F32) -> F32:
        chosen = self._sampling
        scores = _biased(logits.astype(np.float32, copy=True), chosen.logit_bias)
        if chosen.repetition_penalty != 1:
            seen = _within(self._prompt | self._counts.keys(), scores)
            values = scores[seen]
            penalty = np.float32(chosen.repetition_penalty)
            scores[seen] = np.where(values > 0, values / penalty, values * penalty)
        if self._counts and (chosen.presence_penalty or chosen.frequency_penalty):
            ids = _within(self._counts, scores)
            counts = np.array([self._counts[int(token)] for token in ids], np.float32)
            scores[ids] -= np.float32(chosen.frequency_penalty) * counts + np.float32(chosen.presence_penalty)
        return scores

    def _choose(self, logits: F32) -> int:
        chosen = self._sampling
        if chosen.temperature == 0:
            return int(logits.argmax())
        if not chosen.top_k:
            return self._draw(logits)
        kept = self._drawer.top_k(logits, int(chosen.top_k))
        return int(kept[self._draw(logits[kept])])

    def _draw(self, logits: F32) -> int:
        chosen = self._sampling
        return self._drawer.draw(logits, chosen.temperature, chosen.top_p, chosen.min_p)


def _biased(logits: F32, biases: Mapping[int, float]) -> F32:
    """Add biases to logits in place; tokens beyond the vocabulary are left out."""
    for token, value in biases.items():
        if token < len(logits):
            logits[token] += value
    return logits


def _within(tokens: set[int] | Counter[int], logits: F32) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array([token for token in tokens if token < len(logits)], np.int64)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


__all__ = ["LARGEST_BIAS", "MOST_BIASES", "Sampler", "Sampling", "SamplingOptions", "Step"]
