"""Damage small models in seeded ways, and put each through everything that reads and writes models.

python tests/contracts/fuzz.py [--seed N] [--seconds S]

Whatever a file holds, the answer is a result or an `EdgekitError` of a reasonable length: no other exception, no warning,
no gigabytes, no hang, and nothing half-written. Damaged models of both formats that gave anything else are printed and
kept. Exits with 1 where there were any.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from damage import damaged

import edgekit
from edgekit import sample
from edgekit.architectures.hf import config_from_hf
from edgekit.cli._verbs.inspect import describe
from edgekit.errors import EdgekitError
from edgekit.formats import safetensors
from edgekit.testing.models import random_hf_tensors

CASES = json.loads((Path(__file__).parents[1] / "core" / "vectors" / "forward.json").read_text("utf-8"))["cases"]
GGUF_SEEDS = [("llama", "F32"), ("llama-yarn", "Q8_0"), ("qwen2", "Q4_0"), ("gemma", "Q8_0"), ("phi3", "F32")]
PARTS_SEEDS = ["affine:int3-asym-g32", "mlx:int4-g32", "openvino:nf4-g32", "ggml:Q4_0"]
#: Float32 that no weight should be: NaN, infinity, the largest, the smallest, minus zero.
BAD_WEIGHTS = [b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\xff\xff\x7f\x7f", b"\1\0\0\0", b"\0\0\0\x80"]
LONGEST_MESSAGE = 3000
SECONDS_FOR_ONE = 30


def seeds(home: Path) -> list[Path]:
    """Whole models: a directory of each family, half of them in shards, quantized ones, and GGUF files."""
    for index, name in enumerate(CASES):
        write_directory(home / name, CASES[name]["config"], shards=1 + index % 2)
    for name in PARTS_SEEDS:
        edgekit.quantize(home / "llama", name, to=home / name.replace(":", "-"))
    for family, recipe in GGUF_SEEDS:
        edgekit.quantize(home / family, recipe, to=home / f"{family}-{recipe}.gguf")
    return sorted(path for path in home.iterdir() if path.is_dir() or path.suffix == ".gguf")


def write_directory(folder: Path, config: dict[str, Any], shards: int) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    tensors = [(name, t.read()) for name, t in random_hf_tensors(config_from_hf(config, "seed")).items()]
    names = (
        ["model.safetensors"]
        if shards == 1
        else [f"model-0000{i + 1}-of-0000{shards}.safetensors" for i in range(shards)]
    )
    for index, name in enumerate(names):
        safetensors.write(folder / name, dict(tensors[index::shards]))
    if shards > 1:
        where = {name: names[index % shards] for index, (name, _) in enumerate(tensors)}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    tokenizer = json.loads((sample.path() / "tokenizer.json").read_text("utf-8"))
    characters = ["<s>", "</s>", *(chr(33 + i) for i in range(config["vocab_size"] - 2))]
    tokenizer["model"] |= {"vocab": {c: i for i, c in enumerate(characters)}, "merges": []}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer | {"added_tokens": tokenizer["added_tokens"][:2]}))
    for name in ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json"):
        shutil.copy(sample.path() / name, folder / name)


def damage(rng: random.Random, source: Path, target: Path) -> None:
    """A copy of the model with one or two files damaged, or gone."""
    if source.is_dir():
        shutil.copytree(source, target)
        files = sorted(target.iterdir())
    else:
        shutil.copy(source, target)
        shutil.copy(f"{source}.edgekit.json", f"{target}.edgekit.json")
        files = [target, target, target, Path(f"{target}.edgekit.json")]
    for file in rng.sample(files, rng.choice([1, 1, 1, 2])):
        if rng.random() < 0.02:
            file.unlink(missing_ok=True)
        elif file.exists():
            file.write_bytes(damaged_model(rng, file.name, file.read_bytes()))


def damaged_model(rng: random.Random, name: str, data: bytes) -> bytes:
    """As `damaged`, mostly near the beginning; in safetensors often a weight that no model should hold."""
    stop = 8 + int.from_bytes(data[:8], "little")
    if name.endswith(".safetensors") and stop < len(data) and rng.random() < 0.3:
        at = stop + 4 * rng.randrange((len(data) - stop) // 4 or 1)
        return data[:at] + rng.choice(BAD_WEIGHTS) + data[at + 4 :]
    return damaged(rng, name, data, reaches=(64, 512, 4096, 1 << 20))


def exercise(rng: random.Random, path: Path, out: Path, seen: Counter[str]) -> None:
    """Open, describe, cut text, compute, quantize to both formats, convert, compare."""

    def attempt(function: Callable[[], Any]) -> Any:
        try:
            return function()
        except EdgekitError as error:
            seen[type(error).__name__] += 1
            assert 0 < len(str(error)) < LONGEST_MESSAGE, f"a message of {len(str(error))} characters"
            return None

    artifact = attempt(lambda: edgekit.open(path))
    if artifact is None:
        return
    attempt(lambda: describe(artifact))
    tokenizer = attempt(lambda: artifact.tokenizer)
    if tokenizer is not None:
        attempt(lambda: tokenizer.decode(tokenizer.encode("!#$ 0ab")))
    attempt(lambda: edgekit.evaluate(artifact, np.arange(24) % 40))
    recipe, precision = rng.choice(["Q8_0", "F32", "Q4_0"]), rng.choice(["affine:int4-sym-g32", "mlx:int4-g32", "F16"])
    for target, name in ((out / "model.gguf", recipe), (out / "model", precision)):
        written = attempt(lambda name=name, target=target: edgekit.quantize(artifact, name, to=target))
        assert written is not None or not target.exists(), "something half-written"
        assert not list(out.glob(".*")), "something left behind"
        if written is not None:
            attempt(lambda written=written: edgekit.compare(artifact, written))
    attempt(lambda: edgekit.convert(artifact, out / "converted.gguf"))


@contextmanager
def limits() -> Iterator[None]:
    """A gigabyte more than now, and half a minute; where the system has such limits."""
    if not hasattr(signal, "setitimer"):
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), before[1]))
    handler = signal.signal(signal.SIGALRM, _too_long)
    signal.setitimer(signal.ITIMER_REAL, SECONDS_FOR_ONE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


class TooLongError(BaseException):
    """One model took more than `SECONDS_FOR_ONE`."""


def _too_long(*_: object) -> None:
    raise TooLongError


def fuzz(home: Path, seed: int, going_on: Callable[[int], bool]) -> tuple[int, Counter[str], list[str]]:
    """How many models were tried, which errors they gave, and a traceback for each that gave anything else."""
    (home / "seeds").mkdir()
    models, seen, wrong = seeds(home / "seeds"), Counter[str](), []
    count = 0
    while going_on(count):
        rng = random.Random(f"{seed}:{count}")
        folder, source = home / f"{seed}-{count}", rng.choice(models)
        (folder / "out").mkdir(parents=True)
        target = folder / source.name
        damage(rng, source, target)
        try:
            with warnings.catch_warnings(), limits():
                warnings.simplefilter("error")
                exercise(rng, target, folder / "out", seen)
            shutil.rmtree(folder)
        except (Exception, TooLongError):
            wrong.append(f"{folder}:\n{traceback.format_exc(limit=-6)}")
        count += 1
    return count, seen, wrong


def main() -> int:
    """Print what was found; gives 1 where anything but a result or an EdgekitError came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--seconds", type=float, default=120)
    options = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="edgekit-fuzz-"))
    end = time.monotonic() + options.seconds
    count, seen, wrong = fuzz(home, options.seed, lambda _: time.monotonic() < end)
    print(f"{count} damaged models, seed {options.seed}; {sum(seen.values())} refusals:")
    print("\n".join(f"{number:8} {name}" for name, number in seen.most_common()))
    print(f"{len(wrong)} gave something else" + "".join(f"\n\n{each}" for each in wrong))
    if not wrong:
        shutil.rmtree(home)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
