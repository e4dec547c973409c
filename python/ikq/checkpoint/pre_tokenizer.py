"""The name of a pre-tokenizer, found by what it does to a text: `recognise`."""

from __future__ import annotations

import functools
from typing import Any

from tokenizers import Regex
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

from ikq.errors import UnsupportedError
from ikq.tokenizer.pre_tokenizers import PRE_TOKENIZERS, PreTokenizer

__all__ = ["PROBE", "recognise", "splits"]

PROBE = (
    "Hello World, I'll they'RE DON'T it's 'Tis we've x'should\n\nif (x == 10) {\r\n\treturn \"a\\n\";  "
    "}   // TODO: fix\n 3 33 333 3333 33333 1,234.56 v2x  7b 0x1F\xb2\u0661\u0662\u0663\u0664 a1b22c333"
    "d4444 \u2163\nCamelCaseWord HTTPServer \xc9t\xe9na\xefve e\u0301te\u0301 \u0baeo\u0bbf \u0939"
    "\u093f\u0928\u094d\u0926\u0940 \u4f60\u597d\uff0c\u4e16\u754c\uff01\u6d4b\u8bd5abc\u65e5\u672c"
    "\u8a9e\u30c6\u30b9\u30c8\u3072\u3089\u304c\u306a \ud55c\uad6d\uc5b4\u3131 \u0e44\u0e17\u0e22 "
    "\u1019\u103c\u1014\u103a \u10d0\u10d1 \u13a0\uab70 \u01c5 \u02b0 \u0627\u0644\u0639\u0631\u0628"
    "\u064a\u0629\u060c \u092a\u0964 $5 +3=8<9>~|`^ #tag @user a.b,c;d!e?f \u2026 \u3002 \u201cquoted"
    "\u201d \u2014 \xab\xbb\n \n  \n    x\n\n\n y/z\n/\n./path/to/file.txt?\n!!\n...\r\n 's'd'm 't 'S'L"
    "L \U0001f600\U0001f468\u200d\U0001f469 \u3105\u3106 \uff65\uff71 tab\tend \xa0nbsp \u2028 line <se"
    "ntinel:12> IMGIMGABZ                     spaces\nthe United States of America on one line 1 2 3\na"
    "bc\n123\n!?\n\xe4\xf6\xfc\n" + " " * 40 + "x" + " " * 600 + "y  "
)
"""A text on which no two of the known pre-tokenizers do the same, unless they do on every text."""


@functools.cache
def splits(rule: PreTokenizer) -> tuple[tuple[int, int], ...]:
    """Where a known rule cuts the probe."""
    parts = [Split(Regex(pattern), "isolated") for pattern in rule.patterns]
    return _cuts(Sequence([*parts, ByteLevel(add_prefix_space=False, use_regex=False)]))


def recognise(pre_tokenizer: Any, *, whole_words: bool, add_bos: bool) -> str:  # noqa: ANN401  # of `tokenizers`
    """The name in `PRE_TOKENIZERS` of a rule that splits text as this one does.

    Args:
        pre_tokenizer: of a tokenizer of the `tokenizers` library.
        whole_words: whether a piece that is a token is taken as it is (`ignore_merges`).
        add_bos: whether prompts begin with BOS; tells rules apart that differ in nothing else.

    Raises:
        UnsupportedError: no known rule does.
    """
    cuts = _cuts(pre_tokenizer)
    names = [
        name
        for name, rule in PRE_TOKENIZERS.items()
        if not rule.raw and rule.whole_words == whole_words and splits(rule) == cuts
    ]
    if not names:
        alike = [n for n, rule in PRE_TOKENIZERS.items() if not rule.raw and splits(rule) == cuts]
        more = f" (but for whole words as {alike[0]} does)" if alike else ""
        raise UnsupportedError(
            f"the tokenizer splits text by a rule that is not known{more}; a wrong one would spoil the text"
        )
    return next((n for n in names if PRE_TOKENIZERS[n].add_bos == add_bos), names[0])


def _cuts(pre_tokenizer: Any) -> tuple[tuple[int, int], ...]:  # noqa: ANN401
    return tuple(span for _, span in pre_tokenizer.pre_tokenize_str(PROBE))
