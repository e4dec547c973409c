"""`tekken.json`, the tokenizer of Mistral's newer models: tokens with ranks, behind a block of special ones.

```text
config          pattern, default_vocab_size, default_num_special_tokens, ...
vocab           [{rank, token_bytes (base64)}, ...], of which as many count as the vocabulary has room for
special_tokens  [{rank, token_str}, ...], missing in early files
```

An id is that of a special token, or a rank plus the number of special tokens.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ikq.checkpoint.config import read_json
from ikq.checkpoint.ranks import RankedTokens
from ikq.errors import FormatError

__all__ = ["Tekken", "read_tekken"]

# of files that list none; the others up to their number have names made of their ids
_FIRST_SPECIAL = (
    *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
    *("[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]"),
    *("[PREFIX]", "[MIDDLE]", "[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"),
)
_MOST = 2**24


@dataclass(frozen=True)
class Tekken:
    """A tokenizer.

    Attributes:
        special: Texts of special tokens, by id.
        tokens: The others; their ids are their ranks plus the number of special ones.
        pattern: The regular expression that texts are split by.
    """

    special: list[str]
    tokens: RankedTokens
    pattern: str

    @property
    def roles(self) -> dict[str, int]:
        """Ids of special tokens by what they are for, as the keys of GGUF files name that."""
        ids = {text: i for i, text in enumerate(self.special)}
        names = {"bos": "<s>", "eos": "</s>", "unknown": "<unk>", "padding": "<pad>"}
        found = {role: ids[text] for role, text in names.items() if text in ids}
        # where there is nothing to pad with the end does
        return {"padding": found["eos"], **found} if "eos" in found else found


def read_tekken(path: Path) -> Tekken:
    """Reads a tokenizer.

    Raises:
        FormatError: The file is damaged.
        OSError: It cannot be read.
    """
    whole = read_json(path)
    config = whole.get("config")
    if not isinstance(config, dict) or not isinstance(config.get("pattern"), str):
        raise FormatError(f"{path}: `config` with a `pattern` is missing")
    n_special = _number(path, config, "default_num_special_tokens")
    n = _number(path, config, "default_vocab_size") - n_special
    entries = whole.get("vocab")
    if not isinstance(entries, list) or not 0 < n <= len(entries):
        raise FormatError(f"{path}: `vocab` is no list of {n} tokens or more")
    tokens = [(token, rank) for token, rank in (_token(path, entry) for entry in entries) if rank < n]
    return Tekken(_special(path, whole, n_special), RankedTokens(tokens, str(path)), config["pattern"])


def _number(path: Path, config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if type(value) is not int or not 0 <= value < _MOST:
        raise FormatError(f"{path}: `{key}` is {value!r:.40}, expected a number of tokens")
    return value


def _token(path: Path, entry: object) -> tuple[bytes, int]:
    if (
        isinstance(entry, dict)
        and type(entry.get("rank")) is int
        and isinstance(entry.get("token_bytes"), str)
    ):
        try:
            return base64.b64decode(entry["token_bytes"], validate=True), entry["rank"]
        except (binascii.Error, ValueError):
            pass
    raise FormatError(f"{path}: the token {entry!r:.80} has no bytes in base64 and no rank")


def _special(path: Path, whole: Mapping[str, Any], n: int) -> list[str]:
    entries = whole.get("special_tokens")
    if entries is None:
        entries = [{"rank": i, "token_str": text} for i, text in enumerate(_FIRST_SPECIAL[:n])]
    texts = [f"<SPECIAL_{i}>" for i in range(n)]
    for entry in entries if isinstance(entries, list) else [entries]:
        rank = entry.get("rank") if isinstance(entry, dict) else None
        if type(rank) is not int or not 0 <= rank < n or not isinstance(entry.get("token_str"), str):
            raise FormatError(f"{path}: the special token {entry!r:.80} has no text, or no rank below {n}")
        texts[rank] = entry["token_str"]
    return texts
