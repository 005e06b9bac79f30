"""ggml's block formats: one block type a module, dispatched by kind.

Every type has the single part ``blocks``, uint8 [rows, bytes per row], exactly as a GGUF file stores it.
"""
