"""Damaged models, one after another in one process: `python engine_mutants.py FILE COPY SEED COUNT`.

Each mutant is the file with a few bytes changed (metadata values, tensor infos, weights) or its end cut off, written
over COPY. Loading and running it must give finite logits or one of the errors of `ALLOWED`; anything else ends the
process, with the number of the mutant. Prints how many gave logits and how many each error.
"""

import json
import random
import struct
import sys
from collections import Counter
from pathlib import Path

import numpy as np

import ikq

ALLOWED = (ikq.FormatError, ikq.ShapeError, ikq.UnsupportedError, OSError)
INTEGERS = (
    0,
    1,
    2,
    3,
    5,
    31,
    255,
    256,
    1 << 16,
    1 << 31,
    (1 << 32) - 1,
    1 << 40,
    (1 << 63) - 1,
    (1 << 64) - 1,
)
FLOATS = (0.0, -1.0, 1e-30, 1e30, float("nan"), float("inf"))
BAD_WEIGHTS = (b"\xff\x7f", b"\x80\x7f", b"\xff\xff", b"\x7f\x7f", b"\x00\x80")


class Mutator:
    """Changes of one file, as `(offset, bytes)`, and where to cut it."""

    def __init__(self, original):
        self.original = original
        with ikq.GGUFReader(sys.argv[1]) as reader:
            keys = [k for k in reader.metadata if not k.startswith("tokenizer.")]
            self.keys = [self.find(k) for k in keys]
            self.tensors = [(self.find(n), len(t.shape)) for n, t in reader.tensors.items()]
            self.n_header = max(end for end, _ in self.tensors) + 64

    def find(self, name):
        """Where the bytes behind a name begin."""
        encoded = struct.pack("<Q", len(name)) + name.encode()
        return self.original.index(encoded) + len(encoded)

    def number(self, rng):
        if rng.random() < 0.2:
            return struct.pack(rng.choice(("<f", "<d")), rng.choice(FLOATS))
        n = rng.choice(INTEGERS)
        return struct.pack("<Q", n) if rng.random() < 0.3 else struct.pack("<I", n & 0xFFFFFFFF)

    def change(self, rng):
        kind = rng.randrange(8)
        if kind <= 1:  # a value, mostly four bytes behind its type
            return rng.choice(self.keys) + 4, self.number(rng)
        if kind == 2:  # its type
            return rng.choice(self.keys), struct.pack("<I", rng.randrange(14))
        if kind == 3:  # number of axes, axes, type, offset of a tensor
            end, n_axes = rng.choice(self.tensors)
            field = rng.randrange(n_axes + 3)
            if field == 0:
                return end, struct.pack("<I", rng.randrange(6))
            if field <= n_axes:
                return end + 4 + 8 * (field - 1), struct.pack("<Q", rng.choice(INTEGERS))
            if field == n_axes + 1:
                return end + 4 + 8 * n_axes, struct.pack("<I", rng.randrange(160))
            return end + 8 + 8 * n_axes, struct.pack(
                "<Q", rng.choice((*INTEGERS, 32 * rng.randrange(1 << 16)))
            )
        if kind == 4:  # any byte of the header
            return rng.randrange(self.n_header), bytes([rng.randrange(256)])
        if kind == 5:  # a letter of a name
            end, _ = rng.choice(self.tensors)
            return end - 1 - rng.randrange(8), rng.choice(b"abegknquvw_.01").to_bytes(1, "little")
        start = rng.randrange(self.n_header, len(self.original) - 64)
        return start, rng.choice(BAD_WEIGHTS) * rng.choice((1, 32))

    def mutant(self, rng):
        changes = [self.change(rng) for _ in range(rng.choice((1, 1, 1, 2, 4)))]
        cut = rng.randrange(len(self.original)) if rng.random() < 0.05 else len(self.original)
        return changes, cut


def run(path, rng):
    """Logits of a few tokens.

    Raises:
        AssertionError: they are not what logits are.
    """
    options = {"n_ctx": 16, "n_threads": 1, "n_ubatch": rng.choice((1, 8)), "compute": rng.choice(("auto", "f32")),
               "mmap": rng.choice(("on", "off"))}  # fmt: skip
    with ikq.Model.load(path, **options) as model:
        n_vocab = model.spec.n_vocab
        found = model.logits([0, n_vocab - 1, n_vocab // 2])
    assert found.shape == (3, n_vocab)
    assert np.isfinite(found).all()


def main():
    file, copy, seed, count = sys.argv[1:]
    original = Path(file).read_bytes()
    mutator = Mutator(original)
    found = Counter()
    with Path(copy).open("w+b", buffering=0) as out:
        out.write(original)
        for i in range(int(count)):
            rng = random.Random(f"{seed} {Path(file).name} {i}")
            changes, cut = mutator.mutant(rng)
            sys.stderr.write(f"\r{i}")
            sys.stderr.flush()
            for start, data in changes:
                out.seek(start)
                out.write(data[: len(original) - start])
            out.truncate(cut)
            try:
                run(copy, rng)
            except ALLOWED as error:
                found[type(error).__name__] += 1
            else:
                found["logits"] += 1
            for start, data in changes:
                out.seek(start)
                out.write(original[start : start + len(data)])
            if cut < len(original):
                out.seek(cut)
                out.write(original[cut:])
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
