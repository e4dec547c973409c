"""Reads checkpoints of `transformers`, folders of safetensors files, as models like those of GGUF files.

safetensors.py  files and shards, mapped and checked
config.py       config.json
rows.py         matrices that are read row by row
packed.py       quantized forms: 8-bit floats, FP4, packed integers
weights.py      weights by name, whatever their form
target.py       the GGUF file to be, which an architecture fills
parts.py        what architectures have in common; each architecture's own part is in `ikq.models`
tokenizer.py    tokens, merges, special tokens, chat template
sentencepiece.py  `tokenizer.model`
opening.py      puts all of it together: `Checkpoint`
"""
