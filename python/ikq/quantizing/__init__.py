"""Quantizing whole models.

pipeline.py    plan and run: `plan_quantization`, `quantize_file`
options.py     their keywords: `QuantizeOptions`
rule_places.py messages about rules, with the option or the line that they are from
coverage.py    which tensors of a plan the imatrix has data for: `ImatrixCoverage`
sequential/    layer by layer: `quantize_sequentially`
report/        what was done to every tensor: table, JSON, page
"""
