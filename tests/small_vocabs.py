"""Small vocabularies as metadata: every byte, some merges, special tokens."""

from ikq.tokenizer.bpe import _BYTES

BYTE_CHARS = [char for char, _ in sorted(_BYTES.items(), key=lambda item: item[1])]
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<tool>"]
NORMAL, UNKNOWN, CONTROL, USER, BYTE = 1, 2, 3, 4, 6


def bpe(pre="qwen2", merges=("Ġ t", "h e", "Ġt he", "i n", "Ã ¼", "Ã¼ Ã", "1 2"), **changes):
    """Byte-level BPE: bytes are ids 0 to 255, then merges, then `SPECIAL`."""
    tokens = [*BYTE_CHARS, *(merge.replace(" ", "") for merge in merges), *SPECIAL]
    types = [NORMAL] * (len(tokens) - 6) + [UNKNOWN, CONTROL, CONTROL, CONTROL, CONTROL, USER]
    keys = {
        "model": "gpt2",
        "pre": pre,
        "tokens": tokens,
        "token_type": types,
        "merges": list(merges),
        "bos_token_id": len(tokens) - 5,
        "eos_token_id": len(tokens) - 4,
        "unknown_token_id": len(tokens) - 6,
    }
    return named({**keys, **changes})


def spm(
    words=(("▁", -1.0), ("▁t", -2.0), ("he", -3.0), ("▁the", -4.0), ("t", -5.0), ("h", -6.0), ("e", -7.0)),
    **changes,
):
    """SentencePiece: `SPECIAL`, byte tokens, then words with scores."""
    tokens = [*SPECIAL, *(f"<0x{b:02X}>" for b in range(256)), *(word for word, _ in words)]
    types = [UNKNOWN, CONTROL, CONTROL, CONTROL, CONTROL, USER] + [BYTE] * 256 + [NORMAL] * len(words)
    keys = {
        "model": "llama",
        "tokens": tokens,
        "token_type": types,
        "scores": [0.0] * 262 + [score for _, score in words],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
        "add_bos_token": True,
    }
    return named({**keys, **changes})


def named(keys):
    """Keys as files spell them; those that are `None` are left out."""
    return {f"tokenizer.ggml.{key}": value for key, value in keys.items() if value is not None}
