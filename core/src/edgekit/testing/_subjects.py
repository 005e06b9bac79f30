"""The subjects of the quantizer checks: an encoder object, a registered encoder, or the core's reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import numpy as np

from edgekit.encoding._codecs import choose
from edgekit.errors import EdgekitError, UsageError
from edgekit.plugin._registry import Registration
from edgekit.precision import Precision, find_precision
from edgekit.reference import Parts, Traits, reference
from edgekit.typing import F32, F64, Array

EXACT = "exact"


@attrs.frozen(eq=False)
class QuantizerSubject:
    """A quantizer with its claim.

    Attributes:
        quantizer: has ``encode(x, importance=None)``, and may have ``decode(parts, shape)``, ``bound(x, parts)``,
            ``encode_checked(x, importance=None)``; its `Traits.needs_importance` must be true if it refuses rows
            without an importance.
        precision: the precision that it encodes.
        claim: ``"exact"``, or a sentence that states its bound.
        name: its name in messages.
        speed: the claimed speed; the reference has 1.
    """

    quantizer: Any
    precision: Precision
    claim: str
    name: str
    speed: float = 1

    @property
    def label(self) -> str:
        """The name and the precision, for messages."""
        return f"quantizer {self.name!r} ({self.precision.name})"

    @property
    def exact(self) -> bool:
        """Whether it claims the reference's bytes."""
        return self.claim == EXACT

    def encode(self, x: Array, importance: F32 | None = None) -> Parts:
        """Return the quantizer's encoding of rows; if it needs an importance and none is given, it gets ones."""
        return dict(self.quantizer.encode(x, self.importance(x, importance)))

    def importance(self, x: Array, given: F32 | None) -> F32 | None:
        """Return the given importance, or ones if it is None and the quantizer needs one."""
        if given is None and self.quantizer.traits.needs_importance:
            return np.ones(x.shape[1], np.float32)
        return given

    def decode(self, parts: Mapping[str, Array], shape: tuple[int, int]) -> F32:
        """Return the values decoded by the quantizer if it has `decode`, else by the reference."""
        decoder = getattr(self.quantizer, "decode", None)
        if decoder is not None:
            values: F32 = decoder(parts, shape)
            return values
        return reference(self.precision).decode(parts, self.precision, shape)

    def bound(self, x: F32, parts: Mapping[str, Array]) -> F64:
        """Return the error bound of each element: from the quantizer's `bound` if it has one, else the reference's."""
        stated = getattr(self.quantizer, "bound", None)
        if stated is not None and not self.exact:
            return np.asarray(stated(x, parts), np.float64)
        return reference(self.precision).bound(x, parts, self.precision)

    def expected(self, x: Array, importance: F32 | None = None) -> Parts:
        """Return the reference's encoding of rows."""
        return reference(self.precision).encode(x, self.precision, self.importance(x, importance))


@attrs.frozen(eq=False)
class ReferenceQuantizer:
    """The core's reference of a precision with the interface of a plugin's quantizer."""

    precision: Precision
    claim: str = EXACT

    @property
    def traits(self) -> Traits:
        """Some references refuse rows without an importance."""
        return Traits(needs_importance=reference(self.precision).traits.needs_importance)

    def encode(self, x: Array, importance: F32 | None = None) -> Parts:
        """Encode rows [rows, cols] to parts."""
        find_precision(self.precision.name)  # in a new process the plugins' precisions are not registered yet
        return reference(self.precision).encode(x, self.precision, importance)

    def decode(self, parts: Mapping[str, Array], shape: tuple[int, int]) -> F32:
        """Decode parts to float32 [rows, cols]."""
        return reference(self.precision).decode(parts, self.precision, shape)


def adapt(quantizer: Any, precision: str | Precision | None = None, claim: str | None = None) -> QuantizerSubject:
    """Return the subject for a quantizer object, its class, or the name of a precision (for the reference).

    Raises:
        UsageError: `encode`, `precision` or `claim` is missing; the message says which.
    """
    if isinstance(quantizer, str | Precision):
        record = find_precision(quantizer)
        return QuantizerSubject(ReferenceQuantizer(record), record, EXACT, "reference")
    if isinstance(quantizer, Registration):
        return registered(quantizer)
    if isinstance(quantizer, QuantizerSubject):
        return quantizer
    made = quantizer() if isinstance(quantizer, type) else quantizer
    name = type(made).__name__
    if not callable(getattr(made, "encode", None)):
        raise UsageError(f"{name} has no method encode(x, importance=None); a quantizer encodes rows to parts")
    stated = precision or getattr(made, "precision", None)
    if not isinstance(stated, str | Precision):
        raise UsageError(f"{name} does not say which precision it encodes; give it an attribute `precision`")
    claimed = claim or getattr(made, "claim", None)
    if not isinstance(claimed, str) or not claimed.strip():
        raise UsageError(f'{name} claims nothing; give it an attribute `claim`: "exact", or a sentence with its bound')
    if not isinstance(getattr(made, "traits", None), Traits):
        raise UsageError(f"{name} does not state its traits; give it an attribute `traits`: edgekit.reference.Traits()")
    return QuantizerSubject(made, find_precision(stated), claimed, name, getattr(made, "speed", 1))


def registered(registration: Registration) -> QuantizerSubject:
    """Return the subject for a plugin's registration, with the claim of the registration."""
    loaded = registration.load()
    claim = str(registration.options.get("claim", "")) or None
    subject = adapt(loaded, getattr(loaded, "precision", None) or registration.name, claim)
    return attrs.evolve(subject, name=registration.plugin, speed=registration.options.get("speed", 1))


def backend_subject(name: str, backend: str | None) -> QuantizerSubject:
    """Return the encoder that `edgekit.encode` uses for a precision: the reference's or a plugin's."""
    precision = find_precision(name)
    chosen = choose(precision, backend)
    return adapt(precision) if chosen is None else registered(chosen)


def encodable(precision: Precision) -> bool:
    """Return whether the reference of a precision can encode; some only decode."""
    ones = np.ones((1, precision.block or 32), np.float32)
    try:
        reference(precision).encode(ones, precision, ones[0])
    except (EdgekitError, NotImplementedError):
        return False
    return True
