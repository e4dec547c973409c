"""The tensors of a file, by shape: what a spec may name, checked as it is named."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ikq.errors import FormatError, UnsupportedError
from ikq.models.spec import Linear

__all__ = ["Tensors"]


class Tensors:
    """Names and shapes, and which of them a spec has used.

    Shapes are in GGUF's order, the elements of a row first, and have four numbers.

    Attributes:
        unused: names that nothing asked for yet.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], architecture: str) -> None:
        """Takes shapes in numpy's order.

        Raises:
            FormatError: a shape of more than four axes.
        """
        self._architecture = architecture
        self._ne: dict[str, tuple[int, int, int, int]] = {}
        for name, shape in shapes.items():
            if len(shape) > 4:
                raise FormatError(f"tensor `{name}` has {len(shape)} axes, at most 4 are possible")
            a, b, c, d = (*reversed(shape), 1, 1, 1, 1)[:4]
            self._ne[name] = (a, b, c, d)
        self.unused = set(self._ne)

    def __contains__(self, name: str) -> bool:
        return name in self._ne

    def __len__(self) -> int:
        return len(self._ne)

    def ne(self, name: str) -> tuple[int, int, int, int]:
        """The shape of a tensor that must be there.

        Raises:
            FormatError: it is not.
        """
        found = self._ne.get(name)
        if found is None:
            raise FormatError(f"architecture `{self._architecture}`: tensor `{name}` is missing")
        self.unused.discard(name)
        return found

    def rows(self, name: str) -> int:
        """Rows of a matrix, or of each expert's."""
        return self.ne(name)[1]

    def wrong(self, name: str, expected: str) -> FormatError:
        """The error for a shape that does not fit."""
        ne = list(self._ne[name])
        while len(ne) > 1 and ne[-1] == 1:
            ne.pop()
        return FormatError(
            f"architecture `{self._architecture}`: tensor `{name}` has shape {ne}, expected {expected}"
        )

    def vector(self, name: str, n: int) -> str:
        """A tensor of `n` numbers in all.

        Returns:
            Its name.

        Raises:
            FormatError: it is missing or has another number of elements.
        """
        if math.prod(self.ne(name)) != n:
            raise self.wrong(name, f"{n} elements in all")
        return name

    def optional_vector(self, name: str, n: int) -> str | None:
        """`vector`, or `None` where the tensor is missing."""
        return self.vector(name, n) if name in self else None

    def linear(
        self,
        name: str,
        n_in: int,
        n_out: int | None = None,
        n_expert: int = 1,
        *,
        rows: tuple[int, int] | None = None,
        scaled: bool = True,
    ) -> Linear:
        """A matrix of rows of `n_in`, or one per expert, with the bias and scale that the file has for it.

        Args:
            name: the tensor without its suffix.
            n_in: elements of a row.
            n_out: rows of the tensor, where they are known.
            n_expert: matrices of the tensor.
            rows: take rows `first..first + n` only.
            scaled: a tensor `NAME.scale` is a factor of the product.

        Raises:
            FormatError: the tensor is missing, or one of them has another shape.
        """
        weight = f"{name}.weight"
        ne = self.ne(weight)
        n_rows = ne[1]
        if ne != (n_in, n_out or n_rows, n_expert, 1):
            of = f" of {n_expert} experts" if n_expert > 1 else ""
            raise self.wrong(weight, f"rows of {n_in}, {n_out or 'any number'} of them{of}")
        bias = self.optional_vector(f"{name}.bias", n_rows * n_expert)
        scale = self.optional_vector(f"{name}.scale", n_expert) if scaled else None
        if rows is None:
            return Linear(weight, bias, scale)
        first, n = rows
        if first + n > n_rows:
            raise self.wrong(weight, f"at least {first + n} rows")
        return Linear(weight, bias, scale, first, n)

    def refuse_scale(self, name: str) -> None:
        """For tensors whose scale a spec cannot name.

        Raises:
            UnsupportedError: the file has one.
        """
        if f"{name}.scale" in self:
            raise UnsupportedError(
                f"architecture `{self._architecture}`: tensor `{name}.scale`: no scale is supported here"
            )
