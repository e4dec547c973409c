"""Quantizing layer by layer: every layer is quantized for the output of the quantized layers before it.

layer_runner.py   one layer of a model, from hidden states to hidden states
last_product.py   the matrices whose products end a layer, for which the error of the states is known
in_order.py       covariances of inputs whose matrices are final, and those of the others
states.py         the hidden states of a text before a layer, in memory or in a file
done.py           which layers are done, for runs that go on
layers.py         for each layer: its covariances, its file, and the states behind it
"""

from ikq.quantizing.sequential.layers import (
    ROUNDS_OF_EFFORT,
    SequentialLayers,
    SequentialOptions,
    layers_folder,
    quantize_layers,
    quantize_sequentially,
)

__all__ = [
    "ROUNDS_OF_EFFORT",
    "SequentialLayers",
    "SequentialOptions",
    "layers_folder",
    "quantize_layers",
    "quantize_sequentially",
]
