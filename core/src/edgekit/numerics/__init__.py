"""Arithmetic that the number formats share: small floats, packed bits, blocks of a row, rounding."""

__all__: list[str] = []
