"""The tokenizers of the folders that `seeded_models` writes."""

import json

import numpy as np
from checkpoint_folders import QWEN2, write_tokenizer
from model_files import reader
from small_vocabs import BYTE_CHARS


def write_for(folder, case):
    """The tokenizer that a case names: of bytes, `plain`, or a fixture's."""
    name = case.get("tokenizer")
    if name is None:
        write_bytes(folder)
    elif name == "plain":
        write_plain(folder)
    else:
        write_tokenizer(folder, reader(name).metadata, name)


def write_bytes(folder):
    """Byte-level BPE of one merge: ids 0 to 255 are bytes, then the merge, BOS and EOS."""
    special, merge = ["<s>", "</s>"], ["h", "e"]
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    split = {"type": "Split", "pattern": {"Regex": QWEN2}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    whole = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": 257 + i, "content": text, **added} for i, text in enumerate(special)],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {text: i for i, text in enumerate([*BYTE_CHARS, "".join(merge)])},
            "merges": [merge],
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    options = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(options))


def write_plain(folder, n_vocab=512):
    """BPE on plain text that falls back to bytes, as Gemma 4 has it: spaces are U+2581, and words are not parted."""
    texts = ["<pad>", "<eos>", "<bos>", "<unk>", "<|channel>", "<turn|>"]
    texts += [f"<0x{b:02X}>" for b in range(256)] + ["\n", "\n\n", "\u2581"]
    merges = [["\n", "\n"]]
    letters = "etaoinshrdlucmfwypvbgkqjxz,."
    texts += letters
    # pairs of what there is, in an order that scores of SentencePiece do not give
    rng = np.random.default_rng(5)
    parts = ["\u2581", *letters[:10]]
    while len(texts) < n_vocab:
        a, b = (str(x) for x in rng.choice(parts[: 11 if len(merges) < 100 else None], 2))
        if a + b not in texts:
            texts.append(a + b)
            merges.append([a, b])
            parts.append(a + b)
    special = {0: True, 1: True, 2: True, 3: True, 4: True, 5: True}
    whole = {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": texts[i], "single_word": False, "lstrip": False, "rstrip": False}
            | {"normalized": False, "special": s}
            for i, s in special.items()
        ],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {text: i for i, text in enumerate(texts)},
            "merges": merges,
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    options = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(options))
