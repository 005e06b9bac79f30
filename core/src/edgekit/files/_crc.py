"""CRC-32 of a whole from those of its pieces, without reading them again.

A CRC is a remainder of polynomials over two elements: to append n bytes multiplies it by x^(8n) and adds the CRC of
those bytes. This is zlib's ``crc32_combine``, which Python's module does not have.
"""

from __future__ import annotations

from functools import lru_cache

#: zlib's polynomial; bit 31 is the coefficient of x^0.
_POLYNOMIAL, _ONE = 0xEDB88320, 1 << 31


def combined(before: int, after: int, nbytes: int) -> int:
    """Return the CRC-32 of bytes from that of the first of them, and that of the last `nbytes` alone.

    Example:
        >>> import zlib
        >>> combined(zlib.crc32(b"edge"), zlib.crc32(b"kit"), 3) == zlib.crc32(b"edgekit")
        True
    """
    return _product(_shift(nbytes), before) ^ after


@lru_cache(maxsize=4096)
def _shift(nbytes: int) -> int:
    """Return x^(8 * nbytes) modulo the polynomial."""
    power, factor = _ONE, _ONE >> 8
    while nbytes:
        if nbytes & 1:
            power = _product(factor, power)
        factor, nbytes = _product(factor, factor), nbytes >> 1
    return power


def _product(a: int, b: int) -> int:
    """Return the product of two polynomials modulo the polynomial."""
    product = 0
    while a:
        if a & _ONE:
            product ^= b
        a = a << 1 & 0xFFFFFFFF
        b = (b >> 1) ^ _POLYNOMIAL if b & 1 else b >> 1
    return product


__all__ = ["combined"]
