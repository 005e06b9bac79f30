"""Checks for a runtime's operations, each compared with numpy's.

A subject computes a small program, which is a function of `edgekit.architectures.ops.Ops` and some values, in one step
or in two, so that operations with a state (caches, recurrences) must continue it. Numpy computes the same program.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np

from edgekit.architectures._weights import Weights
from edgekit.architectures.numpy_ops import NumpyOps
from edgekit.architectures.ops import OPERATIONS, Activation, Attend, Ffn, Gate, Ops, Pooling, Routing
from edgekit.architectures.rope import Rope
from edgekit.architectures.state import KVCache
from edgekit.tensor import Tensor
from edgekit.testing._kit import Kit, NotApplicable, Profile, Result, fail
from edgekit.typing import F32, Ints

#: A program: computes one value of the runtime from operations and several values.
Program = Callable[[Ops[Any], Sequence[Any]], Any]
#: The new token ids [batch, n] of a step, and the program's input values.
Step = tuple[Ints, list[F32]]
#: Computes a program step by step with weights by full name, and returns the result of each step.
Compute = Callable[[Program, Mapping[str, F32], Sequence[Step]], list[F32]]

#: Tolerance relative to the largest value: float32 sums of up to 64 terms in another order, other exponentials.
TOLERANCE = 2e-5
_BATCH, _VOCAB = 2, 11
#: Number of tokens in each step.
_STEPS = (5, 1, 3)


@attrs.frozen(eq=False)
class OpsSubject:
    """A runtime's operations.

    Attributes:
        name: the runtime's name.
        operations: names of the operations that it implements.
        compute: computes a program with them.
    """

    name: str
    operations: Collection[str]
    compute: Compute


@attrs.frozen(eq=False)
class _Case:
    """One use of an operation.

    Attributes:
        what: its description in messages.
        program: the program that uses it.
        inputs: returns the shapes of the program's inputs for a number of tokens.
        weights: shapes of the weights, by full name.
    """

    what: str
    program: Program
    inputs: Callable[[int], list[tuple[int, ...]]]
    weights: dict[str, tuple[int, ...]] = attrs.field(factory=dict)


KIT: Kit[OpsSubject] = Kit("operations")


def numpy_compute(program: Program, weights: Mapping[str, F32], steps: Sequence[Step]) -> list[F32]:
    """Return the result of each step computed by numpy, which the subject's results are compared with."""
    tensors = {name: Tensor.of(name, values) for name, values in weights.items()}
    kept, past, results = Weights(tensors, True, None, False, {}), KVCache(), []
    for tokens, inputs in steps:
        results.append(program(NumpyOps(kept, past, tokens), inputs))
        past.tokens = tokens if past.tokens is None else np.concatenate([past.tokens, tokens], axis=1)
    return results


def run_ops_checks(
    subject: OpsSubject,
    *,
    expected_failures: Mapping[str, str] | None = None,
    checks: Iterable[str] | None = None,
    profile: str | Profile | None = None,
) -> list[Result]:
    """Run every check, without pytest; arguments as `run_quantizer_checks`."""
    return KIT.run(subject, subject.name, expected_failures=expected_failures, checks=checks, profile=profile)


def ops_checks(
    subject: OpsSubject,
    *,
    expected_failures: Mapping[str, str] | None = None,
    checks: Iterable[str] | None = None,
    profile: str | Profile | None = None,
) -> Callable[[Callable[..., Any]], Any]:
    """Return a pytest decorator that calls the test once per check, passed as the argument ``check``."""
    return KIT.parametrize(subject, subject.name, expected_failures=expected_failures, checks=checks, profile=profile)


def _hold(subject: OpsSubject, operation: str, cases: Sequence[_Case]) -> None:
    if operation not in subject.operations:
        raise NotApplicable(f"it has no operation {operation}")
    for seed, case in enumerate(cases):
        weights, steps = _drawn(case, seed)
        expected = numpy_compute(case.program, weights, steps)
        results = subject.compute(case.program, weights, steps)
        for number, (ours, theirs) in enumerate(zip(expected, results, strict=True)):
            _same(f"{operation}, {case.what}, step {number + 1}", ours, theirs)


def _same(where: str, expected: F32, found: F32) -> None:
    if expected.shape != found.shape:
        fail(f"{where}: the result has shape {list(found.shape)}, numpy's has {list(expected.shape)}")
    off = float(np.abs(found - expected).max()) / max(float(np.abs(expected).max()), 1e-30)
    if not off <= TOLERANCE:
        fail(f"{where}: it is {off:.1e} of the largest value away from numpy's; {TOLERANCE:g} are allowed")


def _drawn(case: _Case, seed: int) -> tuple[dict[str, F32], list[Step]]:
    random = np.random.RandomState(seed)

    def values(shape: tuple[int, ...]) -> F32:
        return random.standard_normal(shape).astype(np.float32)

    weights = {name: values(shape) for name, shape in case.weights.items()}
    weights |= {name: -np.exp(value) for name, value in weights.items() if name.endswith("decay")}
    steps: list[Step] = []
    for n in _STEPS:
        tokens = random.randint(0, _VOCAB, (_BATCH, n))
        steps.append((tokens, [values(shape) for shape in case.inputs(n)]))
    return weights, steps


def _states(width: int = 12, count: int = 1) -> Callable[[int], list[tuple[int, ...]]]:
    return lambda n: [(_BATCH, n, width)] * count


def _heads(*counts: int, size: int = 8) -> Callable[[int], list[tuple[int, ...]]]:
    return lambda n: [(_BATCH, count, n, size) for count in counts]


def _attending(how: Attend, sinks: bool = False) -> Program:
    def program(ops: Ops[Any], values: Sequence[Any]) -> Any:
        keys, values_ = ops.remember(0, values[1], values[2])
        return ops.attend(values[0], keys, values_, how, "sinks" if sinks else None)

    return program


def _experts(gate: Any, fused: bool, bias: bool, weighted_input: bool = False) -> _Case:
    ffn = Ffn(gate, "relu2", fused, weighted_input)
    rows = {"gate_up": 20} if fused else {"gate": 10, "up": 10} if gate else {"up": 10}
    shapes: dict[str, tuple[int, ...]] = {f"b.ffn_{name}_exps": (4, height, 12) for name, height in rows.items()}
    shapes["b.ffn_down_exps"] = (4, 12, 10)
    weights: dict[str, tuple[int, ...]] = {f"{name}.weight": shape for name, shape in shapes.items()}
    weights |= {f"{name}.bias": shape[:2] for name, shape in shapes.items()} if bias else {}

    def program(ops: Ops[Any], values: Sequence[Any]) -> Any:
        return ops.experts("b.", values[0], ops.route(values[1], Routing(2)), ffn)

    what = f"gate {gate}, {'fused' if fused else 'apart'}{', biases' if bias else ''}"
    return _Case(what, program, lambda n: [(_BATCH, n, 12), (_BATCH, n, 4)], weights)


def _routing(how: Routing, bias: bool = False) -> _Case:
    return _Case(
        f"{how}",
        lambda ops, values: ops.route(values[0], how, "bias" if bias else None),
        _states(8),
        {"bias": (8,)} if bias else {},
    )


def _activating(kind: Activation) -> _Case:
    return _Case(kind, lambda ops, v: ops.activate(kind, v[0]), _states())


def _gating(kind: Gate) -> _Case:
    return _Case(kind, lambda ops, v: ops.gated(kind, v[0], ops.scale(v[1], 5.0)), _states(count=2))


def _pooling(how: Pooling) -> _Case:
    return _Case(how, lambda ops, v: ops.pool(v[0], how), _states())


def _delta_rule(what: str, tiled: bool) -> _Case:
    def program(ops: Ops[Any], v: Sequence[Any]) -> Any:
        queries, keys = ops.unit(v[0], 1e-6), ops.unit(v[1], 1e-6)
        decay, beta = ops.scale(ops.activate("softplus", v[3]), -1.0), ops.activate("sigmoid", v[4])
        return ops.delta_rule(0, queries, keys, v[2], decay, beta, tiled)

    return _Case(what, program, lambda n: [*_heads(2, 2)(n), *_heads(4, size=6)(n), (_BATCH, n, 4), (_BATCH, n, 4)])


_ACTIVATIONS: tuple[Activation, ...] = ("silu", "gelu_tanh", "gelu", "relu2", "sigmoid", "softplus", "tanh")
_GATES: tuple[Gate, ...] = ("silu", "gelu_tanh", "gelu", "clipped")
_CASES: dict[str, list[_Case]] = {
    "embed": [_Case("a matrix", lambda ops, v: ops.embed("m"), _states(count=0), {"m.weight": (_VOCAB, 6)})],
    "embed_positions": [
        _Case("a matrix", lambda ops, v: ops.embed_positions("m"), _states(count=0), {"m.weight": (16, 6)})
    ],
    "product": [
        _Case("no bias", lambda ops, v: ops.product("m", v[0]), _states(), {"m.weight": (7, 12)}),
        _Case("a bias", lambda ops, v: ops.product("m", v[0]), _states(), {"m.weight": (7, 12), "m.bias": (7,)}),
        _Case("one row", lambda ops, v: ops.product("m", v[0]), _states(), {"m.weight": (12,)}),
    ],
    "row": [_Case("added to states", lambda ops, v: ops.add(v[0], ops.row("m", 1)), _states(), {"m.weight": (3, 12)})],
    "vector": [_Case("times states", lambda ops, v: ops.multiply(v[0], ops.vector("w")), _states(), {"w": (12,)})],
    "rms_norm": [
        _Case("states", lambda ops, v: ops.rms_norm(v[0], 1e-3, "w.weight"), _states(), {"w.weight": (12,)}),
        _Case("heads", lambda ops, v: ops.rms_norm(v[0], 1e-6, "w.weight"), _heads(3), {"w.weight": (8,)}),
        _Case("no weight", lambda ops, v: ops.rms_norm(v[0], 1e-6), _heads(3)),
    ],
    "group_norm": [
        _Case("three groups", lambda ops, v: ops.group_norm(v[0], 1e-5, "w"), _heads(3), {"w": (3, 8)}),
    ],
    "layer_norm": [
        _Case(
            "states", lambda ops, v: ops.layer_norm(v[0], 1e-5, "w"), _states(), {"w.weight": (12,), "w.bias": (12,)}
        )
    ],
    "unit": [_Case("heads", lambda ops, v: ops.unit(v[0], 1e-6), _heads(3))],
    "add": [_Case("two states", lambda ops, v: ops.add(v[0], v[1]), _states(count=2))],
    "multiply": [_Case("two states", lambda ops, v: ops.multiply(v[0], v[1]), _states(count=2))],
    "scale": [_Case("by 0.22", lambda ops, v: ops.scale(v[0], 0.22), _states())],
    "activate": [
        _activating(kind) for kind in _ACTIVATIONS
    ],
    "gated": [
        _gating(kind) for kind in _GATES
    ],
    "softcap": [_Case("at 0.5", lambda ops, v: ops.softcap(v[0], 0.5), _states())],
    "split": [_Case("the second of three", lambda ops, v: ops.split(v[0], [3, 4, 5])[1], _states())],
    "heads": [_Case("four", lambda ops, v: ops.heads(v[0], 4), _states())],
    "joined": [_Case("three", lambda ops, v: ops.joined(v[0]), _heads(3))],
    "rotate": [
        _Case("whole heads", lambda ops, v: ops.rotate(v[0], Rope(100.0, 8)), _heads(3)),
        _Case("a part", lambda ops, v: ops.rotate(v[0], Rope(100.0, 6)), _heads(3)),
        _Case("neighbours", lambda ops, v: ops.rotate(v[0], Rope(100.0, 8, None, True)), _heads(3)),
    ],
    "temper": [_Case("every 2", lambda ops, v: ops.temper(v[0], 0.1, 2, 1), _heads(3))],
    "remember": [
        _Case("keys", lambda ops, v: ops.remember(0, v[0], v[1])[0], _heads(2, 2)),
        _Case("values", lambda ops, v: ops.remember(3, v[0], v[1])[1], _heads(2, 2)),
    ],
    "remembered": [
        _Case("keys", lambda ops, v: (ops.remember(0, v[0], v[1]), ops.remembered(0))[1][0], _heads(2, 2)),
    ],
    "attend": [
        _Case("grouped", _attending(Attend(0.3)), _heads(4, 2, 2)),
        _Case("each its own", _attending(Attend(0.5)), _heads(3, 3, 3)),
        _Case("a window", _attending(Attend(0.3, window=3)), _heads(4, 2, 2)),
        _Case("a soft cap", _attending(Attend(0.3, softcap=1.5)), _heads(4, 2, 2)),
        _Case("chunks", _attending(Attend(0.3, chunk=4)), _heads(4, 1, 1)),
        _Case("sinks", _attending(Attend(0.3, window=4), sinks=True), _heads(4, 2, 2), {"sinks": (4,)}),
    ],
    "convolve": [
        _Case("no bias", lambda ops, v: ops.convolve(0, "c", v[0]), _states(), {"c.weight": (12, 4)}),
        _Case("a bias", lambda ops, v: ops.convolve(1, "c", v[0]), _states(), {"c.weight": (12, 3), "c.bias": (12,)}),
    ],
    "delta_rule": [
        _delta_rule("tiled", True), _delta_rule("grouped", False),
    ],
    "scan": [
        _Case(
            "two groups",
            lambda ops, v: ops.scan(0, v[0], ops.activate("softplus", v[1]), "decay", "skip", v[2], v[3]),
            lambda n: [*_heads(4, size=6)(n), (_BATCH, n, 4), *_heads(2, 2)(n)],
            {"decay": (4, 1), "skip": (4, 1)},
        )
    ],
    "route": [
        _routing(Routing(2)),
        _routing(Routing(3, normalized=False)),
        _routing(Routing(2, "sigmoid", scale=2.5, floor=1e-20), bias=True),
        _routing(Routing(2, "chosen")),
        _routing(Routing(2, "sigmoid", normalized=False, groups=4, groups_used=2)),
    ],
    "route_sparsely": [
        _Case("near scores", lambda ops, v: ops.route_sparsely(v[0], 0.01), _states(8)),
        _Case("far scores", lambda ops, v: ops.route_sparsely(v[0], 0.4), _states(8)),
    ],
    "experts": [
        _experts("silu", False, False),
        _experts("clipped", False, True),
        _experts("gelu_tanh", True, False),
        _experts("silu", False, False, weighted_input=True),
        _experts(None, False, False),
    ],
    "pool": [
        _pooling("mean"), _pooling("first"), _pooling("last"),
    ],
}  # fmt: skip


def _add_check(operation: str) -> None:
    def check(subject: OpsSubject, profile: Profile) -> None:
        _hold(subject, operation, _CASES[operation])

    check.__name__ = f"check_{operation}"
    uses = ", ".join(case.what for case in _CASES[operation])
    check.__doc__ = f"`Ops.{operation}` gives what numpy's gives, step after step: {uses}."
    KIT.check(check)


for _operation in OPERATIONS:
    _add_check(_operation)


__all__ = [
    "KIT",
    "TOLERANCE",
    "Compute",
    "OpsSubject",
    "Program",
    "Step",
    "numpy_compute",
    "ops_checks",
    "run_ops_checks",
]
