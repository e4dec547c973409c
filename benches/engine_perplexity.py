"""Perplexity of a model in ikq's engine: windows of 512 tokens, the second half of each scored.

    python benches/engine_perplexity.py model.gguf --tokenizer FOLDER/tokenizer.json --text heldout.txt

The text is tokenized as it is (no escapes, no first token), cut into windows, the rest dropped; every window starts
from an empty cache; tokens 257 to 511 are scored. The definition is that of llama-perplexity with `-c 512`.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import numpy as np

import ikq


def tokenize(tokenizer: Path, text: Path) -> list[int]:
    """Token ids of a text as it is."""
    from tokenizers import Tokenizer  # only these benches need the package

    ids: list[int] = (
        Tokenizer.from_file(str(tokenizer)).encode(text.read_text(), add_special_tokens=False).ids
    )
    return ids


def perplexity(model: ikq.Model, tokens: list[int], n_windows: int | None = None) -> float:
    """Perplexity of `tokens` in windows of 512 (the first `n_windows` of them)."""
    n = len(tokens) // 512 if n_windows is None else min(n_windows, len(tokens) // 512)
    loss, scored = 0.0, 0
    for i in range(n):
        window = tokens[512 * i : 512 * (i + 1)]
        logits = model.logits(window)[256:511].astype(np.float64)
        targets = window[257:512]
        top = logits.max(axis=1, keepdims=True)
        log_sum = np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0]
        loss += float((log_sum - logits[np.arange(255), targets]).sum())
        scored += 255
    return math.exp(loss / scored)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--windows", type=int)
    parser.add_argument("--compute", choices=["auto", "f32"], default="auto")
    parser.add_argument("--cache", default=None, help="type of the cache; f32 with --compute f32")
    parser.add_argument("--expect", type=float, help="what it should be")
    parser.add_argument(
        "--within", type=float, default=0.001, help="largest departure from --expect, relative"
    )
    args = parser.parse_args()
    cache = args.cache or ("f32" if args.compute == "f32" else "f16")
    tokens = tokenize(args.tokenizer, args.text)
    held = True
    for path in args.models:
        options = {"cache_type_k": cache, "cache_type_v": cache, "compute": args.compute}
        with ikq.Model.load(path, n_ctx=512, **options) as model:
            found = perplexity(model, tokens, args.windows)
        print(f"{path.name} {found:.5f}", flush=True)
        held &= args.expect is None or abs(found / args.expect - 1) <= args.within
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
