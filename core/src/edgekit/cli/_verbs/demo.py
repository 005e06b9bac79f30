"""`edgekit demo`: quantize the embedded sample model, from 8 bits down to 1."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import click

from edgekit import sample
from edgekit.artifact import Artifact
from edgekit.cli import _page
from edgekit.cli._step import Step
from edgekit.cli.output import json_option, print_json, progress_bar, size, table
from edgekit.errors import UsageError
from edgekit.evaluation import Baseline, Evaluation, compare, evaluate
from edgekit.files.atomic import write_atomic, writing
from edgekit.pipeline._conversion import open_artifact, quantize
from edgekit.plugin._registry import manager
from edgekit.precision import Tier

GGUF_LADDER = ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K")
AFFINE_LADDER = tuple(f"affine:int{bits}-asym-g32" for bits in range(8, 0, -1))


@click.command("demo")
@click.option("--out", default="demo", show_default=True, metavar="DIR", help="Where to write artifacts and the page.")
@json_option
def command(out: str, as_json: bool) -> None:
    """Quantize the embedded sample model down a ladder of precisions, measure each, and draw the picture."""
    target = Path(out)
    with writing(target):
        target.mkdir(parents=True, exist_ok=True)
        refuse_foreign(target)
    source = open_artifact(sample.path())
    text = sample.heldout_text()
    with progress_bar("demo") as report:
        remembered = Baseline(source)
        baseline = evaluate(source, text, baseline=remembered)
        steps = list(climb(remembered, text, target, report))
    page = write_pictures(target, steps, source.nbytes, baseline.perplexity)
    if as_json:
        print_json(
            {"baseline_perplexity": baseline.perplexity, "page": str(page), "steps": [attrs.asdict(s) for s in steps]}
        )
        return
    show(steps, source, baseline)
    click.echo(f"\nArtifacts and the picture: {page}")


def write_pictures(target: Path, steps: list[Step], source_size: int, perplexity: float) -> Path:
    """Write figures, pictures and page; returns the page's path.

    The figures come first: they mark the page as the demo's, so that a run after one that was cut off may replace it.
    """
    write_atomic(target / "ladder.json", (json.dumps([attrs.asdict(s) for s in steps], indent=1) + "\n").encode())
    write_atomic(target / "ladder.svg", (_page.chart(steps) + "\n").encode())
    write_atomic(target / "ladder-narrow.svg", (_page.chart(steps, _page.NARROW) + "\n").encode())
    page = target / "index.html"
    write_atomic(page, _page.render(steps, source_size, perplexity).encode())
    return page


def refuse_foreign(target: Path) -> None:
    """Raise if a page exists that the demo did not write; its own lies beside its figures."""
    page = target / "index.html"
    if page.exists() and not (target / "ladder.json").exists():
        raise UsageError(f"{page} exists, and the demo did not write it; choose another directory with --out")


def climb(source: Baseline, text: str, target: Path, report: Any) -> Iterator[Step]:
    """Quantize to each step of the ladder and measure it."""
    ladder = [*(GGUF_LADDER if _has_gguf() else ()), *AFFINE_LADDER]
    for index, recipe in enumerate(ladder):
        report(index, len(ladder), recipe)
        path = target / (f"sample-{recipe}.gguf" if recipe in GGUF_LADDER else "sample-" + recipe.replace(":", "-"))
        yield measure(source, quantize(source.artifact, recipe, to=path), recipe, text)
    report(len(ladder), len(ladder), "")


def measure(source: Baseline, made: Artifact, recipe: str, text: str) -> Step:
    """Compare an artifact with its source on weights and on text."""
    comparison = compare(source, made, text)
    quality = comparison.evaluation
    assert quality is not None
    return Step(
        recipe=recipe,
        path=made.path.name,
        size=made.nbytes,
        bits_per_weight=8 * made.tensor_nbytes / made.parameters,
        tier=tier(made, recipe),
        error=comparison.relative_rms,
        perplexity=quality.perplexity,
        perplexity_error=quality.perplexity_error or 0.0,
        kl=quality.kl_divergence or 0.0,
        top1=quality.top1_agreement or 0.0,
        noise_floor=quality.noise_floor or 0.0,
    )


def tier(made: Artifact, recipe: str) -> str:
    """Return the tier of the precision that most of the weights have."""
    elements: dict[Tier, int] = {}
    for tensor in made.tensors.values():
        precision = getattr(tensor, "precision", None)
        of_tensor = precision.tier if precision else Tier.FULL
        elements[of_tensor] = elements.get(of_tensor, 0) + tensor.size
    return max(elements, key=lambda each: elements[each])


def perplexity(step: Step) -> str:
    """Return the perplexity with the standard error of its difference to the source's."""
    return f"{step.perplexity:.4f} ± {step.perplexity_error:.4f}"


def show(steps: list[Step], source: Artifact, baseline: Evaluation) -> None:
    """Print the table."""
    click.echo(
        f"Sample model: {source.parameters:,} parameters, {size(source.nbytes)}, perplexity {baseline.perplexity:.4f}\n"
    )
    header = ("recipe", "size", "bits/weight", "tier", "rel. error", "perplexity", "KL divergence", "top-1")
    rows = [
        (
            s.recipe,
            size(s.size),
            f"{s.bits_per_weight:.3f}",
            s.tier,
            f"{s.error:.2%}",
            perplexity(s),
            _page.divergence(s),
            f"{s.top1:.2%}",
        )
        for s in steps
    ]
    click.echo(table(header, rows))
    click.echo(f"\nNoise floor of the KL divergence: {steps[0].noise_floor:.1e} nats (two orders of summation)")
    if not _has_gguf():
        click.echo("\npip install edgekit-gguf adds the GGUF half of the ladder (Q8_0 … Q2_K).")


def _has_gguf() -> bool:
    return any(r.name == "gguf" for r in manager().all("formats"))


__all__ = ["AFFINE_LADDER", "GGUF_LADDER", "climb", "command", "measure", "perplexity", "show", "tier"]
