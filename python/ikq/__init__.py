"""ikq: quantize GGUF models with every tensor type of ggml, and run them.

Arrays: `dequantize`, `quantize`, `repack`, `pack`, `unpack`, `row_bytes`, `tensor_bytes`; types:
`QuantType`; tensors: `QTensor`; files: `GGUFReader`, `GGUFWriter`; whole models: `quantize_file`,
`plan_quantization`, `convert_checkpoint`, `convert_adapter`, `Imatrix`, `ActivationStatistics`; running:
`Model`, `LoraAdapter`, `Sequence`, `Tokenizer`, `ChatTemplate`, `SamplingOptions`; serving: `Server`,
with the extra `ikq[serve]`; exceptions: `ikq.errors`.
"""

from ikq import _starting

_starting.begin()  # before libraries that take long to load

# ruff: noqa: E402
from typing import TYPE_CHECKING

from ikq import _moved
from ikq._ikq import __version__
from ikq.arrays.coding import available_isas, dequantize, isa, quantize, repack, row_bytes, tensor_bytes
from ikq.arrays.fields import Field, block_fields, pack, unpack
from ikq.arrays.quant_types import QuantType
from ikq.arrays.tensor import QTensor
from ikq.checkpoint.adapter import convert_adapter
from ikq.checkpoint.converting import convert_checkpoint, plan_conversion
from ikq.errors import (
    DeviceError,
    DeviceMemoryError,
    FormatError,
    GrammarError,
    IkqError,
    MissingImatrixError,
    NotTernaryWarning,
    RefusedError,
    ShapeError,
    TemplateLimit,
    UnsupportedError,
    UsageError,
)
from ikq.files.gguf import GGUFReader, GGUFWriter, Metadata, Shard, Typed
from ikq.inference.lora import LoraAdapter
from ikq.inference.model import Model
from ikq.inference.sequence import Sequence
from ikq.quantizing.coverage import ImatrixCoverage, PartialExperts
from ikq.quantizing.options import QuantizeOptions, RunOptions
from ikq.quantizing.pipeline import (
    Ftype,
    PlannedTensor,
    QuantizePlan,
    QuantizeResult,
    TensorOutcome,
    ftypes,
    plan_quantization,
    quantize_file,
)
from ikq.quantizing.sequential import quantize_sequentially
from ikq.sampling import Sampler, SamplingOptions
from ikq.statistics.activations import (
    ActivationCollector,
    ActivationEntry,
    ActivationStatistics,
    LayerSimilarity,
)
from ikq.statistics.covariance import Covariances, InputCovariance
from ikq.statistics.imatrix import Imatrix, ImatrixEntry
from ikq.text.chat import ChatTemplate
from ikq.text.generate import Generation, Piece
from ikq.text.reasoning import ReasoningSplitter
from ikq.tokenizer import StreamDecoder, Tokenizer

if TYPE_CHECKING:
    from ikq.serve.server import Server

__all__ = [
    "ActivationCollector",
    "ActivationEntry",
    "ActivationStatistics",
    "ChatTemplate",
    "Covariances",
    "DeviceError",
    "DeviceMemoryError",
    "Field",
    "FormatError",
    "Ftype",
    "GGUFReader",
    "GGUFWriter",
    "Generation",
    "GrammarError",
    "IkqError",
    "Imatrix",
    "ImatrixCoverage",
    "ImatrixEntry",
    "InputCovariance",
    "LayerSimilarity",
    "LoraAdapter",
    "Metadata",
    "MissingImatrixError",
    "Model",
    "NotTernaryWarning",
    "PartialExperts",
    "Piece",
    "PlannedTensor",
    "QTensor",
    "QuantType",
    "QuantizeOptions",
    "QuantizePlan",
    "QuantizeResult",
    "ReasoningSplitter",
    "RefusedError",
    "RunOptions",
    "Sampler",
    "SamplingOptions",
    "Sequence",
    "Server",
    "ShapeError",
    "Shard",
    "StreamDecoder",
    "TemplateLimit",
    "TensorOutcome",
    "Tokenizer",
    "Typed",
    "UnsupportedError",
    "UsageError",
    "__version__",
    "available_isas",
    "block_fields",
    "convert_adapter",
    "convert_checkpoint",
    "dequantize",
    "ftypes",
    "isa",
    "pack",
    "plan_conversion",
    "plan_quantization",
    "quantize",
    "quantize_file",
    "quantize_sequentially",
    "repack",
    "row_bytes",
    "tensor_bytes",
    "unpack",
]

_moved.install()


def __getattr__(name: str) -> object:
    """Loads `Server` on first use, as most programs do without its libraries, and modules that were moved."""
    if name in _moved.MOVED:
        return _moved.moved_module(name)
    if name != "Server":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from ikq.serve.server import Server
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            f"ikq.Server needs the library {error.name}: pip install 'ikq[serve]'"
        ) from None
    return Server
