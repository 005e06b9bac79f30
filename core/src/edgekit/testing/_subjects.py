"""Subjects of the quantizer checks: any encoder, a registered one, or the core's reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

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
    """A quantizer with what it claims.

    Attributes:
        quantizer: has ``encode(x, importance=None)``, and may have ``decode(parts, shape)``, ``bound(x, parts)``,
            ``encode_checked(x, importance=None)``; its `Traits.needs_importance` is true where it refuses rows
            without one.
        precision: the number format that it encodes.
        claim: ``"exact"``, or a sentence that states its bound.
        name: for messages.
        speed: what it claims, the reference having 1.
    """

    quantizer: Any
    precision: Precision
    claim: str
    name: str
    speed: float = 1

    @property
    def label(self) -> str:
        """Name and precision, for messages."""
        return f"quantizer {self.name!r} ({self.precision.name})"

    @property
    def exact(self) -> bool:
        """Whether its bytes have to be the reference's."""
        return self.claim == EXACT

    def encode(self, x: Array, importance: F32 | None = None) -> Parts:
        """The parts that the quantizer makes of rows; one that needs an importance is given ones."""
        return dict(self.quantizer.encode(x, self.importance(x, importance)))

    def importance(self, x: Array, given: F32 | None) -> F32 | None:
        """The importance that is given, or, where the quantizer needs one, ones."""
        if given is None and self.quantizer.traits.needs_importance:
            return np.ones(x.shape[1], np.float32)
        return given

    def decode(self, parts: Mapping[str, Array], shape: tuple[int, int]) -> F32:
        """Decoded by the quantizer where it can, else by the reference."""
        decoder = getattr(self.quantizer, "decode", None)
        if decoder is not None:
            values: F32 = decoder(parts, shape)
            return values
        return reference(self.precision).decode(parts, self.precision, shape)

    def bound(self, x: F32, parts: Mapping[str, Array]) -> F64:
        """Its own bound where it states one as a method, else the reference's."""
        stated = getattr(self.quantizer, "bound", None)
        if stated is not None and not self.exact:
            return np.asarray(stated(x, parts), np.float64)
        return reference(self.precision).bound(x, parts, self.precision)

    def expected(self, x: Array, importance: F32 | None = None) -> Parts:
        """Return the parts that the reference encodes."""
        return reference(self.precision).encode(x, self.precision, self.importance(x, importance))


@attrs.frozen(eq=False)
class ReferenceQuantizer:
    """The core's own reference of a precision, in the shape of a plugin's quantizer."""

    precision: Precision
    claim: str = EXACT
    traits: ClassVar[Traits] = Traits()

    def encode(self, x: Array, importance: F32 | None = None) -> Parts:
        """Encode rows [rows, cols] to parts."""
        find_precision(self.precision.name)  # in another process a plugin's precision is not known yet
        return reference(self.precision).encode(x, self.precision, importance)

    def decode(self, parts: Mapping[str, Array], shape: tuple[int, int]) -> F32:
        """Decode parts to float32 [rows, cols]."""
        return reference(self.precision).decode(parts, self.precision, shape)


def adapt(quantizer: Any, precision: str | Precision | None = None, claim: str | None = None) -> QuantizerSubject:
    """A subject from an object with `encode`, `precision` and `claim`, a class of such, or a precision's name.

    Raises:
        UsageError: something is missing; says what.
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
    """The subject of a plugin's registration; the claim is the one that it was registered with."""
    loaded = registration.load()
    claim = str(registration.options.get("claim", "")) or None
    subject = adapt(loaded, getattr(loaded, "precision", None) or registration.name, claim)
    return attrs.evolve(subject, name=registration.plugin, speed=registration.options.get("speed", 1))


def backend_subject(name: str, backend: str | None) -> QuantizerSubject:
    """The encoder of a precision that `edgekit.encode` would use: the reference, or a plugin's."""
    precision = find_precision(name)
    chosen = choose(precision, backend)
    return adapt(precision) if chosen is None else registered(chosen)


def encodable(precision: Precision) -> bool:
    """Whether the reference of a precision encodes (some only decode)."""
    try:
        cols = precision.block or 32
        reference(precision).encode(np.ones((1, cols), np.float32), precision)
    except (EdgekitError, NotImplementedError):
        return False
    return True
