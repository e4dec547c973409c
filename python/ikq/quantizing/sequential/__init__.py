"""Quantizing layer by layer: every layer is made for what the layers before it, quantized, give it.

layer_runner.py   one layer of a model, from hidden states to hidden states
states.py         the hidden states of a text before a layer, in memory or in a file
done.py           which layers are done, for runs that go on
layers.py         covariances of a layer, its file, the states behind it, and so on to the last
"""

from ikq.quantizing.sequential.layers import (
    ROUNDS_OF_EFFORT,
    SequentialLayers,
    layers_folder,
    quantize_layers,
    quantize_sequentially,
)

__all__ = [
    "ROUNDS_OF_EFFORT",
    "SequentialLayers",
    "layers_folder",
    "quantize_layers",
    "quantize_sequentially",
]
