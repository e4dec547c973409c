"""Heads that predict further tokens: their specs, and what they compute in numpy."""

import dataclasses

import numpy as np
import pytest
from model_files import Changed, Shaped, prompt, reader
from mtp_files import HEADS, add_head, chain, cut_to_what_follows, with_head
from numpy_model import NumpyModel

import ikq
from ikq.models import model_spec, mtp_spec, spec


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("own", [False, True])
def test_spec_of_a_head(name, own):
    changed = with_head(name, own=own)
    whole, head = model_spec(changed), mtp_spec(changed)
    plain = model_spec(reader(name))
    # the model itself is what it was, but for a note
    assert dataclasses.replace(whole, notes=()) == dataclasses.replace(plain, notes=())
    n = len(whole.layers)
    assert f"the last 1 of {n + 1} blocks predict further tokens for speculation (mtp)" in whole.notes
    part = f"blk.{n}.nextn"
    assert head.nextn == spec.Nextn(
        f"{part}.enorm.weight", f"{part}.hnorm.weight", spec.Linear(f"{part}.eh_proj.weight")
    )
    if own:
        shared = (
            f"{part}.embed_tokens.weight",
            f"{part}.shared_head_norm.weight",
            spec.Linear(f"{part}.shared_head_head.weight"),
        )
    else:
        shared = ("token_embd.weight", "output_norm.weight", None)
    assert (head.token_embd, head.output_norm, head.output) == shared
    # its layer is the last one under another number
    (layer,) = head.layers
    assert layer.attention.kind != "delta_net"
    assert dataclasses.asdict(layer) == renamed(
        dataclasses.asdict(whole.layers[-1]), f"blk.{n - 1}.", f"blk.{n}."
    )
    same = ("architecture", "n_vocab", "n_embd", "n_ctx_train", "norm_eps", "embd_scale", "final_softcap")
    assert all(getattr(head, field) == getattr(whole, field) for field in same)


def renamed(value, old, new):
    if isinstance(value, dict):
        return {k: renamed(v, old, new) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(renamed(v, old, new) for v in value)
    return value.replace(old, new) if isinstance(value, str) else value


@pytest.mark.parametrize("name", ["llama/llama-bf16", *HEADS])
def test_files_without_a_head(name):
    assert mtp_spec(reader(name)) is None


def test_a_head_whose_tensors_were_left_out():
    """Some files keep the key and the number of blocks."""
    changed = with_head(HEADS[1])
    n = len(model_spec(changed).layers)
    for name in [name for name in changed.tensors if name.startswith(f"blk.{n}.")]:
        del changed.tensors[name]
    assert mtp_spec(changed) is None
    assert f"the last 1 of {n + 1} blocks predict further tokens and are not run" in model_spec(changed).notes


def test_of_several_heads_the_first_is_used():
    changed = add_head(with_head(HEADS[1]))
    whole, head = model_spec(changed), mtp_spec(changed)
    n = len(whole.layers)
    assert n == len(model_spec(reader(HEADS[1])).layers)
    assert head.nextn.enorm == f"blk.{n}.nextn.enorm.weight"
    assert (
        f"the last 2 of {n + 2} blocks predict further tokens for speculation (mtp), of which only the first is used"
        in whole.notes
    )


@pytest.mark.parametrize("name", HEADS)
def test_a_head_with_parts_missing(name):
    """It is refused when it is asked for; the model runs all the same."""
    whole = with_head(name, own=True)
    n = len(model_spec(whole).layers)
    optional = ("nextn.shared_head_norm", "nextn.embed_tokens", "nextn.shared_head_head", "nextn.eh_proj")
    for tensor in [t for t in whole.tensors if t.startswith(f"blk.{n}.") and t.endswith(".weight")]:
        changed = Changed(whole)
        del changed.tensors[tensor]
        model_spec(changed)
        if any(part in tensor for part in (*optional, "shexp", "attn_kv_b")):
            continue
        with pytest.raises(ikq.FormatError, match=rf"`blk\.{n}\."):
            mtp_spec(changed)


@pytest.mark.parametrize(
    "part", ["enorm", "hnorm", "eh_proj", "embed_tokens", "shared_head_head", "shared_head_norm"]
)
def test_a_head_of_wrong_shapes(part):
    changed = with_head(HEADS[1], own=True)
    n = len(model_spec(changed).layers)
    changed.tensors[f"blk.{n}.nextn.{part}.weight"] = Shaped((3, 5))
    with pytest.raises(ikq.FormatError, match=rf"nextn\.{part}\.weight` has shape \[5, 3\]"):
        mtp_spec(changed)


# What it computes


@pytest.mark.parametrize("name", HEADS)
def test_a_head_in_parts(name):
    """With its cache the same as in one go, which is all the numpy model is needed for elsewhere."""
    changed = with_head(name)
    whole, head = NumpyModel(changed, model_spec(changed)), NumpyModel(changed, mtp_spec(changed))
    ids = prompt(name, 0)
    whole.logits(ids)
    hidden = whole.hidden[-1][:-1]
    wanted = head.logits(ids[1:], hidden)
    head.forget()
    cuts = [1, 7, 8, 30]
    parts = [head.eval(t, h) for t, h in zip(np.split(ids[1:], cuts), np.split(hidden, cuts), strict=True)]
    assert np.abs(np.concatenate(parts) - wanted).max() < 1e-9
    # both halves of its input count
    assert np.abs(head.logits(ids[:-1], hidden) - wanted).max() > 0.1
    assert np.abs(head.logits(ids[1:], np.roll(hidden, 1, 0)) - wanted).max() > 0.1


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("from_hidden", [False, True])
def test_a_head_that_knows_the_chain(name, from_hidden):
    """Of the token t(i+1) and the hidden state after t(i) it makes t(i+2); from its own hidden state the next one."""
    changed = cut_to_what_follows(with_head(name), from_hidden=from_hidden)
    whole, head = NumpyModel(changed, model_spec(changed)), NumpyModel(changed, mtp_spec(changed))
    n_kept = min(changed.array("token_embd.weight").shape)
    text = [3, *chain(3, 12, n_kept)]
    assert whole.logits(text).argmax(-1)[:-1].tolist() == text[1:]
    hidden = whole.hidden[-1]
    drafted = head.logits(text[1:9], hidden[:8])
    assert whole.head(drafted).argmax(-1).tolist() == text[2:10]
    for i in range(9, 12):
        drafted = head.eval([text[i]], drafted[-1:])
        assert whole.head(drafted).argmax(-1).tolist() == [text[i + 1]]
