"""What each of NNCF's modes costs on the sample model, as edgekit writes it: size, perplexity, KL divergence, top-1.

python tests/bench/openvino_modes.py      the table of docs/how-to/run-with-openvino.md, some two minutes
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import edgekit
from edgekit import sample
from edgekit.evaluation import Baseline, evaluate

RECIPES = (
    *("INT8_ASYM", "INT8_SYM", "MXFP8_E4M3", "FP8_E4M3_G64"),
    *("INT4_ASYM_G32", "INT4_ASYM_G64", "INT4_SYM_G32", "INT4_SYM_G64", "INT4_SYM"),
    *("NF4_G64", "CB4", "FP4_G64", "MXFP4", "NVFP4", "INT3_SYM_G32", "INT2_SYM_G32"),
)


def main() -> None:
    """Print the table, best first as listed."""
    source, text = edgekit.open(sample.path()), sample.heldout_text()
    baseline = Baseline(source)
    plain = evaluate(source, text)
    print(
        "| recipe | weights | bits a weight | perplexity | KL divergence | top-1 agreement |\n|---|---|---|---|---|---|"
    )
    print(f"| source (F16) | {source.tensor_nbytes / 1e6:.2f} MB | 16.00 | {plain.perplexity:.3f} | | |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for recipe in RECIPES:
            small = edgekit.quantize(source, recipe, to=Path(folder) / recipe, format="openvino")
            model = small.model.tensors.values()
            nbytes, count = sum(t.nbytes for t in model), sum(t.size for t in model)
            found = evaluate(small, text, baseline=baseline)
            print(
                f"| `{recipe}` | {nbytes / 1e6:.2f} MB | {8 * nbytes / count:.2f} | {found.perplexity:.3f} | "
                f"{found.kl_divergence:.4f} | {found.top1_agreement:.1%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
