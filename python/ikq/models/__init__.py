"""Architectures: one file each turns GGUF metadata into a `ModelSpec`."""
