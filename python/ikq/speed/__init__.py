"""Measuring speed; quality is measured in `ikq.evaluate`.

measure.py      of models: `bench`, `sweep`
type_speeds.py  of products with tensor types, kept for recipes
kernels.py      which kernels multiply with a type here, and a check of each
"""
