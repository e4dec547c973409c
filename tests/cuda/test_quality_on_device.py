"""Perplexity and KL divergence with a model on a GPU (the stand-in), against the CPU's."""

import json

import numpy as np
from emulator import needs_gxx
from standin import environment, ikq_command
from test_whole_models_on_device import FLOATS

import ikq
from ikq.models import model_spec

pytestmark = needs_gxx

TEXT = "".join(f"The function number {i} returns a list of module {i % 7}.\n" for i in range(9))


def test_both_devices_say_the_same(tiny_moe, tmp_path):
    text, base = tmp_path / "text.txt", tmp_path / "base.kld"
    text.write_text(TEXT)
    env = environment()

    def told(verb, *options):
        done = ikq_command(
            env, verb, "-m", tiny_moe, "-c", 32, "--json", "-ctk", "f32", "-ctv", "f32", *options
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    there = told("perplexity", "-f", text, "--chunks", 1, "-ngl", 99, "--kl-divergence-base", base)
    here = told("perplexity", "-f", text, "--chunks", 1, "--compute", "f32")
    gpu = told("kld", "--kl-divergence-base", base, "-ngl", 99)
    cpu = told("kld", "--kl-divergence-base", base, "--compute", "f32")

    with ikq.Model.load(tiny_moe, n_ctx=32, n_threads=2, compute="f32") as model:
        largest = np.linalg.norm(model.logits(model.tokenize(TEXT)[:32]), axis=-1).max()
    with ikq.GGUFReader(tiny_moe) as reader:
        n_layers = len(model_spec(reader).layers)
    # logits that are off by so much change the logarithm of a probability by at most twice that
    most = 2 * FLOATS * n_layers * largest
    assert abs(np.log(there["value"] / here["value"])) <= most
    assert abs(np.log(gpu["ppl"]["value"] / cpu["ppl"]["value"])) <= most
    # the file rounds what it holds, for either
    assert abs(gpu["kld"]["value"] - cpu["kld"]["value"]) <= most
    assert gpu["same_top"]["value"] == cpu["same_top"]["value"] == 1
