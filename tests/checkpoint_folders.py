"""Checkpoint folders made from the GGUF fixtures, by tables written from the models' published implementations.

What stands here is the way back from `ikq.models`' tables and shares no code with them: names and orders of tensors
are those that `transformers` has, done with plain numpy. All weights of the fixtures are bfloat16 values.
"""

import json
import re
import struct
from functools import cache

import numpy as np
from conftest import SHARED
from model_files import info, reader

QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
CODES = {
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I32": "<i4",
    "I64": "<i8",
    "U8": "u1",
    "F8_E4M3": "u1",
    "I8": "i1",
}


def to_bf16(x):
    """Floats that are bfloat16 values, as their upper halves."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    assert not (bits & 0xFFFF).any(), "no bfloat16 value"
    return (bits >> 16).astype(np.uint16)


def nearest_bf16(x):
    """The nearest bfloat16 values, as floats."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return (((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) << 16).astype(np.uint32).view(np.float32)


def write_safetensors(path, tensors, metadata=None):
    """`tensors`: name to (dtype, array of its storage)."""
    header, blobs, at = ({"__metadata__": metadata} if metadata else {}), [], 0
    for name, (dtype, array) in tensors.items():
        blob = np.ascontiguousarray(array, CODES[dtype]).tobytes()
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [at, at + len(blob)]}
        blobs.append(blob)
        at += len(blob)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def write_shards(folder, tensors, n_shards):
    """One file, or several with an index."""
    if n_shards == 1:
        write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
        return
    names = list(tensors)
    places = {}
    for i in range(n_shards):
        file = f"model-{i + 1:05}-of-{n_shards:05}.safetensors"
        part = names[i::n_shards]
        write_safetensors(folder / file, {name: tensors[name] for name in part}, {"format": "pt"})
        places |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def halves(rows, n_head):
    """Rows of neighbours that are rotated together, as the halves of a head."""
    n_out = len(rows) // n_head
    return rows.reshape(n_head, n_out // 2, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


class Inverse:
    """The tensors of a fixture by the names of `transformers`."""

    def __init__(self, name):
        self.reader = reader(name)
        self.config = dict(info(name)["hf_config"])
        self.tensors = {}
        self.n_layer = (
            max(int(m[1]) for m in map(re.compile(r"blk\.(\d+)\.").match, self.reader.tensors) if m) + 1
        )

    def floats(self, name):
        t = self.reader.tensors[name]
        return t.dequantize().reshape(t.shape)

    def put(self, name, x):
        self.tensors[name] = x

    def move(self, name, source, change=lambda x: x):
        if source in self.reader.tensors:
            self.put(name, change(self.floats(source)))

    def top(self, plus=0.0):
        self.move("model.embed_tokens.weight", "token_embd.weight")
        self.move("lm_head.weight", "output.weight")
        self.move("model.norm.weight", "output_norm.weight", lambda x: x - np.float32(plus))

    def layers(self, table, plus=()):
        """`table`: GGUF name to name in `transformers`; `plus`: those that lose 1."""
        for i in range(self.n_layer):
            for source, name in table.items():
                lost = np.float32(1.0 if source in plus else 0.0)
                self.move(f"model.layers.{i}.{name}", f"blk.{i}.{source}", lambda x, lost=lost: x - lost)

    def experts(self, where, gate="gate_proj", up="up_proj", down="down_proj"):
        for i in range(self.n_layer):
            for part, name in (("gate", gate), ("up", up), ("down", down)):
                source = f"blk.{i}.ffn_{part}_exps.weight"
                if source in self.reader.tensors:
                    for e, x in enumerate(self.floats(source)):
                        self.put(f"model.layers.{i}.{where}.{e}.{name}.weight", x)


ATTENTION = {
    f"attn_{g}.{suffix}": f"self_attn.{h}_proj.{suffix}"
    for g, h in {"q": "q", "k": "k", "v": "v", "output": "o"}.items()
    for suffix in ("weight", "bias")
} | {f"attn_{p}_norm.weight": f"self_attn.{p}_norm.weight" for p in "qk"}
NORMS = {"attn_norm.weight": "input_layernorm.weight", "ffn_norm.weight": "post_attention_layernorm.weight"}
NORMS2 = {
    "attn_norm.weight": "input_layernorm.weight",
    "post_attention_norm.weight": "post_attention_layernorm.weight",
}
DENSE = {f"ffn_{p}.weight": f"mlp.{p}_proj.weight" for p in ("gate", "up", "down")}


def shared(where):
    return {f"ffn_{p}_shexp.weight": f"mlp.{where}.{p}_proj.weight" for p in ("gate", "up", "down")}


ROUTER = {"ffn_gate_inp.weight": "mlp.gate.weight"}


def standard(v):
    v.top()
    v.layers(ATTENTION | NORMS | DENSE | ROUTER)
    v.experts("mlp.experts")


def llama(v):
    v.top()
    table = ATTENTION | NORMS | DENSE | {"ffn_gate_inp.weight": "block_sparse_moe.gate.weight"}
    v.layers({k: n for k, n in table.items() if k not in ("attn_q.weight", "attn_k.weight")})
    for i in range(v.n_layer):
        for part, heads in (("q", "num_attention_heads"), ("k", "num_key_value_heads")):
            n_head = v.config[heads]
            v.move(
                f"model.layers.{i}.self_attn.{part}_proj.weight",
                f"blk.{i}.attn_{part}.weight",
                lambda x, n=n_head: halves(x, n),
            )
    v.experts("block_sparse_moe.experts", "w1", "w3", "w2")


def qwen2moe(v):
    standard(v)
    v.layers(shared("shared_expert") | {"ffn_gate_inp_shexp.weight": "mlp.shared_expert_gate.weight"})


def glm4moe(v):
    v.top()
    bias = {"exp_probs_b.bias": "mlp.gate.e_score_correction_bias"}
    v.layers(ATTENTION | NORMS2 | DENSE | ROUTER | bias | shared("shared_experts"))
    v.experts("mlp.experts")


def gemma3(v):
    v.top(plus=1.0)
    norms = {
        "attn_norm.weight": "input_layernorm.weight",
        "post_attention_norm.weight": "post_attention_layernorm.weight",
        "ffn_norm.weight": "pre_feedforward_layernorm.weight",
        "post_ffw_norm.weight": "post_feedforward_layernorm.weight",
    }
    v.layers(ATTENTION | norms | DENSE, plus=[*norms, "attn_q_norm.weight", "attn_k_norm.weight"])


def ernie45moe(v):
    v.top()
    bias = {"exp_probs_b.bias": "mlp.moe_statics.e_score_correction_bias"}
    v.layers(ATTENTION | NORMS | DENSE | ROUTER | bias | shared("shared_experts"))
    v.experts("mlp.experts")


def deepseek(v):
    v.top()
    table = {
        "attn_q.weight": "self_attn.q_proj.weight",
        "attn_q_a.weight": "self_attn.q_a_proj.weight",
        "attn_q_a_norm.weight": "self_attn.q_a_layernorm.weight",
        "attn_q_b.weight": "self_attn.q_b_proj.weight",
        "attn_kv_a_mqa.weight": "self_attn.kv_a_proj_with_mqa.weight",
        "attn_kv_a_norm.weight": "self_attn.kv_a_layernorm.weight",
        "attn_output.weight": "self_attn.o_proj.weight",
        "exp_probs_b.bias": "mlp.gate.e_score_correction_bias",
    }
    v.layers(table | NORMS | DENSE | ROUTER | shared("shared_experts"))
    v.experts("mlp.experts")
    for i in range(v.n_layer):
        k_b, v_b = (v.floats(f"blk.{i}.attn_{p}_b.weight") for p in "kv")
        # per head: keys, whose matrix is transposed, then values
        heads = [np.concatenate([k.T, w]) for k, w in zip(k_b, v_b, strict=True)]
        v.put(f"model.layers.{i}.self_attn.kv_b_proj.weight", np.concatenate(heads))


def gpt_oss(v):
    v.top()
    table = {
        "attn_sinks.weight": "self_attn.sinks",
        "ffn_gate_inp.weight": "mlp.router.weight",
        "ffn_gate_inp.bias": "mlp.router.bias",
        "ffn_down_exps.bias": "mlp.experts.down_proj_bias",
    }
    v.layers(ATTENTION | NORMS2 | table)
    for i in range(v.n_layer):
        where = f"model.layers.{i}.mlp.experts"
        gate, up, down = (f"blk.{i}.ffn_{p}_exps" for p in ("gate", "up", "down"))
        # one after the other, and inputs first
        v.put(f"{where}.gate_up_proj_bias", interleave(v.floats(f"{gate}.bias"), v.floats(f"{up}.bias")))
        both = interleave(v.floats(f"{gate}.weight"), v.floats(f"{up}.weight"))
        v.put(f"{where}.gate_up_proj", both.swapaxes(1, 2))
        v.put(f"{where}.down_proj", v.floats(f"{down}.weight").swapaxes(1, 2))


def interleave(a, b):
    """Rows of `a` and `b` by turns: [experts, 2 rows, ...]."""
    return np.stack([a, b], axis=2).reshape(len(a), 2 * a.shape[1], *a.shape[2:])


def delta_net(v):
    plus = ("attn_norm.weight", "post_attention_norm.weight", "attn_q_norm.weight", "attn_k_norm.weight")
    v.top(plus=1.0)
    v.layers(
        ATTENTION
        | NORMS2
        | ROUTER
        | shared("shared_expert")
        | {
            "ffn_gate_inp_shexp.weight": "mlp.shared_expert_gate.weight",
            "ssm_norm.weight": "linear_attn.norm.weight",
        },
        plus=plus,
    )
    v.experts("mlp.experts")


def a_log(a):
    # rounded to bfloat16 before the fixture was made
    return nearest_bf16(np.log(-a.astype(np.float64)).astype(np.float32))


def qwen3next(v):
    delta_net(v)
    c = v.config
    n_k, n_v = c["linear_num_key_heads"], c["linear_num_value_heads"]
    d_k, d_v, n_embd = c["linear_key_head_dim"], c["linear_value_head_dim"], c["hidden_size"]
    for i in range(v.n_layer):
        if f"blk.{i}.attn_qkv.weight" not in v.reader.tensors:
            continue
        where, at = f"model.layers.{i}.linear_attn", f"blk.{i}"
        q, k, w = np.split(v.floats(f"{at}.attn_qkv.weight"), np.cumsum([n_k * d_k, n_k * d_k]))
        z = v.floats(f"{at}.attn_gate.weight")
        groups = [x.reshape(n_k, -1, n_embd) for x in (q, k, w, z)]
        v.put(f"{where}.in_proj_qkvz.weight", np.concatenate(groups, axis=1).reshape(-1, n_embd))
        v.move(f"{where}.in_proj_ba.weight", f"{at}.ssm_ba.weight")
        v.move(f"{where}.conv1d.weight", f"{at}.ssm_conv1d.weight", lambda x: x[:, None])
        v.move(f"{where}.dt_bias", f"{at}.ssm_dt.bias")
        v.move(f"{where}.A_log", f"{at}.ssm_a", a_log)
        v.move(f"{where}.out_proj.weight", f"{at}.ssm_out.weight")
        assert n_v * d_v == len(z)


def qwen35moe(v):
    delta_net(v)
    c = v.config
    n_k, n_v, d_v = c["linear_num_key_heads"], c["linear_num_value_heads"], c["linear_value_head_dim"]
    n_keys = 2 * n_k * c["linear_key_head_dim"]

    def grouped(x, width=1):
        # [value of a key head, key head] to [key head, value of a key head]
        return x.reshape(n_v // n_k, n_k, width, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape)

    def values(x):
        return np.concatenate([x[:n_keys], grouped(x[n_keys:], d_v)])

    for i in range(v.n_layer):
        if f"blk.{i}.attn_qkv.weight" not in v.reader.tensors:
            continue
        where, at = f"model.layers.{i}.linear_attn", f"blk.{i}"
        v.move(f"{where}.in_proj_qkv.weight", f"{at}.attn_qkv.weight", values)
        v.move(f"{where}.in_proj_z.weight", f"{at}.attn_gate.weight", lambda x: grouped(x, d_v))
        v.move(f"{where}.in_proj_b.weight", f"{at}.ssm_beta.weight", grouped)
        v.move(f"{where}.in_proj_a.weight", f"{at}.ssm_alpha.weight", grouped)
        v.move(f"{where}.conv1d.weight", f"{at}.ssm_conv1d.weight", lambda x: values(x)[:, None])
        v.move(f"{where}.dt_bias", f"{at}.ssm_dt.bias", grouped)
        v.move(f"{where}.A_log", f"{at}.ssm_a", lambda x: grouped(a_log(x)))
        v.move(f"{where}.out_proj.weight", f"{at}.ssm_out.weight", lambda x: grouped(x.T, d_v).T)


TABLES = {
    "deepseek2-lite": deepseek,
    "deepseek3": deepseek,
    "ernie45moe": ernie45moe,
    "gemma3": gemma3,
    "glm4moe": glm4moe,
    "gpt-oss": gpt_oss,
    "llama": llama,
    "mixtral": llama,
    "qwen2": standard,
    "qwen2moe": qwen2moe,
    "qwen3": standard,
    "qwen3moe": standard,
    "qwen3next": qwen3next,
    "qwen35moe": qwen35moe,
}


@cache
def hf_tensors(name):
    """Floats by name, as a checkpoint of the fixture has them."""
    inverse = Inverse(name)
    TABLES[name.split("/")[0]](inverse)
    return inverse.tensors


def make_folder(folder, name, *, n_shards=2, dtype=None, change=None):
    """Writes a fixture as a checkpoint.

    Args:
        folder: new; its name becomes `general.name`.
        name: of the fixture.
        n_shards: safetensors files.
        dtype: of all tensors; that of the fixture's matrices if not given.
        change: a function of the tensors ((dtype, array) by name) and config.
    """
    folder.mkdir(parents=True)
    dtype = dtype or ("F32" if name.endswith("f32") else "BF16")
    encode = {"BF16": to_bf16, "F32": lambda x: x, "F16": lambda x: x.astype(np.float16)}[dtype]
    tensors = {n: (dtype, encode(x)) for n, x in hf_tensors(name).items()}
    config = dict(info(name)["hf_config"])
    if change:
        change(tensors, config)
    write_shards(folder, tensors, n_shards)
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder, reader(name).metadata, name)
    return folder


# Tokenizers


def write_tokenizer(folder, metadata, name):
    """The files of a tokenizer, from what a GGUF file says."""
    key = "tokenizer.ggml."
    texts = metadata[f"{key}tokens"]
    options = {}
    for kind, gguf in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        token = metadata.get(f"{key}{gguf}_token_id")
        options[f"{kind}_token"] = None if token is None else texts[token]
    for kind in ("bos", "eos"):
        if f"{key}add_{kind}_token" in metadata:
            options[f"add_{kind}_token"] = metadata[f"{key}add_{kind}_token"]
    if metadata[f"{key}model"] == "llama":
        prefix = metadata.get(f"{key}add_space_prefix", True)
        write_sentencepiece(
            folder / "tokenizer.model", texts, metadata[f"{key}scores"], metadata[f"{key}token_type"], prefix
        )
    else:
        if name.startswith("glm4moe"):
            options |= {"bos_token": None}
        pattern = LLAMA3 if metadata[f"{key}pre"] == "chatglm-bpe" else QWEN2
        whole = bpe_json(texts, metadata[f"{key}merges"], metadata[f"{key}token_type"], pattern)
        (folder / "tokenizer.json").write_text(json.dumps(whole))
    (folder / "tokenizer_config.json").write_text(json.dumps(options))


def bpe_json(texts, merges, kinds, pattern):
    whole = json.loads((SHARED / "models" / "tiny-moe-hf" / "tokenizer.json").read_text())
    whole["added_tokens"] = [
        {
            "id": i,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind == 3,
        }
        for i, (text, kind) in enumerate(zip(texts, kinds, strict=True))
        if kind in (3, 4)
    ]
    whole["model"]["vocab"] = {t: i for i, (t, k) in enumerate(zip(texts, kinds, strict=True)) if k == 1}
    whole["model"]["merges"] = [m.split(" ") for m in merges]
    whole["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = pattern
    return whole


def _field(number, wire, value):
    def varint(n):
        out = b""
        while True:
            out += bytes([(n & 127) | (128 if n > 127 else 0)])
            n >>= 7
            if not n:
                return out

    head = varint(number << 3 | wire)
    if wire == 0:
        return head + varint(value)
    return head + (varint(len(value)) if wire == 2 else b"") + value


def write_sentencepiece(
    path, texts, scores, kinds, space_prefix, model_type=2, more_trainer=b"", more_rules=b""
):
    pieces = b""
    for text, score, kind in zip(texts, scores, kinds, strict=True):
        piece = _field(1, 2, text.encode()) + _field(2, 5, struct.pack("<f", score))
        # normal pieces have no kind, as in files of the library
        piece += b"" if kind == 1 else _field(3, 0, kind)
        pieces += _field(1, 2, piece)
    trainer = _field(2, 2, _field(3, 0, model_type) + more_trainer)
    normalizer = _field(3, 2, _field(1, 2, b"identity") + _field(3, 0, int(space_prefix)) + more_rules)
    path.write_bytes(pieces + trainer + normalizer)
