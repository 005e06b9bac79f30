"""Wrong passes: magnitude pruning, each with one thing wrong. `PASSES` says which check is right."""

import itertools

import attrs
import numpy as np

from edgekit.formats.hf import HuggingFaceFormat
from edgekit.manifest import Manifest
from edgekit.recipe import Plan
from edgekit.testing._trips import encoded, plan_of

RANDOM = itertools.count()


@attrs.define
class Prune:
    """Sets the smallest half of every matrix to zero."""

    name = "prune"
    format = HuggingFaceFormat()

    def run(self, source, to, **options):
        layout = self.format.layout(source)
        plan: Plan = plan_of(layout)
        writer = self.format.writer(to, layout, plan, Manifest(quality=self.quality()))
        try:
            for slot, assignment in zip(layout.slots, plan, strict=True):
                tensor = encoded(slot, assignment)
                writer.write(attrs.evolve(tensor, parts={k: self.pruned(v) for k, v in tensor.parts.items()}))
            writer.commit()
        finally:
            writer.close()
        return self.format.open(to)

    def quality(self):
        return {"sparsity": 0.5}

    def pruned(self, values):
        return np.where(np.abs(values) < np.median(np.abs(values)), np.float32(0), values).astype(values.dtype)


class WithNaN(Prune):
    def pruned(self, values):
        with np.errstate(all="ignore"):
            return values / np.where(np.abs(values) < 0.01, np.float32(0), np.float32(1))


class Silent(Prune):
    def quality(self):
        return {}


class Worded(Prune):
    def quality(self):
        return {"perplexity": "good"}


class WritesBack(Prune):
    def run(self, source, to, **options):
        file = (
            next(f for f in source.files if f.name == "config.json")
            if any(f.name == "config.json" for f in source.files)
            else source.files[0]
        )
        file.write_bytes(file.read_bytes() + b" ")
        return super().run(source, to, **options)


class ByChance(Prune):
    def pruned(self, values):
        return super().pruned(values) * np.float32(1 + 1e-3 * next(RANDOM))


class Untidy(Prune):
    def run(self, source, to, **options):
        to.with_name("scratch.bin").write_bytes(b"scratch")
        return super().run(source, to, **options)


PASSES = {
    "infinite weights": (WithNaN, "check_artifact_valid"),
    "nothing reported": (Silent, "check_quality_reported"),
    "quality in words": (Worded, "check_quality_reported"),
    "writes to its source": (WritesBack, "check_source_unwritten"),
    "another result each time": (ByChance, "check_deterministic"),
    "leaves its scratch file": (Untidy, "check_nothing_left"),
}
