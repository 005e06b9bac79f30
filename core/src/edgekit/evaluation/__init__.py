"""The loss of quantization: error of each tensor, perplexity, KL divergence, top-1 agreement.

(The package is called `evaluation` because `edgekit.evaluate` is the function.)

With p the baseline's distribution over the vocabulary at a position, q the artifact's, and t the token that
comes next: perplexity = exp(mean -log q(t)), KL divergence = Σ p·(log p - log q) in nats, and the top-1
agreement is the share of positions at which both find the same token most likely. For a tensor w that reads
back as v: relative RMS error = sqrt(Σ(w - v)² / Σw²), signal-to-noise ratio = -20·log10 of it.
"""

from __future__ import annotations

from edgekit.evaluation.comparison import Comparison, Size, TensorError, compare
from edgekit.evaluation.language import Baseline, Evaluation, evaluate

__all__ = ["Baseline", "Comparison", "Evaluation", "Size", "TensorError", "compare", "evaluate"]
