"""What a runtime adds to each token of the model's: choosing it, and the text that it makes.

python tests/bench/generation.py [--quick]
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from itertools import product
from statistics import median
from typing import Any

import numpy as np
from case import timed

from edgekit import sample
from edgekit.pipeline import open_artifact
from edgekit.runtime import Sampling

Way = Callable[[Any], object]
#: Of SmolLM2, near Llama 3's, and Gemma 3's.
VOCABULARIES = (49_152, 128_256, 262_144)
SAMPLINGS = {
    "temperature 1": {},
    "top_p 0.95": {"top_p": 0.95},
    "top_p 0.05": {"top_p": 0.05},
    "top_k 40": {"top_k": 40},
}
#: Deviations of the scores' normal distribution: as a model's, and all equal.
SPREADS = {"": 2, ", flat": 0}
#: Tokens so far: the work for one more is the same after each.
LENGTHS = (100, 1000, 3000)


def report(quick: bool) -> Iterator[str]:
    """Milliseconds a token, medians of interleaved rounds, beside the plain way of doing the same."""
    rounds = 5 if quick else 25
    yield "| choosing a token | vocabulary | edgekit ms | by sorting it: ms → edgekit's ratio |"
    yield "|---|---|---|---|"
    yield from (line for count in VOCABULARIES for line in sampling(count, rounds))
    yield ""
    yield "| text of one more token | tokens so far | edgekit ms | by decoding all: ms → edgekit's ratio |"
    yield "|---|---|---|---|"
    yield from (detokenizing(length, rounds) for length in LENGTHS)


def sampling(vocabulary: int, rounds: int) -> Iterator[str]:
    """Rows of one vocabulary, over logits of each spread."""
    random = np.random.default_rng(1)
    options: dict[str, Any]
    normal = random.standard_normal(vocabulary).astype(np.float32)
    for (name, options), (scores, spread) in product(SAMPLINGS.items(), SPREADS.items()):
        chosen = Sampling(temperature=1.0, seed=1, **options)
        own, plain = side_by_side(rounds, chosen.sampler(), plainly(chosen, random), normal * np.float32(spread))
        yield f"| {name}{scores} | {vocabulary:,} | {own:.3f} | {plain:.3f} → **{plain / own:.0f}×** |"


def plainly(chosen: Sampling, random: np.random.Generator) -> Callable[[np.ndarray], int]:
    """A token by the definition of its probability."""
    return lambda logits: int(random.choice(len(logits), p=chosen.probabilities(logits)))


def detokenizing(length: int, rounds: int) -> str:
    """A row: the sample model's tokenizer after so many tokens."""
    tokenizer = open_artifact(sample.path()).tokenizer
    assert tokenizer is not None
    ids = (tokenizer.encode("Once upon a time there was a little girl. ") * length)[:length]
    text = tokenizer.detokenizer(ids)
    own, plain = side_by_side(rounds, text.add, lambda token: tokenizer.decode([*ids, token]), ids[-1])
    return f"| `{tokenizer.kind}` | {length:,} | {own:.4f} | {plain:.3f} → **{plain / own:.0f}×** |"


def side_by_side(rounds: int, own: Way, plain: Way, given: Any) -> tuple[float, float]:
    """Median milliseconds of two ways to do one thing, in turns."""
    times = [[timed(lambda way=way: way(given)) for way in (own, plain)] for _ in range(rounds)]
    first, second = (1e3 * median(column) for column in zip(*times, strict=True))
    return first, second


if __name__ == "__main__":
    print(*report("--quick" in sys.argv), sep="\n")
