"""Unigram models for tests: metadata, a slow search to compare with, tables of replacements."""

import itertools

from small_vocabs import BYTE, CONTROL, NORMAL, UNKNOWN, USER, named

SPACE = "\u2581"
SPECIAL = [("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL), ("<tool>", USER)]


def unigram(words, *, bytes_too=False, charsmap=b"", **changes):
    """Metadata: `SPECIAL`, byte tokens if wanted, then words with scores."""
    pieces = [*SPECIAL, *((f"<0x{b:02X}>", BYTE) for b in range(256 if bytes_too else 0))]
    keys = {
        "model": "t5",
        "tokens": [text for text, _ in pieces] + list(words),
        "token_type": [kind for _, kind in pieces] + [NORMAL] * len(words),
        "scores": [0.0] * len(pieces) + list(words.values()),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
        "add_space_prefix": False,
        "remove_extra_whitespaces": False,
        "precompiled_charsmap": list(charsmap) if charsmap else None,
    }
    return named({**keys, **changes})


def slow_split(text, words):
    """Parts of a text with the largest sum of scores; `None` for a run that no word covers."""
    unknown = min(words.values(), default=0.0) - 10.0
    best = [(0.0, 0, False)] + [None] * len(text)
    for start in range(len(text)):
        ends = [end for end in range(start + 1, len(text) + 1) if text[start:end] in words]
        steps = [(end, words[text[start:end]], True) for end in ends]
        if start + 1 not in ends:
            steps.append((start + 1, unknown, False))
        for end, score, known in steps:
            total = best[start][0] + score
            if best[end] is None or total > best[end][0]:
                best[end] = total, start, known
    parts, end = [], len(text)
    while end:
        _, start, known = best[end]
        parts.append((known, text[start:end]))
        end = start
    found = []
    for known, run in itertools.groupby(reversed(parts), key=lambda part: part[0]):
        some = [part for _, part in run]
        found += [(part, True) for part in some] if known else [("".join(some), False)]
    return found


def table(replacements):
    """A table of replacements as SentencePiece writes it, with every node for itself."""
    values, places = b"", {}
    for key, new in replacements.items():
        places[key.encode()] = len(values)
        values += new.encode() + b"\0"
    prefixes = {key[:n] for key in places for n in range(len(key) + 1)}
    units, used, bases = {0: 0}, {0}, set()
    todo = [(b"", 0)]
    while todo:
        prefix, place = todo.pop()
        labels = [
            key[-1] for key in sorted(prefixes) if len(key) == len(prefix) + 1 and key.startswith(prefix)
        ]
        wanted = [*labels, *([0] if prefix in places else [])]
        # two nodes with one base would have each other's children
        free = (b for b in itertools.count(1) if b not in bases)
        base = next(b for b in free if not any((b ^ c) in used for c in wanted))
        bases.add(base)
        used |= {base ^ c for c in wanted}
        offset = place ^ base
        units[place] |= offset << 10 if offset < 1 << 21 else (offset >> 8) << 10 | 1 << 9
        if prefix in places:
            units[place] |= 1 << 8
            units[base] = places[prefix] | 1 << 31
        for c in labels:
            units[base ^ c] = c
            todo.append((prefix + bytes([c]), base ^ c))
    n = -(-(max(units) + 1) // 256) * 256  # so that every child of a node has a place
    array = b"".join(units.get(i, 0).to_bytes(4, "little") for i in range(n))
    return len(array).to_bytes(4, "little") + array + values
