"""A checkpoint's weights by name, whatever form they are stored in: `Weights`."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Mapping
from typing import Any

from ikq.checkpoint.config import Config
from ikq.checkpoint.packed import (
    Awq,
    Float4,
    Float8,
    Gptq,
    Integers,
    Mxfp4Blocks,
    PackedIntegers,
    _floats,
)
from ikq.checkpoint.rows import FloatKind, Matrix, Stored
from ikq.checkpoint.safetensors import SafeTensor, Shards
from ikq.errors import FormatError, UnsupportedError

__all__ = ["Weights"]

# suffixes of tensors beside a weight that say nothing about it, but about inputs or the cache
_NO_PARTS = ("input_scale", "input_global_scale", "k_scale", "v_scale")
_METHODS = ("fp8", "compressed-tensors", "mxfp4", "modelopt", "gptq", "awq")


class Weights:
    """Tensors of a checkpoint, found by the names that `transformers` gives them.

    Attributes:
        shards: The files.
        unused: Names of tensors that nothing has asked for.
    """

    def __init__(self, shards: Shards, config: Config) -> None:
        """Looks at how the checkpoint is quantized.

        Raises:
            UnsupportedError: in a way that is not known.
            FormatError: its description is damaged.
        """
        self.shards = shards
        self.unused = set(shards)
        self._config = config
        found = config.whole.get("quantization_config") or config.get("quantization_config")
        self._quant: Mapping[str, Any] = found if isinstance(found, dict) else {}
        if found is not None and not isinstance(found, dict):
            raise config.wrong("quantization_config", "an object")
        self.method = _method(config, self._quant)
        if self._quant.get("transform_config"):
            raise UnsupportedError(
                f"{config.path}: weights that were rotated (`transform_config`) are not read"
            )

    def names(self) -> set[str]:
        """Names of modules that have a weight, and of all tensors."""
        return set(self.shards)

    def has(self, name: str) -> bool:
        """Whether there is such a tensor, or a module of quantized weights that stands for it."""
        if name in self.shards:
            return True
        base = name.removesuffix(".weight")
        return base != name and any(f"{base}.{p}" in self.shards for p in ("weight_packed", "qweight"))

    def natural(self) -> FloatKind:
        """The kind of floats that keeps most of what matrices hold."""
        kinds = {t.dtype for t in self.shards.values() if len(t.shape) > 1}
        small = {"U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "I32"} & kinds
        if "BF16" in kinds or (small and "F16" not in kinds):
            return "BF16"
        return "F16" if "F16" in kinds else "F32"

    def stored(self, name: str) -> SafeTensor:
        """A tensor as it is stored.

        Raises:
            FormatError: there is none.
        """
        t = self.shards.get(name)
        if t is None:
            raise FormatError(f"{self._config.path.parent}: tensor `{name}` is missing")
        self.unused.discard(name)
        return t

    def is_fp8(self, name: str) -> bool:
        """Whether a weight is stored as 8-bit floats."""
        t = self.shards.get(name)
        return t is not None and t.dtype == "F8_E4M3"

    def matrix(self, name: str) -> Matrix:
        """A weight as rows; leading axes (experts) lie one behind the other.

        Raises:
            FormatError: it is missing, or its parts do not fit together.
            UnsupportedError: it is stored in a way that is not known.
        """
        base = name.removesuffix(".weight")
        for part in _NO_PARTS:
            self.unused.discard(f"{base}.{part}")
        if name in self.shards:
            return self._plain(name, base)
        if f"{base}.weight_packed" in self.shards:
            return self._compressed(base)
        if f"{base}.qweight" in self.shards:
            return self._by_columns(base)
        self.stored(name)  # says what is missing
        raise AssertionError(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a weight.

        Raises:
            FormatError, UnsupportedError: as `matrix`.
        """
        t = self.shards.get(name)
        if t is not None and t.dtype != "U8":
            return t.shape
        matrix = self.matrix(name)
        return (matrix.n_rows, matrix.n_per_row)

    def mxfp4(self, name: str) -> Mxfp4Blocks | None:
        """Blocks of gpt-oss for `name` (`NAME_blocks`, `NAME_scales`), if there are such.

        Raises:
            FormatError: they do not fit together.
        """
        if f"{name}_blocks" not in self.shards:
            return None
        return Mxfp4Blocks(self.stored(f"{name}_blocks"), self.stored(f"{name}_scales"))

    def _part(self, base: str, *suffixes: str) -> SafeTensor | None:
        """The first of these that is there; what nothing takes stays in `unused`, and is an error."""
        name = next((f"{base}.{s}" for s in suffixes if f"{base}.{s}" in self.shards), None)
        return None if name is None else self.stored(name)

    def _plain(self, name: str, base: str) -> Matrix:
        t = self.stored(name)
        if t.dtype in ("F32", "F16", "BF16"):
            return Stored(t)
        if t.dtype in ("F8_E4M3", "I8"):
            # merged experts have theirs beside them: `gate_up_proj_scale_inv`
            scale = self._part(base, "weight_scale_inv", "weight_scale")
            for suffix in ("_scale_inv", "_scale"):
                if scale is None and f"{name}{suffix}" in self.shards:
                    scale = self.stored(f"{name}{suffix}")
            if scale is None:
                raise FormatError(
                    f"tensor `{name}` is of {t.dtype} and has no scale (`{base}.weight_scale_inv`)"
                )
            if t.dtype == "I8":
                return Integers(t, scale, self._block(t), self._part(base, "weight_zero_point"))
            return Float8(t, scale, self._block(t))
        if t.dtype == "U8":
            scale, second = self._part(base, "weight_scale"), self._part(base, "weight_scale_2")
            if scale is not None and self.method == "modelopt" and second is not None:
                return Float4(t, scale, _single(second), 16)
        raise UnsupportedError(
            f"tensor `{name}` is of {t.dtype}, which is no weight of any form that is known "
            f"(quantization method: {self.method or 'none'})"
        )

    def _block(self, t: SafeTensor) -> tuple[int, int] | None:
        """Extents of blocks that share a scale."""
        block = self._quant.get("weight_block_size")
        if block is None:
            weights = self._group("weights")
            block = weights.get("block_structure")
        if block is None:
            return None
        if not isinstance(block, list) or len(block) != 2 or not all(type(b) is int and b > 0 for b in block):
            raise FormatError(
                f"{self._config.path}: `weight_block_size` is {block!r:.60} (for `{t.name}`), expected two "
                "numbers"
            )
        return block[0], block[1]

    def _group(self, what: str) -> Mapping[str, Any]:
        """A part of the first group of compressed-tensors."""
        groups = self._quant.get("config_groups")
        first: object = next(iter(groups.values()), {}) if isinstance(groups, dict) else {}
        part = first.get(what) if isinstance(first, dict) else None
        return part if isinstance(part, dict) else {}

    def _compressed(self, base: str) -> Matrix:
        """compressed-tensors: packed integers, or pairs of 4-bit floats."""
        packed = self.stored(f"{base}.weight_packed")
        scale = self.stored(f"{base}.weight_scale")
        if packed.dtype == "U8":
            self._part(base, "weight_shape")  # follows from the other two
            if scale.dtype in ("U8", "F8_E8M0"):
                return Float4(packed, scale, 1.0, 32)
            factor = self._part(base, "weight_global_scale")
            # stored as the number that divides
            return Float4(packed, scale, 1.0 if factor is None else 1 / _divisor(factor), 16)
        shape = self._part(base, "weight_shape")
        bits = self._bits(base)
        n_columns = packed.shape[-1] * 32 // bits
        if shape is not None:
            if shape.dtype not in ("I64", "I32") or shape.shape != (2,) or len(packed.shape) != 2:
                raise FormatError(
                    f"tensor `{shape.name}` of {shape.dtype} {list(shape.shape)} is no shape of a matrix"
                )
            sizes = shape.raw().view("<i8" if shape.dtype == "I64" else "<i4")
            n_columns = int(sizes[1])
            if int(sizes[0]) != packed.shape[0]:
                raise FormatError(
                    f"tensor `{shape.name}` says {sizes.tolist()}, `{packed.name}` {packed.shape}"
                )
        zero, g_idx = self._part(base, "weight_zero_point"), self._part(base, "weight_g_idx")
        return PackedIntegers(packed, scale, n_columns, bits, zero, g_idx)

    def _bits(self, base: str) -> int:
        bits = self._quant.get("bits", self._quant.get("w_bit", self._group("weights").get("num_bits")))
        if type(bits) is not int:
            raise FormatError(f"{self._config.path}: nothing says of how many bits the codes of `{base}` are")
        return bits

    def _by_columns(self, base: str) -> Matrix:
        """GPTQ or AWQ."""
        parts = [self.stored(f"{base}.{p}") for p in ("qweight", "qzeros", "scales")]
        if self.method == "awq":
            version = str(self._quant.get("version", "gemm")).lower()
            if version != "gemm" or self._bits(base) != 4:
                raise UnsupportedError(
                    f"`{base}` is AWQ of version {version!r:.20} and {self._bits(base)} bits; "
                    "4 bits of version `gemm` are read"
                )
            return Awq(parts[0], parts[1], parts[2])
        if self.method != "gptq":
            raise UnsupportedError(
                f"`{base}.qweight`: the quantization method {self.method!r} has no such tensor"
            )
        second_form = self._quant.get("checkpoint_format") == "gptq_v2"
        qweight, qzeros, scales = parts
        g_idx, offset = self._part(base, "g_idx"), 0 if second_form else 1
        return Gptq(qweight, qzeros, scales, g_idx, bits=self._bits(base), zero_offset=offset)


def _divisor(t: SafeTensor) -> float:
    """A global scale, which something is divided by.

    Raises:
        FormatError: it is 0 or not finite.
    """
    value = _single(t)
    if not value or not math.isfinite(value):
        raise FormatError(f"tensor `{t.name}`: a global scale is {value:g}")
    return value


def _single(t: SafeTensor) -> float:
    values = _floats(t)
    if len(values) != 1:
        raise FormatError(f"tensor `{t.name}` has the shape {list(t.shape)}, expected one number")
    return float(values[0])


def _method(config: Config, quant: Mapping[str, Any]) -> str:
    """The quantization method; empty where there is none.

    Raises:
        UnsupportedError: it is not known.
    """
    if not quant:
        return ""
    method = quant.get("quant_method")
    if method is None and "quant_algo" in quant:
        method = "modelopt"
    if method not in _METHODS:
        raise UnsupportedError(
            f"{config.path}: quantization method {method!r:.40} is not known; weights of "
            f"{', '.join(_METHODS)} are read"
        )
    return str(method)


def matching(names: set[str], patterns: tuple[str, ...]) -> set[str]:
    """Names that one of the patterns (`*` for anything) matches."""
    compiled = [re.compile(fnmatch.translate(p)) for p in patterns]
    return {n for n in names if any(c.match(n) for c in compiled)}
