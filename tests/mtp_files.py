"""Files whose models have a head that predicts a further token (`nextn`), made from fixtures."""

import numpy as np
from model_files import Changed, reader

HEADS = ("deepseek3/deepseek3-bf16", "glm4moe/glm4moe-bf16", "qwen35moe/qwen35moe-bf16")


def add_head(changed, *, own=False, seed=0):
    """Appends a copy of the last block as the head's, with an input of its own; `own`: and all that heads may share.

    Its weights are not trained, so it predicts nothing; what it computes is well defined.
    """
    rng = np.random.default_rng(seed)
    n = changed.metadata[f"{changed.architecture}.block_count"]
    n_vocab, n_embd = changed.array("token_embd.weight").shape
    changed.set("block_count", n + 1)
    changed.set(
        "nextn_predict_layers", changed.metadata.get(f"{changed.architecture}.nextn_predict_layers", 0) + 1
    )
    recurrent = f"{changed.architecture}.attention.recurrent_layers"
    if recurrent in changed.metadata:
        changed.metadata[recurrent] = [*changed.metadata[recurrent], False]
    last, block = f"blk.{n - 1}.", f"blk.{n}."
    for name in [name for name in changed.tensors if name.startswith(last)]:
        changed.tensors[block + name.removeprefix(last)] = changed.tensors[name]

    def add(part, *shape, around=0.0, scale):
        changed.add(f"{block}nextn.{part}.weight", around + scale * rng.standard_normal(shape))

    add("eh_proj", n_embd, 2 * n_embd, scale=(2 * n_embd) ** -0.5)
    add("enorm", n_embd, around=1, scale=0.2)
    add("hnorm", n_embd, around=1, scale=0.2)
    if own:
        add("shared_head_norm", n_embd, around=1, scale=0.2)
        add("embed_tokens", n_vocab, n_embd, scale=1)
        add("shared_head_head", n_vocab, n_embd, scale=n_embd**-0.5)
    return changed


def with_head(name, **options):
    """A fixture with a head."""
    return add_head(Changed(reader(name)), **options)


def cut_to_what_follows(changed, *, from_hidden):
    """Makes the model a chain in which a token decides the next one, and the head know that chain.

    Attention and FFN add nothing. Embeddings are orthonormal, so that the projection can hold any chain: t is
    followed by `follower(t)`. The head reads the token that it is given, or (`from_hidden`) the hidden state, which
    tells the token before that: whoever hands it the wrong one of either gets wrong drafts.
    """
    n_vocab, n_embd = changed.array("token_embd.weight").shape
    n_kept = min(n_vocab, n_embd)
    rng = np.random.default_rng(1)
    basis = np.linalg.qr(rng.standard_normal((n_embd, n_embd)))[0]
    table = np.concatenate([basis[:n_kept], np.zeros((n_vocab - n_kept, n_embd))]).astype(np.float32)
    n = changed.metadata[f"{changed.architecture}.block_count"] - 1
    for name in changed.tensors:
        if name.endswith(
            (
                "attn_output.weight",
                "ssm_out.weight",
                "ffn_down.weight",
                "ffn_down_exps.weight",
                "ffn_down_shexp.weight",
            )
        ):
            changed.add(name, np.zeros_like(changed.array(name)))
        elif name.endswith(
            ("output_norm.weight", ".enorm.weight", ".hnorm.weight", "shared_head_norm.weight")
        ):
            changed.add(name, np.ones_like(changed.array(name)))
    following = np.array([follower(t, n_kept) for t in range(n_kept)])
    output = np.zeros_like(table)
    output[following] = basis[:n_kept]
    changed.add("token_embd.weight", table)
    changed.add("output.weight", output)
    projection = np.zeros((n_embd, 2 * n_embd), np.float32)
    if from_hidden:
        projection[:, n_embd:] = basis[following].T @ basis[:n_kept]
    else:
        projection[:, :n_embd] = np.eye(n_embd)
    changed.add(f"blk.{n}.nextn.eh_proj.weight", projection)
    return changed


def follower(token, n):
    """What follows a token in the chain of `n`, a cycle through all of them."""
    return (token + 97) % n


def chain(first, n, n_kept):
    """`n` tokens that follow."""
    found = []
    for _ in range(n):
        first = follower(first, n_kept)
        found.append(first)
    return found
