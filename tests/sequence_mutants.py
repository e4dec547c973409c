"""Damaged sequence files, one after another in one process: `python sequence_mutants.py MODEL COPY SEED COUNT`.

Each mutant is a saved sequence with bytes or numbers of its header changed or its end cut off; of three two have a
checksum that is right again. Loading it and going on must give finite logits or an error of `ALLOWED`; anything else ends
the process, with the number of the mutant. Prints how many gave logits and how many each error.
"""

import json
import random
import re
import struct
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import xxhash

import ikq

ALLOWED = (ikq.FormatError, ikq.RefusedError, ikq.ShapeError)
NUMBERS = (
    0,
    1,
    2,
    3,
    31,
    32,
    33,
    255,
    256,
    257,
    300,
    1 << 16,
    1 << 31,
    1 << 32,
    (1 << 63) - 1,
    (1 << 64) - 1,
    -1,
    0.5,
)
WORDS = (b"true", b"false", b"null", b"[]", b"{}", b'""', b"[true]")
BAD = (b"\xff\x7f", b"\x80\x7f", b"\xff\xff", b"\x00\x7c", b"\x00\x00\x80\x7f", b"\xff\xff\xff\xff", b"\x00")


def header_end(data):
    return 12 + struct.unpack_from("<I", data, 8)[0]


def changed_header(data, rng):
    """One value of the JSON text is another one; the length is set right."""
    end = header_end(data)
    text = data[12:end]
    values = list(re.finditer(rb"\d+|true|false", text)) or [re.match(b"", text)]
    found = rng.choice(values)
    new = str(rng.choice(NUMBERS)).encode() if rng.random() < 0.8 else rng.choice(WORDS)
    text = text[: found.start()] + new + text[found.end() :]
    if rng.random() < 0.1:
        text = text[: rng.randrange(len(text))]
    return data[:8] + struct.pack("<I", len(text)) + text + data[end:]


def mutant(data, rng):
    """A file without checksum, changed."""
    # the header first, as long as it can be read
    for kind in sorted(rng.randrange(6) for _ in range(rng.choice((1, 1, 2, 4)))):
        if kind == 0:
            data = changed_header(data, rng)
        elif kind == 1:  # any byte of what stands before the pages
            at = rng.randrange(min(header_end(data) + 200, len(data))) if len(data) > 12 else 0
            data = data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
        elif kind == 2:  # what pages and states hold
            at = rng.randrange(len(data) + 1)
            new = rng.choice(BAD) * rng.choice((1, 8, 64))
            data = (data[:at] + new + data[at + len(new) :])[: len(data)]
        elif kind == 3:
            data = data[: rng.randrange(len(data) + 1)]
        elif kind == 4:  # something in between is missing or doubled
            at, n = rng.randrange(len(data) + 1), rng.choice((1, 4, 8, 100))
            data = data[:at] + data[at + n :] if rng.random() < 0.5 else data[: at + n] + data[at:]
        elif len(data) > 12:  # the length of the header
            data = (
                data[:8] + struct.pack("<I", rng.choice((0, 1, 10, 1000, 1 << 20, (1 << 32) - 1))) + data[12:]
            )
    return data


def with_checksum(data, rng):
    if rng.random() < 1 / 3:
        return data + rng.randbytes(rng.choice((8, 8, 0, 3)))
    return data + struct.pack("<Q", xxhash.xxh3_64_intdigest(data))


def main():
    file, copy, seed, count = sys.argv[1:]
    rng = random.Random(f"{seed} {Path(file).name}")
    found = Counter()
    with ikq.Model.load(file, n_ctx=1024, n_threads=1) as model:
        originals = []
        for n in (0, 5, 70, 300, 700):
            sequence = model.new_sequence()
            if n:
                model.step([(sequence, [i * 7 % 500 for i in range(n)], "none")])
            sequence.save(copy)
            data = Path(copy).read_bytes()
            assert with_right_checksum(data)
            originals.append(data[:-8])
            sequence.close()
        for i in range(int(count)):
            sys.stderr.write(f"\r{i}")
            sys.stderr.flush()
            data = mutant(rng.choice(originals), rng)
            Path(copy).write_bytes(with_checksum(data, rng))
            try:
                with model.load_sequence(copy) as sequence:
                    n = sequence.n_past
                    assert len(sequence.tokens) == n
                    (logits,) = model.step([(sequence, [3, 4], "all")])
                    assert np.isfinite(logits).all()
                    sequence.truncate(sequence.rewindable(n // 2))
                    with sequence.fork() as fork:
                        model.step([(fork, [5], "last")])
            except ALLOWED as error:
                found[type(error).__name__] += 1
            else:
                found["logits"] += 1
            # whatever it was, nothing is left of it
            assert model.memory.cache == 0
    sys.stdout.write(json.dumps(found))


def with_right_checksum(data):
    return struct.unpack("<Q", data[-8:])[0] == xxhash.xxh3_64_intdigest(data[:-8])


if __name__ == "__main__":
    main()
