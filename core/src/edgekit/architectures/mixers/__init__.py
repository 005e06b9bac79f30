"""The halves of blocks: token mixers and channel mixers, each a record and its forward pass over `Ops`."""

from __future__ import annotations

from edgekit.architectures.mixers._attention import Attention, Temper
from edgekit.architectures.mixers._beside import ExpertsBeside
from edgekit.architectures.mixers._convolution import ShortConvolution
from edgekit.architectures.mixers._delta import DeltaNet
from edgekit.architectures.mixers._dense import Gated, Plain
from edgekit.architectures.mixers._experts import Experts
from edgekit.architectures.mixers._mamba import Mamba2
from edgekit.architectures.mixers._mixer import Mixer, Shape, matrix

__all__ = [
    "Attention",
    "DeltaNet",
    "Experts",
    "ExpertsBeside",
    "Gated",
    "Mamba2",
    "Mixer",
    "Plain",
    "Shape",
    "ShortConvolution",
    "Temper",
    "matrix",
]
