"""File access: `atomic` writing, `digests`, strict reading (`foreign`, `reader`), limits of `memory`."""

__all__: list[str] = []
