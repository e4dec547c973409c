"""What an architecture writes a checkpoint's model into: `Target`, keys and tensors of a GGUF file to be.

An architecture (`ikq.models`) takes weights by the names that `transformers` gives them and puts them
under the names of GGUF files. Whatever it has not asked for when it is done is an error, unless it is
known to be of no use.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ikq.checkpoint.config import Config
from ikq.checkpoint.packed import Mxfp4Blocks
from ikq.checkpoint.rows import Computed, Matrix, RowRange, Stacked
from ikq.checkpoint.weights import Weights
from ikq.errors import FormatError
from ikq.files.gguf import Typed

__all__ = ["BlockRows", "BlockTarget", "OutTensor", "Target"]

# where the layers are, in models of text and in those that see as well
_ROOTS = ("model.", "model.language_model.", "language_model.model.", "language_model.", "")

_EMBEDDINGS = ("embed_tokens", "word_embeddings")

_LAYERS = ("num_hidden_layers", "num_nextn_predict_layers")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
# extents of matrices, and numbers of heads, which are no larger
_EXTENTS = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "linear_num_key_heads",
    "linear_num_value_heads",
    "linear_key_head_dim",
    "linear_value_head_dim",
    "kv_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
)


@dataclass(frozen=True)
class BlockRows:
    """Every `step`-th row of blocks, from row `start`."""

    blocks: Mxfp4Blocks
    start: int
    step: int

    def rows(self, first: int, n: int) -> NDArray[np.uint8]:
        """Rows `first` to `first + n` of these as ggml's MXFP4: [n, bytes of a row]."""
        span = max((n - 1) * self.step + 1, 0)
        return self.blocks.ggml_rows(self.start + first * self.step, span)[:: self.step]


@dataclass(frozen=True)
class OutTensor:
    """A tensor of the output.

    Attributes:
        name: Its name.
        shape: As numpy has it.
        matrix: Its rows.
        is_float32: It is F32 whatever the other floats are.
        blocks: The same rows as the blocks of gpt-oss, where they are such.
        from_fp8: It is stored as 8-bit floats.
    """

    name: str
    shape: tuple[int, ...]
    matrix: Matrix
    is_float32: bool
    blocks: BlockRows | None = None
    from_fp8: bool = False


class Target:
    """Keys and tensors, in the order in which they were added.

    Attributes:
        architecture: The value of `general.architecture`.
        config: The checkpoint's configuration.
        weights: Its weights.
        keys: Metadata.
        tensors: By name.
        root: What names of layers begin with.
        embeddings: What the module of embeddings is called behind that.
    """

    def __init__(self, architecture: str, config: Config, weights: Weights) -> None:
        self.architecture = architecture
        self.config = config
        self.weights = weights
        self.keys: dict[str, object] = {}
        self.tensors: dict[str, OutTensor] = {}
        found = [(r, e) for e in _EMBEDDINGS for r in _ROOTS if weights.has(f"{r}{e}.weight")]
        if not found:
            raise FormatError(
                f"{config.path.parent}: tensor `model.embed_tokens.weight` is missing: the folder does "
                "not hold a model of this architecture"
            )
        self.root, self.embeddings = found[0]
        self._guard()

    def _guard(self) -> None:
        """Refuses numbers that no file of this size can mean, before lists of their lengths are made.

        Raises:
            FormatError: a number of `config.json` is larger than the tensors justify.
        """
        shards = self.weights.shards
        # packed codes have at least two bits, so that a word holds at most 16
        longest = 16 * max((extent for t in shards.values() for extent in t.shape), default=0)
        for names, most in (
            (_LAYERS, len(shards)),
            (_EXPERTS, max(len(shards), longest)),
            (_EXTENTS, longest),
        ):
            for name in names:
                if self.config.has(name) and self.config.integer(name) > most:
                    raise self.config.wrong(name, f"at most {most}, by the tensors of the folder")

    def key(self, name: str, value: object) -> None:
        """Sets a key of the architecture."""
        self.keys[f"{self.architecture}.{name}"] = value

    def count(self, name: str, value: int) -> None:
        """Sets a key that counts something."""
        self.key(name, Typed(value, "uint32"))

    def number(self, name: str, value: float) -> None:
        """Sets a key that is a float."""
        self.key(name, Typed(float(value), "float32"))

    def add(
        self,
        name: str,
        matrix: Matrix,
        shape: tuple[int, ...] | None = None,
        *,
        blocks: BlockRows | None = None,
        from_fp8: bool = False,
    ) -> None:
        """Adds a tensor.

        Args:
            name: in the output.
            matrix: its rows.
            shape: as numpy has it; rows and columns where it is not given.
            blocks: the same rows in the form of gpt-oss.
            from_fp8: whether they are stored as 8-bit floats.

        Raises:
            FormatError: the shape does not have as many elements.
        """
        shape = shape or (matrix.n_rows, matrix.n_per_row)
        if math.prod(shape) != matrix.n_rows * matrix.n_per_row:
            raise FormatError(
                f"tensor `{name}` would have the shape {list(shape)}, and there are {matrix.n_rows} rows of "
                f"{matrix.n_per_row}"
            )
        plain = len(shape) == 1 or not name.endswith(".weight") or name.endswith("_norm.weight")
        float32 = plain or any(part in name for part in ("ffn_gate_inp", "ssm_conv1d", "indexer.proj"))
        self.tensors[name] = OutTensor(name, shape, matrix, float32, blocks, from_fp8)

    def vector(
        self,
        source: str,
        name: str,
        function: Callable[[NDArray[np.float32]], NDArray[np.float32]] | None = None,
    ) -> None:
        """Adds a list of numbers, each as `function` of what the checkpoint has.

        Raises:
            FormatError: it is missing.
        """
        matrix = self.weights.matrix(source)
        n = matrix.n_rows * matrix.n_per_row
        self.add(name, matrix if function is None else Computed(matrix, function), (n,))

    def norm(self, source: str, name: str, plus: float = 0.0) -> None:
        """Adds a norm's weights; `plus` is what the source adds to them when it runs.

        Raises:
            FormatError: they are missing.
        """
        self.vector(source, name, (lambda w: w + np.float32(plus)) if plus else None)

    def linear(
        self,
        source: str,
        name: str,
        shape: tuple[int, ...] | None = None,
        order: Callable[[], NDArray[np.uint32]] | None = None,
    ) -> None:
        """Adds a matrix and its bias, if it has one (`SOURCE.weight`, `SOURCE.bias`).

        Args:
            source: the module.
            name: of the output, without suffix.
            shape: of the weight, as numpy has it.
            order: gives rows (of the bias too) in another order; called when the shape is known to be right.

        Raises:
            FormatError: it is missing, or of another shape.
        """
        from ikq.checkpoint.rows import Flat, Permuted

        matrix = self.weights.matrix(f"{source}.weight")
        if shape is not None and (matrix.n_rows, matrix.n_per_row) != shape[-2:]:
            raise FormatError(
                f"{self.config.path.parent}: tensor `{source}.weight` has the shape "
                f"{[matrix.n_rows, matrix.n_per_row]}, {list(shape)} by config.json"
            )
        fp8 = self.weights.is_fp8(f"{source}.weight")
        rows = None if order is None else order()
        self.add(f"{name}.weight", matrix if rows is None else Permuted(matrix, rows), from_fp8=fp8)
        if self.weights.has(f"{source}.bias"):
            bias = self.weights.matrix(f"{source}.bias")
            n = bias.n_rows * bias.n_per_row
            if n != matrix.n_rows:
                raise FormatError(f"tensor `{source}.bias` has {n} numbers for {matrix.n_rows} rows")
            if rows is None:
                self.add(f"{name}.bias", bias, (n,))
            else:
                self.add(f"{name}.bias", Permuted(Flat(bias, 1), rows), (n,))

    def ignore(self, *patterns: str) -> None:
        """Tensors that are known to be of no use; `*` stands for anything."""
        from ikq.checkpoint.weights import matching

        self.weights.unused -= matching(self.weights.unused, patterns)

    def block(self, index: int, source: str | None = None) -> BlockTarget:
        """A layer; `source` is what its names begin with, where not as usual."""
        return BlockTarget(self, index, source or f"{self.root}layers.{index}.")


class BlockTarget:
    """A layer of a target.

    Attributes:
        target: All of it.
        index: The layer's number.
        source: What its names begin with in the checkpoint.
    """

    def __init__(self, target: Target, index: int, source: str) -> None:
        self.target, self.index, self.source = target, index, source

    @property
    def config(self) -> Config:
        """The checkpoint's configuration."""
        return self.target.config

    @property
    def weights(self) -> Weights:
        """The checkpoint's weights."""
        return self.target.weights

    def name(self, part: str) -> str:
        """A tensor of this block in the output."""
        return f"blk.{self.index}.{part}"

    def has(self, source: str) -> bool:
        """Whether the layer has a tensor."""
        return self.weights.has(self.source + source)

    def linear(
        self,
        source: str,
        name: str,
        shape: tuple[int, ...] | None = None,
        order: Callable[[], NDArray[np.uint32]] | None = None,
    ) -> None:
        """As `Target.linear`."""
        self.target.linear(self.source + source, self.name(name), shape, order)

    def rows(self, source: str, name: str, shape: tuple[int, int], first: int, n: int) -> None:
        """Adds rows `first` to `first + n` of a matrix without bias (`SOURCE.weight`) of this shape.

        Raises:
            FormatError: it is missing, or of another shape.
        """
        full = f"{self.source}{source}.weight"
        matrix = self.weights.matrix(full)
        if (matrix.n_rows, matrix.n_per_row) != shape:
            raise FormatError(
                f"{self.config.path.parent}: tensor `{full}` has the shape "
                f"{[matrix.n_rows, matrix.n_per_row]}, {list(shape)} by config.json"
            )
        part = RowRange(matrix, first, n)
        self.target.add(self.name(f"{name}.weight"), part, from_fp8=self.weights.is_fp8(full))

    def norm(self, source: str, name: str, plus: float = 0.0) -> None:
        """As `Target.norm`, with `.weight` behind both names."""
        self.target.norm(f"{self.source}{source}.weight", self.name(f"{name}.weight"), plus)

    def vector(
        self,
        source: str,
        name: str,
        function: Callable[[NDArray[np.float32]], NDArray[np.float32]] | None = None,
    ) -> None:
        """As `Target.vector`."""
        self.target.vector(self.source + source, self.name(name), function)

    def experts(
        self, source: str, n_expert: int, names: tuple[str, str, str] = ("gate", "up", "down")
    ) -> None:
        """Adds stacked experts from one matrix for each, or from merged ones (`gate_up_proj`, `down_proj`).

        Args:
            source: the module, such as `mlp.experts`.
            n_expert: how many there are.
            names: what the checkpoint calls gate, up and down (`_proj` is added to those of one letter string
                `gate`, `up`, `down`).

        Raises:
            FormatError: an expert is missing, or they do not have the same shape.
        """
        if n_expert < 1:
            raise FormatError(f"{self.config.path}: `num_experts` is missing or 0, and layers have experts")
        if self.has(f"{source}.gate_up_proj"):
            self.merged_experts(f"{source}.gate_up_proj", f"{source}.down_proj", n_expert)
            return
        for part, name in zip(("gate", "up", "down"), names, strict=True):
            own = f"{name}_proj" if name == part else name
            matrices, fp8 = [], False
            for e in range(n_expert):  # the first that is missing ends it
                one = f"{self.source}{source}.{e}.{own}.weight"
                matrices.append(self.weights.matrix(one))
                fp8 = fp8 or self.weights.is_fp8(one)
            self._stack(part, matrices, fp8)

    def _stack(self, part: str, matrices: list[Matrix], from_fp8: bool = False) -> None:
        shapes = {(m.n_rows, m.n_per_row) for m in matrices}
        if len(shapes) != 1:
            raise FormatError(f"{self.source}: experts' {part} matrices have the shapes {sorted(shapes)}")
        n_rows, n_per_row = shapes.pop()
        shape = (len(matrices), n_rows, n_per_row)
        self.target.add(self.name(f"ffn_{part}_exps.weight"), Stacked(matrices), shape, from_fp8=from_fp8)

    def stacked_experts(self, source: str, n_expert: int) -> None:
        """Adds experts whose matrices are stacked already (`SOURCE.gate_proj.weight` and so on).

        Raises:
            FormatError: one is missing, or does not have as many matrices.
        """
        for part in ("gate", "up", "down"):
            name = f"{self.source}{source}.{part}_proj.weight"
            matrix, shape = self.weights.matrix(name), self.weights.shape(name)
            if len(shape) != 3 or shape[0] != n_expert:
                raise FormatError(
                    f"tensor `{name}` has the shape {list(shape)}, and there are {n_expert} experts"
                )
            fp8 = self.weights.is_fp8(name)
            self.target.add(self.name(f"ffn_{part}_exps.weight"), matrix, tuple(shape), from_fp8=fp8)

    def merged_experts(self, gate_up: str, down: str, n_expert: int) -> None:
        """Adds stacked experts from [experts, rows of gate and then of up, columns], and their downs.

        Raises:
            FormatError: one is missing, or does not have as many matrices.
        """
        gate_up, down = self.source + gate_up, self.source + down
        fp8 = self.weights.is_fp8(gate_up)
        both, last = self.weights.matrix(gate_up), self.weights.matrix(down)
        for name, matrix, parts in ((gate_up, both, 2), (down, last, 1)):
            if len(self.weights.shape(name)) != 3 or matrix.n_rows % (parts * n_expert):
                raise FormatError(
                    f"tensor `{name}` has the shape {list(self.weights.shape(name))}, expected one "
                    f"matrix for each of {n_expert} experts"
                )
        n = both.n_rows // (2 * n_expert)
        for i, part in enumerate(("gate", "up")):
            ranges: list[Matrix] = [RowRange(both, (2 * e + i) * n, n) for e in range(n_expert)]
            self._stack(part, ranges, fp8)
        rows = last.n_rows // n_expert
        self._stack("down", [RowRange(last, e * rows, rows) for e in range(n_expert)], fp8)
