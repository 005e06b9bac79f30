"""Gates of robustness and of degenerate text find what a faulty runtime or artifact does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest

import edgekit
from edgekit import sample
from edgekit.architectures import Model
from edgekit.runtime.numpy import NumpyRuntime
from edgekit.tensor import Tensor
from edgekit_workflow.gates import GATES, Policy, gate
from edgekit_workflow.gates import robustness as gates
from edgekit_workflow.gates.policy import Robustness, Silent
from edgekit_workflow.gates.subject import Subject

POLICY = Policy(robustness=Robustness(tokens=3, requests=3), silent=Silent(tokens=24))
SOURCE = edgekit.open(sample.path())
SUBJECT = Subject(SOURCE, SOURCE, POLICY, {})


class Forgetful(NumpyRuntime):
    """Its answers depend on how often it was asked."""

    asked = 0

    def tokens(self, prompt: Any, **options: Any) -> Iterator[int]:
        Forgetful.asked += 1
        return super().tokens([*prompt, Forgetful.asked % 100], **options)


class Tangled(NumpyRuntime):
    """Texts that are written at the same time get tokens of each other's."""

    running = 0

    def tokens(self, prompt: Any, **options: Any) -> Iterator[int]:
        Tangled.running += 1
        try:
            for token in super().tokens(prompt, **options):
                time.sleep(0.02)
                yield token + (Tangled.running > 1)
        finally:
            Tangled.running -= 1


class Unsafe(NumpyRuntime):
    """It refuses a second text while one is written, with an error of its library."""

    busy = threading.Lock()

    def tokens(self, prompt: Any, **options: Any) -> Iterator[int]:
        if not Unsafe.busy.acquire(blocking=False):
            raise RuntimeError("the infer request is busy")
        try:
            for token in super().tokens(prompt, **options):
                time.sleep(0.02)
                yield token
        finally:
            Unsafe.busy.release()


class NotFinite(NumpyRuntime):
    """Its scores of long prompts are not finite."""

    def logits(self, tokens: Any) -> Any:
        logits = super().logits(tokens)
        return logits if len(tokens) < 100 else np.full_like(logits, np.nan)


class Cutting(NumpyRuntime):
    """It cuts prompts that are too long, silently."""

    def generate(self, prompt: Any, **options: Any) -> str:
        return super().generate(prompt if isinstance(prompt, str) else prompt[:8], **options)


class Crashing(NumpyRuntime):
    """It raises whatever its library does."""

    def generate(self, prompt: Any, **options: Any) -> str:
        if isinstance(prompt, str):
            prompt.encode("ascii")
        return super().generate(prompt, **options)


class Endless(NumpyRuntime):
    """No token ends a text."""

    def pieces(self, prompt: list[int], tokens: Iterator[int]) -> Iterator[str]:
        yield from (self.artifact.tokenizer.decode([token], skip_special=False) for token in tokens)


@pytest.mark.parametrize(
    ("runtime", "check", "finding"),
    [
        (Forgetful, gates.repeats, "in run 2 it answers"),
        (Forgetful, gates.load, "after 3 requests it answers"),
        (Tangled, gates.load, "among 3 requests at the same time it answers"),
        (Unsafe, gates.load, "of 3 requests at the same time raises RuntimeError: the infer request is busy"),
        (NotFinite, gates.long_prompts, "of a prompt of 256 tokens some scores are not finite"),
        (Cutting, gates.long_prompts, "513 tokens is answered, ContextOverflowError is expected"),
        (Crashing, gates.malformed_prompts, "'é' raises UnicodeEncodeError"),
        (Endless, gates.end_tokens, "does not end a text"),
    ],
)
def test_a_faulty_runtime_is_found(runtime: type[NumpyRuntime], check: Callable[..., Any], finding: str) -> None:
    Forgetful.asked = 0  # its first answers differ; later ones often agree
    with NumpyRuntime.open(SOURCE) as good:
        assert list(check(SUBJECT, good)) == []
    with runtime.open(SOURCE) as faulty:
        assert any(finding in line for line in check(SUBJECT, faulty))


def test_text_that_repeats_itself_is_found(tmp_path: Path) -> None:
    """A layer whose output drowns all others: the model says the same whatever came before."""
    tensors = dict(SOURCE.model.tensors)
    name = "output_norm.weight"
    tensors[name] = Tensor.of(name, tensors[name].float32().reshape(-1) * np.float32(30))
    for layer in range(SOURCE.model.config.layers):
        name = f"blk.{layer}.attn_output.weight"
        tensors[name] = Tensor.of(name, np.zeros(tensors[name].shape, np.float32))
    model = Model(SOURCE.model.config, tensors)
    broken = edgekit.quantize(attrs.evolve(SOURCE, load_model=lambda: model), "Q8_0", to=tmp_path / "broken.gguf")
    policy = attrs.evolve(POLICY, skip=tuple(name for name in GATES if name != "degenerate"))
    for artifact, passes in ((SOURCE, True), (broken, False)):
        (result,) = gate(artifact, SOURCE, policy=policy, runtime="numpy")
        assert (result.name, result.passed) == ("degenerate", passes), result.line
