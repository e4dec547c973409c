"""Quantizing whole models.

pipeline.py    plan and run: `plan_quantization`, `quantize_file`
options.py     their keywords: `QuantizeOptions`
coverage.py    which tensors of a plan the imatrix has data for: `ImatrixCoverage`
sequential/    layer by layer: `quantize_sequentially`
report/        what was done to every tensor: table, JSON, page
"""
