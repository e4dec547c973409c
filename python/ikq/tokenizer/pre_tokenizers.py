"""Pre-tokenizers of BPE by the name in `tokenizer.ggml.pre`: ONE table.

A name stands for a list of patterns. Each one splits what the ones before it left: a match is a piece,
and so is the text between two matches. The patterns are those of the models' own tokenizers where
these are known; other engines approximate some of them (letters by case, for example) because their
regular expressions know less of Unicode.

Patterns are in the syntax of Oniguruma.
"""

from __future__ import annotations

from typing import NamedTuple

from ikq.errors import UnsupportedError

__all__ = ["PRE_TOKENIZERS", "PreTokenizer", "pre_tokenizer"]


class PreTokenizer(NamedTuple):
    """How text is split before merging.

    Attributes:
        patterns: Regular expressions, applied one after the other.
        whole_words: A piece that is a token is taken as it is, whatever the merges say.
        add_bos: Prompts begin with BOS where the file does not say.
        raw: Tokens are plain text with U+2581 for spaces and byte tokens for what they lack, as in
            SentencePiece; otherwise each byte is a character.
    """

    patterns: tuple[str, ...]
    whole_words: bool = False
    add_bos: bool = False
    raw: bool = False


_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_PUNCTUATION = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_LINES = r"\s*[\r\n]+"
_SPACES = r"\s+(?!\S)|\s+"
_DIGIT, _UP_TO_3_DIGITS = r"\p{N}", r"\p{N}{1,3}"
_3_DIGITS_FROM_THE_RIGHT = r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
_CJK = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_DEEPSEEK_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"


def _cl100k(
    number: str, *, first: str = _CONTRACTION, word: str = _WORD, punctuation: str = _PUNCTUATION
) -> str:
    """Words with one character before them, as in cl100k."""
    return "|".join((first, word, number, punctuation, _LINES, _SPACES))


def _o200k(number: str, contraction: str, *, line_ends: str = r"[\r\n/]*", without: str = "") -> str:
    """As `_cl100k`, but a word ends where upper case follows lower case."""
    head = r"[^\r\n\p{L}\p{N}]?"
    upper = rf"[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}{without}]"
    lower = rf"[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}{without}]"
    return "|".join(
        (
            f"{head}{upper}*{lower}+{contraction}",
            f"{head}{upper}+{lower}*{contraction}",
            number,
            rf" ?[^\s\p{{L}}\p{{N}}]+{line_ends}",
            _LINES,
            _SPACES,
        )
    )


def _deepseek(line_ends: str = rf"[\r\n]*|{_LINES}") -> str:
    """Punctuation sticks to the Latin word behind it."""
    return (
        r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
        rf"| ?[\p{{P}}\p{{S}}]+{line_ends}|{_SPACES}"
    )


# the letters with case of Unicode 11 without Georgian, as the model's tokenizer lists them
_DEEPSEEK_LLM_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af"
    "\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5"
    "\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba"
    "\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45"
    "\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe"
    "\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc"
    "\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3"
    "\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06"
    "\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3"
    "\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df"
    "\U0001e900-\U0001e943"
)
_AFMOE_SCRIPTS = (
    "[\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf"
    "\u0e40-\u0e7f\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af"
    "\u1100-\u11ff]+"
)
_YOUTU_SCRIPTS = (
    "[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c"
    "\u3001-\u303f\ufe30-\ufe4f]+|[\u3105-\u312f]+|" + _CJK
)
_JAIS2_SPACES = "|".join(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4, "1,2"))
_KIMI_NO_HAN = r"&&[^\p{Han}]"
_LLAMA3, _QWEN2 = (_cl100k(_UP_TO_3_DIGITS),), (_cl100k(_DIGIT),)
_DEEPSEEK3 = (_UP_TO_3_DIGITS, _CJK, _deepseek())

_TABLE: dict[str, PreTokenizer] = {
    "default": PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    "gpt-2 phi-2 mpt olmo jais trillion granite-docling exaone4 gigachat a.x-4.0 mellum modern-bert"
    " roberta-bpe jina-es jina-de jina-v1-en jina-v2-es jina-v2-de jina-v2-code": PreTokenizer((_GPT2,)),
    "starcoder refact command-r cohere2_moe smollm codeshell exaone minerva-7b mellum2": PreTokenizer(
        (_DIGIT, _GPT2)
    ),
    "falcon": PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
    "bloom poro-chat gpt3-finnish": PreTokenizer((_BLOOM,)),
    "viking": PreTokenizer((_BLOOM, _DIGIT)),
    "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano": PreTokenizer(
        _LLAMA3, whole_words=True, add_bos=True
    ),
    "glm4 glm5": PreTokenizer(_LLAMA3, whole_words=True),
    "chatglm-bpe dbrx smaug-bpe": PreTokenizer(_LLAMA3),
    "jais-2": PreTokenizer((_LLAMA3[0].replace(_SPACES, rf"{_JAIS2_SPACES}|\s"),)),
    "qwen2 deepseek-r1-qwen stablelm2 hunyuan megrez solar-open grok-2 kormo openpangu f2llmv2": PreTokenizer(
        _QWEN2
    ),
    "laguna": PreTokenizer((r"[^\n]+|\n+", *_QWEN2), whole_words=True, add_bos=True),
    "qwen35": PreTokenizer(
        (
            _cl100k(
                _DIGIT,
                word=r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
                punctuation=r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
            ),
        )
    ),
    "ufakzeka": PreTokenizer((_cl100k(_DIGIT).removeprefix(_CONTRACTION + "|"),)),
    "minicpm5": PreTokenizer((_UP_TO_3_DIGITS, _cl100k(r"\p{N}+")), whole_words=True),
    "seed-coder": PreTokenizer((_cl100k(_DIGIT, punctuation=r" ?[^\s\p{L}\p{N}\r\n]+"),)),
    "bailingmoe bailingmoe2 llada-moe": PreTokenizer(
        (
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*"
            rf"|\s*[\r\n]|{_SPACES}",
        )
    ),
    "exaone-moe": PreTokenizer(
        (
            rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
            rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]?|\s*[\r\n]|{_SPACES}",
        )
    ),
    "gpt-4o llama4 kanana2 talkie minimax-m2": PreTokenizer((_o200k(_UP_TO_3_DIGITS, f"{_CONTRACTION}?"),)),
    "tekken": PreTokenizer((_o200k(_DIGIT, ""),), whole_words=True, add_bos=True),
    "tiny_aya cohere2moe": PreTokenizer(
        (r"\d{1,3}(?=(?:\d{3})*\b)", _o200k(_UP_TO_3_DIGITS, f"{_CONTRACTION}?"))
    ),
    "kimi-k2": PreTokenizer(
        (
            r"\p{Han}+|"
            + _o200k(_UP_TO_3_DIGITS, f"{_CONTRACTION}?", line_ends=r"[\r\n]*", without=_KIMI_NO_HAN),
        )
    ),
    "youtu": PreTokenizer((_YOUTU_SCRIPTS, _o200k(_DIGIT, f"{_CONTRACTION}?")), whole_words=True),
    "deepseek-llm": PreTokenizer(
        (
            r"[\r\n]",
            rf"\s?[{_DEEPSEEK_LLM_LETTERS}]+",
            "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
            r"\s+$",
            _DEEPSEEK_CJK,
            r"\p{N}+",
        )
    ),
    "deepseek-coder": PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_CJK, _DIGIT)),
    "deepseek-v3 hunyuan-dense joyai-llm hy_v4": PreTokenizer(_DEEPSEEK3),
    "spark2_5": PreTokenizer((_UP_TO_3_DIGITS, _CJK, _deepseek(r"|[\r\n]"), _DIGIT)),
    "afmoe": PreTokenizer((_3_DIGITS_FROM_THE_RIGHT, _AFMOE_SCRIPTS, _deepseek())),
    "superbpe": PreTokenizer((r"\p{N}+", r"\d{1,3}(?=(?:\d{3})*(?!\d))")),
    "chameleon": PreTokenizer(
        (
            "<sentinel:[0-9]+>",
            "IMGIMG[A-I]{1,4}Z",
            r"[\t\n]|    |  ",
            _DIGIT,
            r"[\p{P}!-/:-@\[-`{-~]",
            _GPT2,
        ),
        add_bos=True,
    ),
    "gemma4": PreTokenizer((r"[^\n]+|\n+",), add_bos=True, raw=True),
    "sarvam-moe": PreTokenizer((r"[^\n]+|\n+",), raw=True),
}

PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    name: rule for names, rule in _TABLE.items() for name in names.split()
}
"""All known names."""


def pre_tokenizer(name: str) -> PreTokenizer:
    """The rule of a name.

    Raises:
        UnsupportedError: the name is not known.
    """
    rule = PRE_TOKENIZERS.get(name)
    if rule is None:
        raise UnsupportedError(
            f"pre-tokenizer {name!r} is not known; a wrong one would spoil the text. If the model splits"
            " text like another, set `tokenizer.ggml.pre` to one of these:"
            f" {', '.join(sorted(PRE_TOKENIZERS))}"
        )
    return rule
