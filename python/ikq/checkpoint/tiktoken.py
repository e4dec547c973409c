"""Tokenizers as tiktoken stores them: ranks in one file, the splitting rule in the code beside it.

A line of the file is a token in base64, a space and its rank, which is its id. How text is split stands in
`tokenization_*.py` only, as the regular expression `pat_str`. That code is read, never run: only texts that
stand there as such, alone or put together with `+` or `"|".join([...])`, are taken.
"""

from __future__ import annotations

import ast
import base64
import binascii
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ikq.checkpoint.config import read_limited
from ikq.checkpoint.ranks import RankedTokens
from ikq.errors import FormatError, UnsupportedError

__all__ = ["find_ranks", "read_pattern", "read_ranks", "reserved_names"]

_MAX_BYTES, _MAX_CODE_BYTES = 200_000_000, 1_000_000
_PATTERN_NAMES = ("pat_str", "PAT_STR")
_MOONSHOT, _N_RESERVED = "TikTokenTokenizer", 258


def find_ranks(folder: Path) -> Path | None:
    """The file of ranks of a folder: `tiktoken.model`, `*.tiktoken`, or `tokenizer.model` of this form."""
    for path in (folder / "tiktoken.model", *sorted(folder.glob("*.tiktoken")), folder / "tokenizer.model"):
        if not path.exists():
            continue
        if path.name != "tokenizer.model":
            return path
        # opening a pipe would wait for its other end
        if not path.is_file():
            continue
        with path.open("rb") as f:
            if _line(f.readline(4096)) is not None:
                return path
    return None


def read_ranks(path: Path) -> RankedTokens:
    """The tokens of a file of ranks.

    Raises:
        FormatError: It is none, or is damaged.
        OSError: It cannot be read.
    """
    found = []
    for number, line in enumerate(read_limited(path, _MAX_BYTES).splitlines(), 1):
        if not line.strip():
            continue
        entry = _line(line)
        if entry is None:
            raise FormatError(f"{path}, line {number}: {line!r:.60} is not a token in base64 and its rank")
        found.append(entry)
    return RankedTokens(found, str(path))


def _line(line: bytes) -> tuple[bytes, int] | None:
    parts = line.split()
    if len(parts) != 2 or not parts[1].isdigit() or len(parts[1]) > 9:
        return None
    try:
        return base64.b64decode(parts[0], validate=True), int(parts[1])
    except binascii.Error:
        return None


def read_pattern(folder: Path, options: Mapping[str, Any]) -> str:
    """The regular expression that texts are split by, from the tokenizer's code.

    Args:
        folder: Of the checkpoint.
        options: Of `tokenizer_config.json`, which may name the code.

    Raises:
        UnsupportedError: There is no code, or it does not say so in plain words.
        FormatError: It is no Python.
        OSError: It cannot be read.
    """
    files = _code(folder, options)
    if not files:
        raise UnsupportedError(
            f"{folder}: how this tokenizer splits text stands in tokenization_*.py of the checkpoint only, "
            "which is missing; add it, or save the tokenizer with `transformers`, which writes tokenizer.json"
        )
    found = {pattern for path in files for pattern in _patterns(path)}
    if len(found) != 1:
        raise UnsupportedError(
            f"{files[0]}: {len(found)} rules for splitting text (`pat_str`) stand there, expected one; save "
            "the tokenizer with `transformers`, which writes tokenizer.json"
        )
    return found.pop()


def _code(folder: Path, options: Mapping[str, Any]) -> list[Path]:
    """Files of the tokenizer's code: the one that is named, else all that look so."""
    named = options.get("auto_map")
    named = named.get("AutoTokenizer") if isinstance(named, dict) else None
    for entry in named if isinstance(named, list) else [named]:
        # `module.Class`; a name of another repository or folder is not followed
        if isinstance(entry, str) and entry.count(".") == 1:
            path = folder / f"{entry.partition('.')[0]}.py"
            if path.parent == folder and path.exists():
                return [path]
    return sorted(folder.glob("tokenization_*.py"))


def _patterns(path: Path) -> list[str]:
    """Texts that a file's code gives the names of patterns."""
    try:
        tree = ast.parse(read_limited(path, _MAX_CODE_BYTES))
        found = []
        for node in ast.walk(tree):
            targets = node.targets if isinstance(node, ast.Assign) else []
            if any(isinstance(t, ast.Name) and t.id in _PATTERN_NAMES for t in targets):
                assert isinstance(node, ast.Assign)
                found.append(_text(node.value))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
        raise FormatError(f"{path} is no Python that can be read: {e}") from None
    return [text for text in found if text is not None]


def _text(node: ast.expr) -> str | None:
    """A text that stands in the code as such, or put together of such."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _text(node.left), _text(node.right)
        return None if left is None or right is None else left + right
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "join"
        and len(node.args) == 1
        and isinstance(node.args[0], (ast.List, ast.Tuple))
    ):
        between = _text(node.func.value)
        parts = [_text(part) for part in node.args[0].elts]
        whole = [part for part in parts if part is not None]
        return None if between is None or len(whole) < len(parts) else between.join(whole)
    return None


def reserved_names(options: Mapping[str, Any], first: int, n_vocab: int) -> dict[int, str]:
    """Names of tokens behind the ranks that no file has, since the tokenizer's code makes them.

    Args:
        options: Of `tokenizer_config.json`, whose class decides.
        first: The first id behind the ranks.
        n_vocab: Rows of the embedding.
    """
    if options.get("tokenizer_class") != _MOONSHOT:
        return {}
    return {i: f"<|reserved_token_{i}|>" for i in range(first, min(first + _N_RESERVED, n_vocab))}
