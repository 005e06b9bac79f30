"""Encoding and decoding: the codecs, the values that are refused, and the catalogue of precisions."""

from __future__ import annotations

from edgekit.encoding._codecs import REFERENCE as REFERENCE
from edgekit.encoding._codecs import CheckedEncoder as CheckedEncoder
from edgekit.encoding._codecs import Codec as Codec
from edgekit.encoding._codecs import Decoder as Decoder
from edgekit.encoding._codecs import Quantizer as Quantizer
from edgekit.encoding._codecs import choose as choose
from edgekit.encoding._codecs import codec as codec
from edgekit.encoding._codecs import decode as decode
from edgekit.encoding._codecs import encode as encode
from edgekit.encoding._codecs import refuse_shape as refuse_shape
from edgekit.precision import find_precision as find_precision

__all__ = [
    "REFERENCE",
    "CheckedEncoder",
    "Codec",
    "Decoder",
    "Quantizer",
    "choose",
    "codec",
    "decode",
    "encode",
    "find_precision",
    "refuse_shape",
]
