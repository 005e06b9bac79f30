"""One step of the demo's ladder."""

from __future__ import annotations

import attrs


@attrs.frozen
class Step:
    """One step of the ladder, measured.

    Attributes:
        size: of the artifact on disk, in bytes.
        bits_per_weight: measured over all tensors.
        tier: of the precision that most weights have.
        error: relative RMS error of all weights.
        perplexity, kl, top1: on the held-out text, the last two against the source.
        perplexity_error: standard error of the difference to the source's perplexity.
        noise_floor: of the KL divergence; see `edgekit.evaluation.Evaluation`.
    """

    recipe: str
    path: str
    size: int
    bits_per_weight: float
    tier: str
    error: float
    perplexity: float
    perplexity_error: float
    kl: float
    top1: float
    noise_floor: float

    @property
    def is_noise(self) -> bool:
        """Whether the KL divergence is not above the noise floor."""
        return self.kl <= self.noise_floor
