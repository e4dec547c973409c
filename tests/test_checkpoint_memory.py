"""A vocabulary of usual size costs no more memory from a checkpoint folder than from a GGUF file."""

import json
import subprocess
import sys

import numpy as np
import pytest
from checkpoint_folders import LLAMA3, QWEN2, bpe_json, write_safetensors
from tokenizers import Regex, Tokenizer
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

import ikq
from ikq.checkpoint import tokenizer_file
from ikq.checkpoint.pre_tokenizer import recognise
from ikq.checkpoint.tokenizer_file import read_tokenizer_file
from ikq.checkpoint.tokenizer_rules import ends, pre_name
from ikq.tokenizer.pre_tokenizers import PRE_TOKENIZERS

LETTERS = [chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 324))]
MIB = 1 << 20
# neither source has a reason to take more; what threads hold at the same moment is chance (runs from the same source
# are up to 3 MiB apart where other programs run beside them)
CHANCE = 1 * MIB


def vocabulary(n):
    """Tokens of byte-level BPE, and the merges that make them."""
    tokens, merges = list(LETTERS), []
    for a in LETTERS:
        for b in LETTERS:
            if len(tokens) == n:
                return tokens, merges
            tokens.append(a + b)
            merges.append(f"{a} {b}")
    raise AssertionError(n)


def write(folder, n, width=32):
    """A Llama of one layer with `n` tokens."""
    folder.mkdir()
    tokens, merges = vocabulary(n)
    whole = bpe_json(tokens, merges, [1] * n, QWEN2)
    (folder / "tokenizer.json").write_text(json.dumps(whole, ensure_ascii=False, indent=2))
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": width, "intermediate_size": 64,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": n, "bos_token_id": 1,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "eos_token_id": 2, "tie_word_embeddings": True,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    layer = "model.layers.0."
    shapes = {"model.embed_tokens.weight": (n, width), "model.norm.weight": (width,)}
    shapes |= {f"{layer}self_attn.{p}_proj.weight": (width, width) for p in "qkvo"}
    shapes |= {f"{layer}mlp.{p}_proj.weight": (64, width) for p in ("gate", "up")}
    shapes[f"{layer}mlp.down_proj.weight"] = (width, 64)
    shapes |= {f"{layer}{p}_layernorm.weight": (width,) for p in ("input", "post_attention")}
    write_safetensors(
        folder / "model.safetensors", {k: ("BF16", np.full(s, 0x3C00, np.uint16)) for k, s in shapes.items()}
    )
    return folder


# what the system counts for a process that ended begins with the peak of the one that started it
QUANTIZE = """
import sys
from ikq.__main__ import main
status = main(["quantize", sys.argv[1], sys.argv[2], "Q8_0", "2"])
with open("/proc/self/status") as lines:
    print("PEAK", next(line.split()[1] for line in lines if line.startswith("VmHWM")))
sys.exit(status)
"""


def peak(source, out):
    """Most memory of a process that quantizes, bytes."""
    command = [sys.executable, "-c", QUANTIZE, str(source), str(out)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return int(output.rpartition("PEAK")[2]) * 1024


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is of Linux")
@pytest.mark.parametrize(("n_tokens", "width"), [(50_000, 32), (320, 2048), (320, 32)])
def test_peak_is_that_from_a_gguf_file(tmp_path, n_tokens, width):
    """Of a model that is mostly vocabulary, one that is mostly rows that change places, and one of next to nothing."""
    folder = write(tmp_path / "model", n_tokens, width)
    ikq.convert_checkpoint(folder, tmp_path / "model.gguf", "bf16")
    # by turns until the least of each are as they should be: what is always too much is so in the eighth turn as well
    sources = {"a.gguf": folder, "b.gguf": tmp_path / "model.gguf"}
    from_folder = from_gguf = 1 << 62
    for _ in range(8):
        peaks = [peak(source, tmp_path / out) for out, source in sources.items()]
        from_folder, from_gguf = min(from_folder, peaks[0]), min(from_gguf, peaks[1])
        if from_folder <= from_gguf + CHANCE:
            break
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert from_folder <= from_gguf + CHANCE, (from_folder / MIB, from_gguf / MIB)


def read(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_tokenizer_file(path)


@pytest.mark.parametrize("part", [7, 100, 1 << 18])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_arrays_hold_what_the_file_says(tmp_path, monkeypatch, part, indent, ascii_only):
    monkeypatch.setattr(tokenizer_file, "_PART", part)
    tokens, merges = vocabulary(600)
    tokens += ['a"b', "a\\b", '\\"vocab": {', "\u4f60", "merges", "\U0001f600", "\n"]
    whole = bpe_json(tokens, merges, [1] * len(tokens), LLAMA3)
    for form in (merges, [m.split(" ") for m in merges]):
        whole["model"]["merges"] = form
        found = read(tmp_path / "t.json", json.dumps(whole, ensure_ascii=ascii_only, indent=indent))
        assert list(found.texts) == tokens
        assert (found.texts[-1], found.texts[3:5]) == (tokens[-1], tokens[3:5])
        assert list(found.ids) == list(range(len(tokens)))
        assert [f"{a} {b}" for a, b in tokenizer_file.pairs(found.halves)] == merges
        rest = {**whole, "model": {**whole["model"], "vocab": 0, "merges": 0}}
        assert found.whole == rest


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"!!": ', '"!": '),  # a token twice
        ('["!", "!"]', '["!", "\u4f60"]'),  # of no token
        ('["!", "!"]', '["!", "!", "!"]'),
        ('["!", "!"]', '["!", ""]'),
        ('"type": "BPE"', '"type": "Unigram"'),
        ('"!!": 25', '"!!": -25'),
        ('"!!": 25', '"!!": 2.5e'),
        ('"!!"', '"\\ud800"'),
        ('"vocab"', '"other": {"vocab": {"a": 1}}, "vocab"'),
        ('"merges"', '"pieces"'),
    ],
)
def test_what_is_unusual_is_left_to_the_reader_of_json(tmp_path, old, new):
    tokens, merges = vocabulary(300)
    text = json.dumps(bpe_json(tokens, merges, [1] * 300, QWEN2), ensure_ascii=False)
    assert old in text
    text = text.replace(old, new, 1)
    try:
        expected = json.loads(text)
    except ValueError:
        with pytest.raises(ikq.FormatError, match="not JSON"):
            read(tmp_path / "t.json", text)
        return
    found = read(tmp_path / "t.json", text)
    assert (found.texts, found.whole) == (None, expected)


TAKEN = '"vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]'


@pytest.mark.parametrize(
    "text",
    [
        # objects of these names elsewhere, and numbers where the model's should be
        f'{{"other": {{{TAKEN}}}, "model": {{"vocab": 0, "merges": 0}}}}',
        f'{{"model": {{{TAKEN}}}, "model": {{"vocab": 0, "merges": 0}}}}',
        f'{{"model": {{{TAKEN}, "vocab": false, "merges": 0.0}}}}',
        '{"model": {"vocab": 0, "merges": 0}}',
        # the numbers that stand for what was taken out
        f'{{"other": {{{TAKEN}}}, "model": {{"vocab": %d, "merges": %d}}}}'
        % (tokenizer_file._VOCAB, tokenizer_file._MERGES),
        # merges of both forms
        '{"model": {"vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b", ["a", "b"]]}}',
    ],
)
def test_a_vocabulary_elsewhere_is_not_the_models(tmp_path, text):
    found = read(tmp_path / "t.json", text)
    assert (found.texts, found.whole) == (None, json.loads(text))


@pytest.mark.parametrize("name", [name for name, rule in PRE_TOKENIZERS.items() if not rule.raw])
@pytest.mark.parametrize("add_bos", [True, False])
def test_names_are_those_that_trying_finds(name, add_bos):
    rule = PRE_TOKENIZERS[name]
    splits = [Split(Regex(pattern), "isolated") for pattern in rule.patterns]
    theirs = Sequence([*splits, ByteLevel(add_prefix_space=False, use_regex=False)])
    whole = {"pre_tokenizer": json.loads(theirs.__getstate__())}
    found = pre_name(whole, whole_words=rule.whole_words, add_bos=add_bos)
    expected = recognise(theirs, whole_words=rule.whole_words, add_bos=add_bos)
    if rule.patterns == PRE_TOKENIZERS["bailingmoe"].patterns:
        assert found is None, "another name comes first"
    else:
        assert found == expected


def template(*pieces):
    named = [{"Sequence": {"id": "A", "type_id": 0}} if p is None else _special(p) for p in pieces]
    ids = {p: {"id": p, "ids": [ord(p)], "tokens": [p]} for p in pieces if p is not None}
    return {"type": "TemplateProcessing", "single": named, "pair": named, "special_tokens": ids}


def _special(text):
    return {"SpecialToken": {"id": text, "type_id": 0}}


BYTES = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}


@pytest.mark.parametrize(
    "after",
    [
        None,
        BYTES,
        template("<", None),
        template(None, ">"),
        template("<", None, ">"),
        {"type": "Sequence", "processors": [BYTES, template("<", None)]},
    ],
)
def test_ends_are_those_that_trying_finds(after):
    tokens, merges = vocabulary(300)
    whole = bpe_json(tokens, merges, [1] * 300, QWEN2)
    whole["post_processor"] = after
    library = Tokenizer.from_str(json.dumps(whole))
    bare = library.encode("a", add_special_tokens=False).ids
    first, last = ends(whole)
    assert [t for t in (first, *bare, last) if t is not None] == library.encode("a").ids


@pytest.mark.parametrize(
    "change",
    [
        {"post_processor": {"type": "BertProcessing", "sep": ["x", 1], "cls": ["y", 2]}},
        {"post_processor": {"type": "Sequence", "processors": [template("<", None), template("<", None)]}},
        {"post_processor": template("<")},
        {"truncation": {"max_length": 1}},
    ],
)
def test_what_else_is_put_around_a_text_takes_trying(change):
    assert ends({"post_processor": None, **change}) is None
