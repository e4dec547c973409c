"""Quantized weights of checkpoints as rows of float32: 8-bit floats, FP4 and packed integers.

Every class here is one storage form with its formula. Scales are widened for the rows that are asked for,
never for a whole tensor.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ikq.checkpoint.rows import FloatKind, Rows, Stored, to_float32
from ikq.checkpoint.safetensors import SafeTensor
from ikq.errors import FormatError

__all__ = [
    "E2M1",
    "E4M3",
    "Awq",
    "Float4",
    "Float8",
    "Gptq",
    "Integers",
    "Mxfp4Blocks",
    "PackedIntegers",
]


def _e4m3() -> NDArray[np.float32]:
    """Value of each byte of F8_E4M3: 4 bits of exponent with bias 7, 3 of mantissa, no infinity."""
    byte = np.arange(256)
    sign = np.where(byte & 128, -1.0, 1.0)
    exponent, mantissa = (byte >> 3) & 15, byte & 7
    value = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    value[(byte & 127) == 127] = np.nan
    table: NDArray[np.float32] = (sign * value).astype(np.float32)
    return table


E4M3 = _e4m3()
"""Values of 8-bit floats by their byte."""

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
"""Values of 4-bit floats by their nibble."""


def _e8m0() -> NDArray[np.float32]:
    exponents = np.append(np.arange(255) - 127, 0)
    powers: NDArray[np.float32] = np.ldexp(np.ones(256), exponents).astype(np.float32)
    powers[255] = np.nan
    return powers


E8M0 = _e8m0()
"""Powers of two by their byte."""


def _raw(t: SafeTensor, dtype: str, n_per_row: int) -> NDArray[np.generic]:
    return t.raw().view(dtype).reshape(-1, n_per_row)


def _matrix_shape(t: SafeTensor) -> tuple[int, int]:
    if not t.shape:
        raise FormatError(f"tensor `{t.name}` is a single number, where a matrix is expected")
    n_rows = 1
    for extent in t.shape[:-1]:
        n_rows *= extent
    return n_rows, t.shape[-1]


def _floats(t: SafeTensor) -> NDArray[np.float32]:
    """All numbers of a tensor of scales, which is small beside its weights, in one row."""
    if t.dtype == "F8_E4M3":
        return E4M3[t.raw()]
    if t.dtype == "F8_E8M0":
        return E8M0[t.raw()]
    stored = Stored(t, (1, t.nbytes // {"F32": 4, "F16": 2, "BF16": 2}.get(t.dtype, 1)))
    return to_float32(stored.rows(0, 1), stored.kind).reshape(-1)


def _fits(t: SafeTensor, expected: tuple[int, ...], weight: SafeTensor) -> None:
    """Refuses a tensor beside a weight whose shape does not go with it; axes of one element do not matter."""
    if [n for n in t.shape if n != 1] != [n for n in expected if n != 1]:
        raise FormatError(
            f"tensor `{t.name}` has the shape {list(t.shape)}, expected {list(expected)} beside "
            f"`{weight.name}` of {list(weight.shape)}"
        )


def _group_of(
    g_idx: SafeTensor, n_columns: int, n_groups: int, weight: SafeTensor
) -> NDArray[np.intp] | None:
    """The group of each column; `None` where all are -1, which stands for a list that was not filled."""
    _fits(g_idx, (n_columns,), weight)
    if g_idx.dtype not in ("I32", "I64"):
        raise FormatError(f"tensor `{g_idx.name}` is of {g_idx.dtype}, where I32 is expected")
    order = g_idx.raw().view("<i4" if g_idx.dtype == "I32" else "<i8").astype(np.intp)
    if len(order) and (order == -1).all():
        return None
    if len(order) and not (order.min() >= 0 and order.max() < n_groups):
        raise FormatError(f"tensor `{g_idx.name}` names groups that the {n_groups} of scales do not have")
    return order


class Float8(Rows):
    """F8_E4M3 with a scale per tensor, row, or block: `value * scale`."""

    kind: FloatKind = "F32"

    def __init__(
        self,
        weight: SafeTensor,
        scale: SafeTensor,
        block: tuple[int, int] | None,
        zero: SafeTensor | None = None,
    ) -> None:
        """Looks at the tensors.

        Args:
            weight: [..., rows, columns] of F8_E4M3 (or I8).
            scale: one number, one per row, or one per block and leading index.
            block: rows and columns of a block; `None` where there are none.
            zero: what is subtracted from codes, I8 in the shape of `scale`; `None`: nothing.

        Raises:
            FormatError: the scales or zeros do not fit.
        """
        self.n_rows, self.n_per_row = _matrix_shape(weight)
        self.weight, self.scale = weight, scale
        n_scales = 1
        for extent in scale.shape:
            n_scales *= extent
        lead, rows = weight.shape[:-2], self.n_rows
        if len(weight.shape) >= 2:
            rows = weight.shape[-2]
        self._rows_per_matrix = max(rows, 1)
        if block is not None and n_scales > 1:
            blocks = (-(-rows // block[0]), -(-self.n_per_row // block[1]))
            _fits(scale, (*lead, *blocks), weight)
            self._block, self._blocks = block, blocks
        elif n_scales == self.n_rows and n_scales > 1:
            self._block, self._blocks = (1, max(self.n_per_row, 1)), (rows, 1)
        elif n_scales == 1:
            self._block, self._blocks = (max(rows, 1), max(self.n_per_row, 1)), (1, 1)
        elif lead and n_scales * rows == self.n_rows:
            # one for each expert
            self._block, self._blocks = (max(rows, 1), max(self.n_per_row, 1)), (1, 1)
        else:
            raise FormatError(
                f"tensor `{scale.name}` has the shape {list(scale.shape)}, which is no scale per tensor, "
                f"row or block of `{weight.name}` of {list(weight.shape)}"
            )
        self._scales = _floats(scale).reshape(-1, self._blocks[1])
        self._zeros: NDArray[np.float32] | None = None
        if zero is not None:
            _fits(zero, scale.shape, weight)
            if zero.dtype != "I8":
                raise FormatError(f"tensor `{zero.name}` is of {zero.dtype}, where I8 is expected")
            self._zeros = zero.raw().view(np.int8).astype(np.float32).reshape(self._scales.shape)

    def rows(self, first: int, n: int) -> NDArray[np.generic]:
        """As `Matrix.rows`."""
        raw = self.weight.raw()[first * self.n_per_row : (first + n) * self.n_per_row]
        codes = E4M3.take(raw) if self.weight.dtype != "I8" else raw.view(np.int8).astype(np.float32)
        rows = codes.reshape(n, self.n_per_row)
        matrix, row = np.divmod(np.arange(first, first + n), self._rows_per_matrix)
        # rows of the tables of scales and zeros
        at = matrix * self._blocks[0] + row // self._block[0]
        if self._zeros is not None:
            self._each(np.subtract, rows, self._zeros, at)
        self._each(np.multiply, rows, self._scales, at)
        return rows

    def _each(
        self, operation: np.ufunc, rows: NDArray[np.float32], table: NDArray[np.float32], at: NDArray[np.intp]
    ) -> None:
        """Changes rows in place by the number of each one's block."""
        if table.size == 1:
            operation(rows, table, out=rows)
            return
        values, width = table[at], self._block[1]
        whole = self.n_per_row // width
        if whole:
            blocks = rows[:, : whole * width].reshape(len(rows), whole, width)
            operation(blocks, values[:, :whole, None], out=blocks)
        if whole * width < self.n_per_row:
            rest = rows[:, whole * width :]
            operation(rest, values[:, whole:], out=rest)

    def release(self, first: int, n: int) -> None:
        """As `Matrix.release`."""
        self.weight.file.release(self.weight.offset + first * self.n_per_row, n * self.n_per_row)


class Integers(Float8):
    """I8 with a scale per tensor or row: `(value - zero) * scale`."""


class Float4(Rows):
    """E2M1 pairs (the low half first) with a scale per group of a row, times a number for all of it."""

    kind: FloatKind = "F32"

    def __init__(self, weight: SafeTensor, scale: SafeTensor, factor: float | np.float32, group: int) -> None:
        """Looks at both tensors.

        Args:
            weight: [..., rows, columns / 2] of bytes.
            scale: [..., rows, columns / group] of F8_E4M3, or of bytes or F8_E8M0 that are exponents.
            factor: what all scales are multiplied with.
            group: elements of a group.

        Raises:
            FormatError: the scales do not fit.
        """
        self.n_rows, half = _matrix_shape(weight)
        self.n_per_row = 2 * half
        self.weight, self.group = weight, group
        if self.n_per_row % group:
            raise FormatError(f"tensor `{weight.name}`: rows of {self.n_per_row} are not groups of {group}")
        _fits(scale, (*weight.shape[:-1], self.n_per_row // group), weight)
        if scale.dtype not in (("U8", "F8_E8M0") if group == 32 else ("U8", "F8_E8M0", "F8_E4M3")):
            raise FormatError(
                f"tensor `{scale.name}` is of {scale.dtype}, which are no scales of groups of {group}"
            )
        self._scale = scale
        self._table = (E8M0 if scale.dtype in ("U8", "F8_E8M0") else E4M3) * np.float32(factor)

    def rows(self, first: int, n: int) -> NDArray[np.generic]:
        """As `Matrix.rows`."""
        half, groups = self.n_per_row // 2, self.n_per_row // self.group
        raw = self.weight.raw()[first * half : (first + n) * half].reshape(n, half)
        rows = np.empty((n, half, 2), np.float32)
        rows[:, :, 0] = E2M1.take(raw & 15)
        rows[:, :, 1] = E2M1.take(raw >> 4)
        scales = self._table[self._scale.raw()[first * groups : (first + n) * groups]]
        blocks = rows.reshape(n, groups, self.group)
        blocks *= scales.reshape(n, groups, 1)
        return blocks.reshape(n, self.n_per_row)

    def release(self, first: int, n: int) -> None:
        """As `Matrix.release`."""
        half = self.n_per_row // 2
        self.weight.file.release(self.weight.offset + first * half, n * half)


class Mxfp4Blocks(Float4):
    """gpt-oss: [..., rows, groups, 16] of nibbles, [..., rows, groups] of exponents; groups of 32."""

    def __init__(self, blocks: SafeTensor, scales: SafeTensor) -> None:
        if len(blocks.shape) < 3 or blocks.shape[-1] != 16 or blocks.dtype != "U8":
            raise FormatError(
                f"tensor `{blocks.name}` of {list(blocks.shape)} is no list of blocks of 16 bytes"
            )
        flat = SafeTensor(
            blocks.name,
            blocks.dtype,
            (*blocks.shape[:-2], blocks.shape[-2] * 16),
            blocks.file,
            blocks.offset,
            blocks.nbytes,
        )
        super().__init__(flat, scales, 1.0, 32)

    def ggml_rows(self, first: int, n: int) -> NDArray[np.uint8]:
        """The rows as ggml's MXFP4: an exponent, then elements 0 to 15 in low and 16 to 31 in high halves."""
        groups = self.n_per_row // 32
        raw = self.weight.raw()[first * groups * 16 : (first + n) * groups * 16].reshape(-1, 16)
        nibbles = np.empty((len(raw), 16, 2), np.uint8)
        nibbles[:, :, 0] = raw & 15
        nibbles[:, :, 1] = raw >> 4
        elements = nibbles.reshape(-1, 32)
        out = np.empty((len(raw), 17), np.uint8)
        out[:, 0] = self._scale.raw()[first * groups : (first + n) * groups]
        out[:, 1:] = elements[:, :16] | (elements[:, 16:] << 4)
        return out.reshape(n, groups * 17)


class PackedIntegers(Rows):
    """Integers of 4 or 8 bits, packed into I32 along columns: `(code - zero) * scale` per group of a row."""

    kind: FloatKind = "F32"

    def __init__(
        self,
        packed: SafeTensor,
        scale: SafeTensor,
        n_columns: int,
        bits: int,
        zero: SafeTensor | None = None,
        g_idx: SafeTensor | None = None,
    ) -> None:
        """Looks at the tensors.

        Args:
            packed: [rows, columns * bits / 32] of I32; codes are unsigned, with the middle as zero.
            scale: [rows, groups] of floats.
            n_columns: columns.
            bits: bits of a code.
            zero: [rows * bits / 32, groups] of I32, packed along the rows; `None`: the middle.
            g_idx: the group of each column; `None`: equal runs of columns.

        Raises:
            FormatError: they do not fit together.
        """
        if bits not in (4, 8):
            raise FormatError(f"tensor `{packed.name}`: codes of {bits} bits are not read, 4 or 8 are")
        per_word = 32 // bits
        self.n_rows, words = _matrix_shape(packed)
        self.n_per_row, self._bits = n_columns, bits
        if words != -(-n_columns // per_word) or packed.dtype not in ("I32", "U32"):
            raise FormatError(
                f"tensor `{packed.name}` of {packed.dtype} {list(packed.shape)} does not hold rows of "
                f"{n_columns} codes of {bits} bits"
            )
        groups = scale.shape[-1] if len(scale.shape) > 1 else 1
        _fits(scale, (self.n_rows, groups), packed)
        order = None if g_idx is None else _group_of(g_idx, n_columns, groups, packed)
        if order is None and (groups == 0 or n_columns % groups):
            raise FormatError(f"tensor `{scale.name}`: {groups} groups do not divide rows of {n_columns}")
        self.packed, self._groups = packed, groups
        self._scale = Stored(scale, (self.n_rows, groups))
        self._zero = zero
        if zero is not None:
            _fits(zero, (-(-self.n_rows // per_word), groups), packed)
            if zero.dtype not in ("I32", "U32"):
                raise FormatError(
                    f"tensor `{zero.name}` is of {zero.dtype}, where packed integers are expected"
                )
        self._group_of = order

    def rows(self, first: int, n: int) -> NDArray[np.generic]:
        """As `Matrix.rows`."""
        per_word, mask = 32 // self._bits, np.uint32((1 << self._bits) - 1)
        words = _raw(self.packed, "<u4", -(-self.n_per_row // per_word))[first : first + n]
        shifts = np.arange(per_word, dtype=np.uint32) * np.uint32(self._bits)
        codes = ((np.asarray(words, np.uint32)[:, :, None] >> shifts) & mask).reshape(n, -1)
        rows = codes[:, : self.n_per_row].astype(np.float32)
        middle = np.float32(1 << (self._bits - 1))
        scales = to_float32(self._scale.rows(first, n), self._scale.kind)
        zeros = np.full_like(scales, middle)
        if self._zero is not None:
            packed = _raw(self._zero, "<u4", self._groups)
            row = np.arange(first, first + n)
            shift = (row % per_word * self._bits).astype(np.uint32)
            zeros = ((np.asarray(packed, np.uint32)[row // per_word] >> shift[:, None]) & mask).astype(
                np.float32
            )
        if self._group_of is not None:
            rows -= zeros[:, self._group_of]
            rows *= scales[:, self._group_of]
            return rows
        blocks = rows.reshape(n, self._groups, -1)
        blocks -= zeros[:, :, None]
        blocks *= scales[:, :, None]
        return blocks.reshape(n, self.n_per_row)

    def release(self, first: int, n: int) -> None:
        """As `Matrix.release`."""
        words = self.packed.shape[-1]
        self.packed.file.release(self.packed.offset + 4 * first * words, 4 * n * words)


class _ByColumns(Rows):
    """What GPTQ and AWQ have in common: tensors [inputs, outputs], where a row of the output is a column."""

    kind: FloatKind = "F32"
    bits = 4

    def __init__(
        self, qweight: SafeTensor, qzeros: SafeTensor, scales: SafeTensor, n_in: int, n_out: int
    ) -> None:
        self.qweight, self.qzeros = qweight, qzeros
        self.n_rows, self.n_per_row = n_out, n_in
        groups = scales.shape[0] if scales.shape else 1
        _fits(scales, (groups, n_out), qweight)
        self._scales = Stored(scales, (groups, n_out))
        _fits(qzeros, (groups, n_out * self.bits // 32), qweight)
        for t in (qweight, qzeros):
            if t.dtype not in ("I32", "U32"):
                raise FormatError(f"tensor `{t.name}` is of {t.dtype}, where packed integers are expected")
        if groups == 0 or n_in % groups:
            raise FormatError(f"tensor `{scales.name}`: {groups} groups do not divide {n_in} columns")
        self._group_of = np.arange(n_in) // (n_in // groups)

    def _scaled(
        self, codes: NDArray[np.float32], zeros: NDArray[np.float32], first: int, n: int
    ) -> NDArray[np.generic]:
        """Codes [inputs, n] and zeros [groups, n] to rows of the output."""
        scales = to_float32(
            self._scales.rows(0, self._scales.n_rows)[:, first : first + n], self._scales.kind
        )
        codes -= zeros[self._group_of]
        codes *= scales[self._group_of]
        return np.ascontiguousarray(codes.T)


class Gptq(_ByColumns):
    """GPTQ: `(code - (zero + 1)) * scale`; codes packed along the inputs, zeros along the outputs."""

    def __init__(
        self,
        qweight: SafeTensor,
        qzeros: SafeTensor,
        scales: SafeTensor,
        g_idx: SafeTensor | None,
        *,
        bits: int,
        zero_offset: int = 1,
    ) -> None:
        """Looks at the tensors.

        Args:
            qweight: [inputs * bits / 32, outputs] of I32.
            qzeros: [groups, outputs * bits / 32] of I32.
            scales: [groups, outputs].
            g_idx: the group of each input, where they are not runs.
            bits: bits of a code.
            zero_offset: what is added to zeros: 1 in the first form of the format, 0 in `gptq_v2`.

        Raises:
            FormatError: they do not fit together.
        """
        if bits not in (2, 4, 8):
            raise FormatError(f"tensor `{qweight.name}`: codes of {bits} bits are not read; 2, 4 or 8 are")
        self.bits = bits
        words, n_out = _matrix_shape(qweight)
        super().__init__(qweight, qzeros, scales, words * 32 // bits, n_out)
        self._offset = zero_offset
        if g_idx is not None:
            order = _group_of(g_idx, self.n_per_row, self._scales.n_rows, qweight)
            self._group_of = self._group_of if order is None else order

    def rows(self, first: int, n: int) -> NDArray[np.generic]:
        """As `Matrix.rows`."""
        per_word, mask = 32 // self.bits, np.uint32((1 << self.bits) - 1)
        words = np.asarray(_raw(self.qweight, "<u4", self.n_rows)[:, first : first + n], np.uint32)
        shifts = np.arange(per_word, dtype=np.uint32) * np.uint32(self.bits)
        codes = ((words[:, None, :] >> shifts[:, None]) & mask).reshape(self.n_per_row, n).astype(np.float32)
        column = np.arange(first, first + n)
        packed = np.asarray(_raw(self.qzeros, "<u4", self.n_rows // per_word), np.uint32)[
            :, column // per_word
        ]
        zeros = (packed >> (column % per_word * self.bits).astype(np.uint32)) & mask
        # the addition wraps within the bits of a code, as where it is made
        zeros = (zeros + np.uint32(self._offset)) & mask if self._offset else zeros
        return self._scaled(codes, zeros.astype(np.float32), first, n)


class Awq(_ByColumns):
    """AWQ (`gemm`): `(code - zero) * scale`; eight outputs in a word, in the order 0 2 4 6 1 3 5 7."""

    # the place in a word of each of eight neighbouring outputs
    _PLACE = np.array([0, 4, 1, 5, 2, 6, 3, 7], np.uint32)

    def __init__(self, qweight: SafeTensor, qzeros: SafeTensor, scales: SafeTensor) -> None:
        """Looks at the tensors.

        Args:
            qweight: [inputs, outputs / 8] of I32.
            qzeros: [groups, outputs / 8] of I32.
            scales: [groups, outputs].

        Raises:
            FormatError: they do not fit together.
        """
        n_in, words = _matrix_shape(qweight)
        super().__init__(qweight, qzeros, scales, n_in, words * 8)

    def rows(self, first: int, n: int) -> NDArray[np.generic]:
        """As `Matrix.rows`."""
        column = np.arange(first, first + n)
        shift = self._PLACE[column % 8] * np.uint32(4)

        def unpack(t: SafeTensor) -> NDArray[np.float32]:
            words = np.asarray(_raw(t, "<u4", self.n_rows // 8), np.uint32)[:, column // 8]
            return ((words >> shift) & np.uint32(15)).astype(np.float32)

        return self._scaled(unpack(self.qweight), unpack(self.qzeros), first, n)
