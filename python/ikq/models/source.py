"""What architectures are made from: `Source`, a file's keys and tensors, and `Block`, a layer's part."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

from ikq.errors import FormatError
from ikq.models.keys import Keys
from ikq.models.spec import Layer, Linear, ModelSpec, Nextn
from ikq.models.tensors import Tensors

__all__ = ["Block", "Source"]

_BLOCK_NAME = re.compile(r"blk\.(\d{1,9})\.")


class Source:
    """A file as an architecture sees it.

    Attributes:
        keys: metadata.
        tensors: names and shapes.
        part: which spec is wanted, the model's or that of its head that predicts further tokens.
        n_embd: length of the residual stream.
        n_block: blocks of the file.
        n_layer: blocks of the forward pass: those at the end that predict further tokens are left out.
        n_ctx_train: trained context.
        yarn_truncate: whether YaRN's bounds are rounded.
        notes: for `ModelSpec.notes`.
    """

    def __init__(
        self,
        keys: Keys,
        tensors: Tensors,
        *,
        yarn_truncate: bool,
        part: Literal["model", "head"] = "model",
    ) -> None:
        """Reads what all architectures have.

        Raises:
            FormatError: a key is missing or does not fit the tensors.
        """
        self.keys = keys
        self.tensors = tensors
        self.yarn_truncate = yarn_truncate
        self.part = part
        self.notes: list[str] = []
        self.n_embd = tensors.ne("token_embd.weight")[0]
        keys.integer("embedding_length")
        keys.check("embedding_length", self.n_embd, "token_embd.weight")
        self.n_ctx_train = keys.integer("context_length", low=1)
        # every block has a tensor, so that no number of blocks is believed that the file does not hold
        self.n_block = keys.integer("block_count", low=1)
        if self.n_block > len(tensors):
            raise keys.wrong("block_count", self.n_block, f"at most {len(tensors)}, the number of tensors")
        n_extra = keys.integer("nextn_predict_layers", 0)
        if n_extra >= self.n_block:
            raise keys.wrong("nextn_predict_layers", n_extra, f"less than the {self.n_block} blocks")
        self.n_layer = self.n_block - n_extra
        self._per_block: dict[tuple[str, int | None], tuple[int, ...]] = {}
        self._flags: dict[str, tuple[bool, ...] | None] = {}

    def per_block(self, key: str, default: int | None = None) -> tuple[int, ...]:
        """One positive number per block."""
        values = self._per_block.get((key, default))
        if values is None:
            values = self.keys.integers(key, self.n_block, default, low=1)
            self._per_block[key, default] = values
        return values

    def flags(self, key: str) -> tuple[bool, ...] | None:
        """One truth value per block, `None` where the key is missing or holds no array."""
        if key not in self._flags:
            self._flags[key] = self.keys.flags(key, self.n_block)
        return self._flags[key]

    def model(
        self,
        make_layer: Callable[[Block], Layer],
        *,
        embd_scale: float = 1.0,
        logit_scale: float = 1.0,
        norm_kind: Literal["rms", "layer"] = "rms",
    ) -> ModelSpec:
        """The part that is wanted, from a function that makes a layer.

        Args:
            make_layer: gives the layer of a block.
            embd_scale: factor of embeddings.
            logit_scale: factor of logits.
            norm_kind: of the residual stream's norms.

        Raises:
            FormatError: keys and tensors do not fit together.
        """
        keys, tensors = self.keys, self.tensors
        ne = tensors.ne("token_embd.weight")
        n_vocab = ne[1]
        if ne[2:] != (1, 1):
            raise tensors.wrong("token_embd.weight", "a matrix")
        keys.check("vocab_size", n_vocab, "token_embd.weight")
        token_embd, output_norm = "token_embd.weight", tensors.vector("output_norm.weight", self.n_embd)
        output: Linear | None
        nextn: Nextn | None = None
        if self.part == "head":
            blocks = [Block(self, self.n_layer)]
            token_embd, output_norm, output, nextn = self._head(blocks[0], n_vocab, token_embd, output_norm)
        else:
            tied = "output.weight" not in tensors
            output = tensors.linear("token_embd" if tied else "output", self.n_embd, n_vocab)
            blocks = [Block(self, i) for i in range(self.n_layer)]
        layers = tuple(make_layer(block) for block in blocks)
        notes = self._unused_notes() if self.part == "model" else []
        return ModelSpec(
            architecture=keys.architecture,
            n_vocab=n_vocab,
            n_embd=self.n_embd,
            n_ctx_train=self.n_ctx_train,
            norm_eps=keys.number(
                f"attention.layer_norm{'_rms' if norm_kind == 'rms' else ''}_epsilon", positive=True
            ),
            norm_kind=norm_kind,
            token_embd=token_embd,
            output_norm=output_norm,
            output=output,
            layers=layers,
            embd_scale=embd_scale,
            logit_scale=logit_scale,
            final_softcap=keys.number("final_logit_softcapping", 0.0) or None,
            nextn=nextn,
            notes=tuple(dict.fromkeys([*self.notes, *notes])),
        )

    @property
    def has_head(self) -> bool:
        """Whether the file holds a head that predicts further tokens, of a form that is known."""
        if self.n_layer == self.n_block:
            return False
        block = Block(self, self.n_layer)
        return block.has("nextn.eh_proj.weight") and not block.has("layer_output_norm.weight")

    def _head(
        self, block: Block, n_vocab: int, token_embd: str, output_norm: str
    ) -> tuple[str, str, Linear | None, Nextn]:
        """Embedding, last norm, projection and input of the head; it shares what it has no tensor for."""
        tensors, n_embd = self.tensors, self.n_embd
        if block.has("nextn.embed_tokens.weight"):
            token_embd = block.name("nextn.embed_tokens.weight")
            if tensors.ne(token_embd) != (n_embd, n_vocab, 1, 1):
                raise tensors.wrong(token_embd, f"{n_vocab} rows of {n_embd}")
        if block.has("nextn.shared_head_norm.weight"):
            output_norm = block.norm("nextn.shared_head_norm")
        output = None
        if block.has("nextn.shared_head_head.weight"):
            output = tensors.linear(block.name("nextn.shared_head_head"), n_embd, n_vocab)
        nextn = Nextn(
            enorm=block.norm("nextn.enorm"),
            hnorm=block.norm("nextn.hnorm"),
            eh_proj=tensors.linear(block.name("nextn.eh_proj"), 2 * n_embd, n_embd),
        )
        return token_embd, output_norm, output, nextn

    def _unused_notes(self) -> list[str]:
        unused = []
        for name in sorted(self.tensors.unused):
            block = _BLOCK_NAME.match(name)
            index = int(block[1]) if block else -1
            if index >= self.n_block:
                raise self.keys.wrong(
                    "block_count", self.n_block, f"more than {index}: there is tensor `{name}`"
                )
            if index < self.n_layer:
                unused.append(name)
        notes = []
        if self.n_layer < self.n_block:
            n = self.n_block - self.n_layer
            notes.append(f"the last {n} of {self.n_block} blocks predict further tokens{self._head_note(n)}")
        if unused:
            some = ", ".join(unused[:4]) + (", ..." if len(unused) > 4 else "")
            notes.append(f"{len(unused)} tensors of the file have no part in this architecture: {some}")
        return notes

    def _head_note(self, n: int) -> str:
        """What becomes of these blocks."""
        if not self.has_head:
            return " and are not run"
        return " for speculation (mtp)" + ("" if n == 1 else ", of which only the first is used")


class Block:
    """One layer's keys and tensors.

    Attributes:
        source: the file.
        index: the layer.
    """

    def __init__(self, source: Source, index: int) -> None:
        self.source = source
        self.index = index

    @property
    def keys(self) -> Keys:
        """Metadata."""
        return self.source.keys

    @property
    def tensors(self) -> Tensors:
        """Names and shapes."""
        return self.source.tensors

    @property
    def n_embd(self) -> int:
        """Length of the residual stream."""
        return self.source.n_embd

    def name(self, part: str) -> str:
        """A tensor of this block."""
        return f"blk.{self.index}.{part}"

    def has(self, part: str) -> bool:
        """Whether the block has the tensor."""
        return self.name(part) in self.tensors

    def integer(self, key: str, default: int | None = None) -> int:
        """A positive number that may differ from block to block."""
        return self.source.per_block(key, default)[self.index]

    def flag(self, key: str) -> bool | None:
        """This block's truth value, `None` where the key is missing or holds no array."""
        flags = self.source.flags(key)
        return None if flags is None else flags[self.index]

    def note(self, text: str) -> None:
        """Says what was assumed."""
        self.source.notes.append(text)

    def norm(self, part: str) -> str:
        """A norm over the residual stream."""
        return self.tensors.vector(self.name(f"{part}.weight"), self.n_embd)

    def divide(self, part: str, n: int, key: str, count: int) -> int:
        """Length of each of `count` heads that share `n` rows or columns of a tensor.

        Raises:
            FormatError: they do not come out even.
        """
        if n % count or not n:
            raise FormatError(
                f"architecture `{self.keys.architecture}`: {n} elements of tensor `{self.name(part)}` "
                f"cannot be divided among {count} heads (key `{self.keys.full_name(key)}`)"
            )
        return n // count
