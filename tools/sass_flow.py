"""Which way a warp takes through a loop in machine code, and what it issues there: of all ways the one that does most of what the loop is
for (multiplies, loads), and of these the shortest. Loops inside count as often as a caller says that they turn."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

Trips = Callable[["Way"], float]
"""How often an inner loop turns, by what is issued in a turn."""


@dataclass(frozen=True)
class Way:
    """What is issued on a way: instructions, with how often each is."""

    issued: tuple[tuple[str, float], ...] = ()

    def count(self, pattern: str = "") -> float:
        """Instructions that match; all but NOPs if there is no pattern."""
        wanted = re.compile(pattern)
        return sum(n for x, n in self.issued if not x.startswith("NOP") and wanted.search(x))

    def times(self, n: float) -> Way:
        return Way(tuple((x, n * m) for x, m in self.issued))

    def then(self, other: Way) -> Way:
        return Way(self.issued + other.issued)

    def classes(self) -> dict[str, float]:
        """Instructions by the first part of their names, the most frequent first."""
        found: dict[str, float] = {}
        for x, n in self.issued:
            name = re.sub(r"^@!?U?P\w+\s+", "", x).split()[0].split(".")[0]
            found[name] = found.get(name, 0.0) + n
        return dict(sorted(found.items(), key=lambda item: -item[1]))


@dataclass
class Block:
    """Instructions without a branch among them, and where they may go on."""

    issued: list[str] = field(default_factory=list)
    goes_to: set[int] = field(default_factory=set)


def blocks_of(code: list[str]) -> list[Block]:
    """Of a kernel, in order. Calls come back, and what diverges is not followed."""
    at: dict[str, int] = {}
    blocks = [Block()]
    jumps: list[tuple[int, str]] = []
    is_open = True  # the last block goes on behind what it has
    for line in code:
        if line.endswith(":"):
            if blocks[-1].issued or not is_open:
                if is_open:
                    blocks[-1].goes_to.add(len(blocks))
                blocks.append(Block())
            is_open = True
            at[line[:-1]] = len(blocks) - 1
            continue
        if not is_open or (blocks[-1].issued and ends(blocks[-1].issued[-1])):
            if is_open:
                blocks[-1].goes_to.add(len(blocks))
            blocks.append(Block())
            is_open = True
        blocks[-1].issued.append(line)
        target = target_of(line)
        if target:
            jumps.append((len(blocks) - 1, target))
        is_open = not always_leaves(line)
    for block, label in jumps:
        if label in at:
            blocks[block].goes_to.add(at[label])
    return blocks


def target_of(line: str) -> str | None:
    """The label to which an instruction may go."""
    found = re.search(r"\b(BRA|CALL)\S*\s.*`\((\.L_x_\d+)\)", line)
    if not found or re.search(r"BRA\.(DIV|CONV)", line):
        return None
    # a call under a condition is how loops are left that end a function
    return found[2] if found[1] == "BRA" or line.startswith("@") else None


def ends(line: str) -> bool:
    """Whether a block ends behind it."""
    return target_of(line) is not None or always_leaves(line)


def always_leaves(line: str) -> bool:
    """Whether nothing behind it follows."""
    if re.match(r"(EXIT|RET|BRX)\b", line):
        return True
    return re.match(r"BRA(\.U)?\s+`\(", line) is not None


@dataclass
class Loop:
    """A header, and all blocks from which it is reached again."""

    header: int
    body: set[int]


def loops_of(blocks: list[Block]) -> list[Loop]:
    """All loops, the smallest first."""
    before: list[set[int]] = [set() for _ in blocks]
    for i, block in enumerate(blocks):
        for to in block.goes_to:
            before[to].add(i)
    back: set[tuple[int, int]] = set()
    state = [0] * len(blocks)  # 1: on the way from the entry, 2: done
    stack: list[tuple[int, list[int]]] = [(0, sorted(blocks[0].goes_to))]
    state[0] = 1
    while stack:
        at, left = stack[-1]
        if not left:
            state[at] = 2
            stack.pop()
            continue
        to = left.pop()
        if state[to] == 1:
            back.add((at, to))
        elif state[to] == 0:
            state[to] = 1
            stack.append((to, sorted(blocks[to].goes_to)))
    found: dict[int, set[int]] = {}
    for source, header in back:
        body, left = found.setdefault(header, {header}), [source]
        while left:
            at = left.pop()
            if at not in body:
                body.add(at)
                left += before[at]
    return sorted((Loop(h, b) for h, b in found.items()), key=lambda loop: len(loop.body))


def way_through(blocks: list[Block], loop: Loop, does: str, trips: Trips) -> Way:
    """A turn of a loop.

    Args:
        does: A pattern of the instructions that it is there for.
        trips: Of loops inside.
    """
    inside = [x for x in loops_of(blocks) if x.body < loop.body and x.header != loop.header]
    outermost = [x for x in inside if not any(x.body < y.body for y in inside)]
    of_loop = {at: x for x in outermost for at in x.body}
    ways: dict[int, Way] = {}
    for x in outermost:
        turn = way_through(blocks, x, does, trips)
        ways[x.header] = turn.times(trips(turn))

    # the best way from a block to the header; None: there is none
    best: dict[int, Way | None] = {}

    def merit(way: Way) -> tuple[float, float]:
        return way.count(does), -way.count()

    def way_from(at: int) -> Way | None:
        if at in best:
            return best[at]
        best[at] = None
        inner = of_loop.get(at)
        own = ways[inner.header] if inner else Way(tuple((x, 1.0) for x in blocks[at].issued))
        outs = {to for i in (inner.body if inner else (at,)) for to in blocks[i].goes_to}
        outs -= inner.body if inner else set()
        further = [Way() if to == loop.header else way_from(to) for to in outs if to in loop.body]
        found = max((w for w in further if w is not None), key=merit, default=None)
        best[at] = None if found is None else own.then(found)
        return best[at]

    found = way_from(loop.header)
    if found is None:
        raise ValueError("a loop that does not come back")
    return found


def turn_of(code: list[str], does: str, trips: Trips) -> Way:
    """A turn of the loop, with all loops in it, that does most."""
    blocks = blocks_of(code)
    turns = [
        way_through(blocks, loop, does, trips)
        for loop in loops_of(blocks)
        if any(re.search(does, x) for at in loop.body for x in blocks[at].issued)
    ]
    if not turns:
        raise ValueError(f"no loop does {does}")
    return max(turns, key=lambda way: (way.count(does), -way.count()))
