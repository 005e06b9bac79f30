"""Sizes in bytes as people write them: ``3.5GB``, ``900MB``, ``3.3GiB``."""

from __future__ import annotations

import re

from edgekit.errors import UsageError

_UNITS = {"": 1, "b": 1} | {
    f"{letter}{suffix}": base**power
    for power, letter in enumerate("kmgt", 1)
    for suffix, base in (("b", 1000), ("", 1000), ("ib", 1024))
}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")


def parse_size(text: str | int) -> int:
    """Return the number of bytes of ``3.5GB`` (powers of ten) or ``3.3GiB`` (powers of two); a plain number is bytes.

    Raises:
        UsageError: the text is not a size.

    Example:
        >>> parse_size("3.5GB"), parse_size("1 MiB"), parse_size(4096)
        (3500000000, 1048576, 4096)
    """
    match = _SIZE.fullmatch(str(text))
    if match is None or match[2].lower() not in _UNITS:
        raise UsageError(f"size {text!r:.40}; write a number and a unit, such as 3.5GB, 900MB or 3.3GiB")
    return int(float(match[1]) * _UNITS[match[2].lower()])


__all__ = ["parse_size"]
