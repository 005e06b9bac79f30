"""How far MLX's logits lie from edgekit's forward pass in numpy, family by family, on small random models.

python tests/bench/bench.py --only mlx-tolerances
python tests/bench/mlx_tolerances.py --markdown docs/how-to/mlx-tolerances.txt     writes the table of the docs

Each figure is the largest of a family's configurations: the largest difference, divided by the largest logit. Quantized
models are compared with numpy on the stored weights.
"""

from __future__ import annotations

import argparse
import importlib.util
import runpy
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

ORACLES = Path(__file__).parents[1] / "oracles"
sys.path.insert(0, str(ORACLES))

import edgekit  # noqa: E402
from edgekit import sample  # noqa: E402
from edgekit.architectures import ModelConfig  # noqa: E402
from edgekit.architectures.forward import Transformer  # noqa: E402
from edgekit.architectures.hf import config_from_hf  # noqa: E402
from edgekit.artifact import Artifact  # noqa: E402
from edgekit.errors import UnsupportedModelError  # noqa: E402
from edgekit.testing.models import artifact_of, random_model  # noqa: E402

NEEDS = ("mlx", "mlx_lm", "edgekit_mlx")
LENGTH = 24
#: What is compared: in float32; quantized, with float32 and bfloat16 scales; the latter as `exact` computes it.
KINDS = ("float32", "4 bits", "4 bits, bfloat16 scales", "the same, `exact=True`")


def report(quick: bool = False) -> Iterator[str]:
    """Yield the lines of the table; quick: of each family's first configuration alone."""
    lacking = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if lacking:
        yield f"MLX's logits are not compared: {', '.join(lacking)} is not installed."
        return
    yield f"| family | models | {' | '.join(KINDS)} |"
    yield "|---|---|" + "---|" * len(KINDS)
    for family, configs in configurations().items():
        with tempfile.TemporaryDirectory() as folder:
            found = [
                measured(lambda to, config=config: artifact_of(random_model(config), to), Path(folder) / str(number))
                for number, config in enumerate(configs[:1] if quick else configs)
            ]
        yield row(f"`{family}`", found)
    with tempfile.TemporaryDirectory() as folder:
        yield row("the sample model", [measured(lambda _: edgekit.open(sample.path()), Path(folder))])


def row(what: str, found: list[tuple[float, ...]]) -> str:
    """A line of the table: the largest of each figure."""
    return f"| {what} | {len(found)} | {' | '.join(f'{max(each):.0e}' for each in zip(*found, strict=True))} |"


def configurations() -> dict[str, list[ModelConfig]]:
    """The configurations of each family that mlx-lm computes, those of the tests."""
    from mlx_models import FAMILIES, config_of

    from edgekit_mlx.families import COMPARED, faithful_context, mlx_config

    every = [config_of(name) for name in FAMILIES]
    for path in sorted((ORACLES / "families").glob("*.py")):
        every += [config_from_hf(hf, path.stem) for hf in runpy.run_path(str(path))["CONFIGS"].values()]
    found: dict[str, list[ModelConfig]] = {family: [] for family in sorted(COMPARED)}
    for config in every:
        try:
            mlx_config(config, config.family)
        except UnsupportedModelError:
            continue
        if faithful_context(config) >= LENGTH:  # it ignores some windows
            found[config.family].append(config)
    return found


def measured(source: Callable[[Path], Artifact], folder: Path) -> tuple[float, ...]:
    """The figures of a model."""
    folder.mkdir(exist_ok=True)
    model = source(folder / "memory")
    config = model.model.config
    tokens = np.random.default_rng(3).integers(0, config.vocab, LENGTH)
    plain = edgekit.convert(model, folder / "float32", format="mlx", dtype="F32")
    half = edgekit.convert(plain, folder / "bfloat16", format="mlx", dtype="BF16")
    small, smaller = (
        edgekit.quantize(each, "int4-g32", to=folder / f"small-{each.path.name}", format="mlx", allow_unquantized=True)
        for each in (plain, half)
    )
    return (
        difference(plain, tokens),
        difference(small, tokens),
        difference(smaller, tokens),
        difference(smaller, tokens, exact=True),
    )


def difference(artifact: Artifact, tokens: np.ndarray, exact: bool = False) -> float:
    """Largest difference of logits over the largest logit."""
    wanted = Transformer(artifact.model).logits(tokens)
    with edgekit.load(artifact, "mlx", exact=exact) as model:
        return float(np.abs(model.logits(tokens) - wanted).max() / np.abs(wanted).max())


def main() -> None:
    """Print the table, or write it to a file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    file = parser.parse_args().markdown
    lines = []
    for line in report():
        print(line, flush=True)
        lines.append(line)
    if file is not None:
        file.write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
