"""ikq: quantize GGUF models with every tensor type of ggml, and run them.

Arrays: `dequantize`, `quantize`, `repack`, `pack`, `unpack`, `row_bytes`, `tensor_bytes`; types:
`QuantType`; tensors: `QTensor`; files: `GGUFReader`, `GGUFWriter`; whole models: `quantize_file`,
`plan_quantization`, `convert_checkpoint`, `Imatrix`, `ActivationStatistics`; running: `Model`, `Sequence`,
`Tokenizer`, `ChatTemplate`, `SamplingOptions`; serving: `Server`, with the extra `ikq[serve]`; exceptions:
`ikq.errors`.
"""

from typing import TYPE_CHECKING

from ikq._ikq import __version__
from ikq.activations import ActivationCollector, ActivationEntry, ActivationStatistics, LayerSimilarity
from ikq.arrays import available_isas, dequantize, isa, quantize, repack, row_bytes, tensor_bytes
from ikq.chat import ChatTemplate
from ikq.checkpoint.converting import convert_checkpoint, plan_conversion
from ikq.covariance import Covariances, InputCovariance
from ikq.coverage import ImatrixCoverage, PartialExperts
from ikq.errors import (
    DeviceError,
    FormatError,
    GrammarError,
    IkqError,
    MissingImatrixError,
    NotTernaryWarning,
    RefusedError,
    ShapeError,
    TemplateLimit,
    UnsupportedError,
)
from ikq.fields import Field, block_fields, pack, unpack
from ikq.generate import Generation, Piece
from ikq.gguf import GGUFReader, GGUFWriter, Metadata, Shard, Typed
from ikq.imatrix import Imatrix, ImatrixEntry
from ikq.model import Model
from ikq.pipeline import (
    Ftype,
    PlannedTensor,
    QuantizePlan,
    QuantizeResult,
    TensorOutcome,
    ftypes,
    plan_quantization,
    quantize_file,
)
from ikq.quant_types import QuantType
from ikq.quantize_options import QuantizeOptions
from ikq.reasoning import ReasoningSplitter
from ikq.sampling import Sampler, SamplingOptions
from ikq.sequence import Sequence
from ikq.sequential import quantize_sequentially
from ikq.tensor import QTensor
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
    "__version__",
    "available_isas",
    "block_fields",
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


def __getattr__(name: str) -> object:
    """`Server`, whose libraries most programs do without."""
    if name != "Server":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from ikq.serve.server import Server
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            f"ikq.Server needs the library {error.name}: pip install 'ikq[serve]'"
        ) from None
    return Server
