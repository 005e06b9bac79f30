"""The halves of blocks: token mixers and channel mixers, each a record and its forward pass over `Ops`."""

from __future__ import annotations

from edgekit.architectures.mixers._mixer import Mixer, Shape, matrix
from edgekit.architectures.mixers.attention import Attention, Temper
from edgekit.architectures.mixers.convolution import ShortConvolution
from edgekit.architectures.mixers.delta import DeltaNet
from edgekit.architectures.mixers.dense import Gated, Plain
from edgekit.architectures.mixers.experts import Experts
from edgekit.architectures.mixers.mamba import Mamba2

__all__ = [
    "Attention",
    "DeltaNet",
    "Experts",
    "Gated",
    "Mamba2",
    "Mixer",
    "Plain",
    "Shape",
    "ShortConvolution",
    "Temper",
    "matrix",
]
