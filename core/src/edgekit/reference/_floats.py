"""Small floats, where the references look for them."""

from edgekit.smallfloats import *  # noqa: F403
from edgekit.smallfloats import E2M1, E4M3  # noqa: F401
