"""Measures speed; `ikq.evaluate` measures quality.

measure.py      the speed of models: `bench`, `sweep`
type_speeds.py  the speed of products with tensor types, stored for recipes
kernels.py      which kernels multiply with a type here, and a check of each
"""
