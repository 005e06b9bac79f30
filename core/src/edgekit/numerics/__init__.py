"""What the number formats are made of: small floats, packed bits, blocks of a row, and ways to round."""

__all__: list[str] = []
