"""`QuantType`: every tensor type that ikq knows, with its properties."""

from __future__ import annotations

import enum
from functools import cache

from ikq import _ikq
from ikq.errors import FormatError

__all__ = ["QuantType", "TypeLike", "as_type"]


class QuantType(enum.IntEnum):
    """A ggml tensor type. The value is its id in GGUF files; names are spelled as ggml spells them.

    A type is found by name in any case (aliases included) or by id; wherever ikq takes a type, the
    name or id does as well.

    Examples:
        >>> QuantType("iq4_ks")
        <QuantType.IQ4_KS: 144>
        >>> QuantType(144).row_header_bytes
        4
        >>> QuantType("q4_0_4x4").base
        <QuantType.Q4_0: 2>
    """

    # The ids stand here as well as in the Rust table so that editors and type checkers know the
    # names; a test compares the two.
    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q8_1 = 9
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    Q8_K = 15
    IQ2_XXS = 16
    IQ2_XS = 17
    IQ3_XXS = 18
    IQ1_S = 19
    IQ4_NL = 20
    IQ3_S = 21
    IQ2_S = 22
    IQ4_XS = 23
    I8 = 24
    I16 = 25
    I32 = 26
    I64 = 27
    F64 = 28
    IQ1_M = 29
    BF16 = 30
    Q4_0_4_4 = 31
    Q4_0_4_8 = 32
    Q4_0_8_8 = 33
    TQ1_0 = 34
    TQ2_0 = 35
    I2_S = 36
    MXFP4 = 39
    NVFP4 = 40
    Q1_0_G128 = 41
    Q2_0 = 42
    Q8_0_X4 = 97
    Q8_1_X4 = 98
    Q8_2_X4 = 99
    Q6_0 = 133
    IQ1_BN = 134
    IQ2_BN = 135
    Q8_K64 = 136
    IQ2_K = 137
    IQ3_K = 138
    IQ4_K = 139
    IQ5_K = 140
    IQ6_K = 141
    IQ4_KS = 144
    IQ2_KS = 145
    IQ4_KSS = 146
    Q8_K16 = 147
    Q8_K32 = 148
    Q8_KR8 = 149
    Q8_K128 = 150
    Q8_KV = 151
    IQ5_KS = 152
    IQ2_KT = 153
    IQ3_KT = 154
    IQ4_KT = 155
    IQ3_KS = 156
    IQ2_KL = 157
    IQ1_KT = 158
    Q4_0_R8 = 202
    Q5_0_R4 = 206
    Q8_0_R8 = 208
    Q2_K_R4 = 210
    Q3_K_R4 = 211
    Q4_K_R4 = 212
    Q5_K_R4 = 213
    Q6_K_R4 = 214
    IQ2_XXS_R4 = 216
    IQ2_XS_R4 = 217
    IQ3_XXS_R4 = 218
    IQ1_S_R4 = 219
    IQ4_NL_R4 = 220
    IQ3_S_R4 = 221
    IQ2_S_R4 = 222
    IQ4_XS_R8 = 223
    IQ1_M_R4 = 229
    BF16_R16 = 230
    Q6_0_R4 = 233
    IQ2_BN_R4 = 335
    IQ2_K_R4 = 337
    IQ3_K_R4 = 338
    IQ4_K_R4 = 339
    IQ5_K_R4 = 340
    IQ4_KS_R4 = 344
    IQ5_KS_R4 = 352
    MXFP4_R8 = 353
    Q8_K_R16 = 397
    Q8_KV_R8 = 398
    Q8_K_R8 = 399

    @classmethod
    def _missing_(cls, value: object) -> QuantType:
        if isinstance(value, str):
            return cls(_ikq.parse_type(value))
        raise FormatError(f"unknown type id {value!r}; `ikq types` lists all")

    def __str__(self) -> str:
        return self.name

    def __format__(self, spec: str) -> str:
        return format(self.name, spec)

    @property
    def id(self) -> int:
        """Id in GGUF files."""
        return self.value

    @property
    def block_size(self) -> int:
        """Elements in one block."""
        return _facts()[self].block_size

    @property
    def block_bytes(self) -> int:
        """Bytes of one block, row header not included."""
        return _facts()[self].block_bytes

    @property
    def row_header_bytes(self) -> int:
        """Bytes in front of each row's blocks."""
        return _facts()[self].row_header_bytes

    @property
    def bpw(self) -> float:
        """Bits per weight of the blocks, row headers not counted."""
        return _facts()[self].bpw

    @property
    def family(self) -> str:
        """The kind of format.

        One of `float`, `integer`, `legacy`, `k`, `i`, `iqk`, `trellis`, `ternary`, `fp4`,
        `interleaved`, `activation`.
        """
        return _facts()[self].family

    @property
    def imatrix(self) -> str:
        """Whether an imatrix is `required` (by `ikq quantize`), `recommended` or `ignored` for the type."""
        return _facts()[self].imatrix

    @property
    def needs_imatrix(self) -> bool:
        """Whether the command `ikq quantize` (not `ikq.quantize`) refuses the type without an imatrix."""
        return self.imatrix == "required"

    @property
    def fallback(self) -> QuantType | None:
        """The type that is used for rows whose length is no multiple of the block; None means F16."""
        return _optional(_facts()[self].fallback)

    @property
    def activation(self) -> QuantType | None:
        """The type that the reference programs quantize activations to, for products with this type."""
        return _optional(_facts()[self].activation)

    @property
    def rows(self) -> int:
        """The number of rows that are stored together: 1, or 4, 8, 16 for interleaved types."""
        return _facts()[self].rows

    @property
    def base(self) -> QuantType | None:
        """The plain type with the same codes, for interleaved types that have one."""
        return _optional(_facts()[self].base)

    @property
    def known_to(self) -> tuple[str, ...]:
        """The programs that load tensors of the type."""
        return tuple(_facts()[self].known_to.split(", "))

    @property
    def is_storable(self) -> bool:
        """Whether a weight file may hold the type as the result of quantizing."""
        return _facts()[self].is_storable

    @property
    def can_encode(self) -> bool:
        """Whether `ikq.quantize` can write it."""
        return _facts()[self].can_encode


TypeLike = QuantType | str | int
"""A type, its name in any case, or its id."""


@cache
def _facts() -> dict[QuantType, _ikq.TypeFacts]:
    return {QuantType(t.id): t for t in _ikq.type_facts()}


def _optional(id: int | None) -> QuantType | None:
    return None if id is None else QuantType(id)


def as_type(type: TypeLike) -> QuantType:
    """The type meant by a `QuantType`, a name in any case, or an id.

    Raises:
        FormatError: no such type; the message has the nearest names.
    """
    if isinstance(type, QuantType):
        return type
    if isinstance(type, bool) or not isinstance(type, (str, int)):
        raise FormatError(f"a type is a QuantType, a name or an id, not {type!r}")
    return QuantType(type)  # type: ignore[arg-type]  # names are found by `_missing_`
