"""Speculation on the engine: heads beside numpy in float64, the same texts as without, on fixtures and a trained model."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import SHARED
from engine_checks import EXACT, TOLERANCE, largest
from model_files import NAMES, Changed, path, prompt
from mtp_files import HEADS, add_head, chain, cut_to_what_follows, with_head
from numpy_model import NumpyModel

import ikq
from ikq.evaluate.windows import cut
from ikq.models import model_spec, mtp_spec
from ikq.speculation import FixedDepth, Lookup, StepTimes, TextSpeculation
from ikq.statistics.calibrate import coverage, run_chunks, wanted_tensors

ALWAYS = {"draft_adapt": False, "draft_p_min": 0.0}


def tokens_of(generation):
    return [piece.token for piece in generation if piece.token is not None]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files of fixtures with heads, written when they are needed."""
    folder, written = tmp_path_factory.mktemp("heads"), {}

    def file(name, change=lambda changed: changed, key="", **options):
        place = (name, key, *options.items())
        if place not in written:
            changed = change(with_head(name, **options))
            written[place] = folder / f"{len(written)}.gguf"
            changed.write(written[place])
        return written[place]

    return file


@pytest.fixture(scope="module")
def model(tiny_moe):
    with ikq.Model.load(tiny_moe, n_ctx=512) as model:
        yield model


# Heads


def read(model, head, tokens, cuts=()):
    """What a head says of a text, in parts: hidden states and logits."""
    (hidden,) = model.step([(model.new_sequence(), tokens, "hidden")])
    sequence, found = head._engine.new_sequence(), []
    for t, h in zip(np.split(tokens[1:], cuts), np.split(hidden[:-1], cuts), strict=True):
        (part,) = head._engine.step([(sequence, t.tolist(), "hidden", np.ascontiguousarray(h))])
        found.append(part)
    said = np.concatenate(found)
    return hidden, said, head._output.head(said)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("own", [False, True])
def test_a_head_beside_numpy(files, name, own):
    changed = with_head(name, own=own)
    numpy_model, numpy_head = NumpyModel(changed, model_spec(changed)), NumpyModel(changed, mtp_spec(changed))
    with ikq.Model.load(files(name, own=own), **EXACT) as model:
        assert model.mtp.spec == mtp_spec(changed)
        for index in (0, 1):
            tokens = prompt(name, index)
            hidden, said, logits = read(model, model.mtp, tokens)
            numpy_model.logits(tokens)
            assert largest(numpy_model.hidden[-1], hidden) < TOLERANCE
            numpy_head.logits(tokens[1:], numpy_model.hidden[-1][:-1])
            assert largest(numpy_head.hidden[-1], said) < TOLERANCE
            wanted = (numpy_head if own else numpy_model).head(numpy_head.hidden[-1])
            assert largest(wanted, logits) < TOLERANCE
            # with other hidden states it says something else, by far
            assert (
                largest(numpy_head.logits(tokens[1:], numpy_model.hidden[-1][1:]), logits if own else said)
                > 0.1
            )


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("options", [{}, EXACT], ids=["default", "exact"])
def test_what_a_head_says_does_not_depend_on_cuts(files, name, options):
    with ikq.Model.load(files(name), **{"n_ctx": 128, **options}) as model:
        tokens = prompt(name, 0)
        whole = read(model, model.mtp, tokens)
        for cuts in ([1, 2, 9, 30], range(1, len(tokens) - 1)):
            for a, b in zip(whole, read(model, model.mtp, tokens, list(cuts)), strict=True):
                assert np.array_equal(a, b)
        # logits made from hidden states are the step's own, one by one or all at once
        (logits,) = model.step([(model.new_sequence(), tokens, "all")])
        assert np.array_equal(model._head(whole[0]), logits)
        assert np.array_equal(model._head(whole[0][3:4]), logits[3:4])


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("from_hidden", [False, True])
def test_a_head_that_knows_what_follows(files, name, from_hidden):
    """All that is drafted is accepted: token and hidden state belong together, in drafts of drafts, too."""
    file = files(name, lambda c: cut_to_what_follows(c, from_hidden=from_hidden), key=f"chain {from_hidden}")
    with ikq.Model.load(file, **EXACT) as model:
        n_kept = min(model.spec.n_vocab, model.spec.n_embd)
        text = [3, *chain(3, 60, n_kept)]
        generation = model.generate(
            text[:20], max_tokens=41, temperature=0, mtp=True, draft_max=4, ignore_eos=True, **ALWAYS
        )
        assert tokens_of(generation) == text[20:61]
        # the last step's logits give one token, eight steps give five
        assert (generation.stats.n_drafted, generation.stats.n_accepted) == (32, 32)


def test_a_file_without_a_head(model):
    assert model.mtp is None
    with pytest.raises(ikq.RefusedError, match=r"no head for further tokens \(`nextn` tensors\)"):
        model.generate([1], mtp=True)


def test_a_head_is_loaded_when_it_is_asked_for(files):
    with ikq.Model.load(files(HEADS[1]), n_ctx=64) as model:
        before = sum(model.memory)
        list(model.generate([1, 2, 3], max_tokens=2))
        assert model._mtp is None
        list(model.generate([1, 2, 3], max_tokens=2, mtp=True))
        head = model.mtp
        assert sum(model.memory) > before
        assert head is model.mtp
        assert any("for speculation (mtp)" in note for note in model.explain().notes)
    with pytest.raises(ValueError, match="closed"):
        model.mtp  # noqa: B018


def test_a_head_that_is_damaged(tmp_path):
    """The model runs, its head is refused by name."""
    changed = with_head(HEADS[1])
    n = len(model_spec(changed).layers)
    del changed.tensors[f"blk.{n}.attn_norm.weight"]
    changed.write(tmp_path / "damaged.gguf")
    with ikq.Model.load(tmp_path / "damaged.gguf", n_ctx=64) as model:
        assert len(tokens_of(model.generate([1, 2, 3], max_tokens=3))) == 3
        for _ in range(2):
            with pytest.raises(ikq.FormatError, match=rf"blk\.{n}\.attn_norm\.weight` is missing"):
                model.generate([1], mtp=True)


# Texts of fixtures


def check_same_text(model, tokens, drafts, **options):
    """A text with drafts and without, after which the model's sequences are the same, too."""
    plain = model.generate(tokens, **options)
    wanted = tokens_of(plain)
    found = model.generate(tokens, **options, **drafts)
    assert tokens_of(found) == wanted
    assert found.reason == plain.reason
    assert found.stats.n_generated == plain.stats.n_generated
    return found.stats


@pytest.mark.parametrize(
    "options", [{"temperature": 0}, {"seed": 5, "temperature": 1.2}], ids=["greedy", "sampled"]
)
@pytest.mark.parametrize("name", NAMES)
def test_texts_of_fixtures(name, options):
    """Drafts by lookup, and by the model itself, in part wrong."""
    with ikq.Model.load(path(name), n_ctx=128) as model:
        for index in (0, 1):
            tokens = prompt(name, index).tolist()
            for drafts in ({"lookup": 1}, {"draft_model": model, "draft_max": 5}):
                check_same_text(model, tokens, drafts | ALWAYS, max_tokens=24, ignore_eos=True, **options)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_drafts_for_itself(name):
    """All that it says is what it says."""
    with ikq.Model.load(path(name), n_ctx=128) as model:
        tokens = prompt(name, 0).tolist()
        drafts = {"draft_model": model, "draft_max": 4, **ALWAYS}
        stats = check_same_text(model, tokens, drafts, max_tokens=41, temperature=0)
        assert stats.n_drafted == stats.n_accepted >= 4 * (stats.n_generated // 5 - 1)


@pytest.mark.parametrize(
    "options", [{"temperature": 0}, {"seed": 5, "temperature": 1.2}], ids=["greedy", "sampled"]
)
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("name", HEADS)
def test_texts_with_heads(files, name, own, options):
    with ikq.Model.load(files(name, own=own), n_ctx=128) as model:
        for index in (0, 1):
            tokens = prompt(name, index).tolist()
            for draft_max in (1, 4):
                drafts = {"mtp": True, "draft_max": draft_max, **ALWAYS}
                stats = check_same_text(model, tokens, drafts, max_tokens=24, ignore_eos=True, **options)
                assert stats.n_drafted > 0


@pytest.mark.parametrize("name", ["qwen3moe/qwen3moe-bf16", "gemma3/gemma3-bf16", *HEADS])
def test_two_texts_at_once(files, name):
    """By turns and in tasks: with drafts of different kinds, and one without."""
    is_head = name in HEADS
    with ikq.Model.load(files(name) if is_head else path(name), n_ctx=128) as model:
        kinds = [{"lookup": 1, **ALWAYS}, {"mtp" if is_head else "lookup": True, **ALWAYS}, {}]
        prompts = [prompt(name, i % 2).tolist()[i:] for i in range(3)]
        options = {"max_tokens": 24, "ignore_eos": True}
        wanted = [tokens_of(model.generate(p, **options, seed=i)) for i, p in enumerate(prompts)]

        def texts(make):
            return [make(p, **options, seed=i, **kinds[i]) for i, p in enumerate(prompts)]

        rows = [tokens_of(row) for row in zip(*texts(model.generate), strict=True)]
        assert [list(column) for column in zip(*rows, strict=True)] == wanted

        async def all_of_them():
            async def one(pieces):
                return [piece.token async for piece in pieces]

            return await asyncio.gather(*map(one, texts(model.agenerate)))

        assert asyncio.run(all_of_them()) == wanted


@pytest.mark.parametrize(
    "name", ["gemma3/gemma3-bf16", "gpt-oss/gpt-oss-bf16", "qwen3next/qwen3next-bf16", HEADS[2]]
)
def test_drafts_in_vain_are_taken_back(name):
    """Where a window has moved on to another page, and where recurrent layers have, too: nothing is computed twice."""

    class Wrong(Lookup):
        def propose(self, tokens, n):
            yield from ()
            return [(tokens[-1] + i) % 100 for i in range(min(n, 1 + len(tokens) % 5))]

    with ikq.Model.load(path(name), n_ctx=700) as model:
        tokens = np.resize(prompt(name, 0), 200).tolist()
        options = {"max_tokens": 360, "seed": 1, "temperature": 1.5, "ignore_eos": True}
        wanted = tokens_of(model.generate(tokens, **options))
        model._batcher.forget()
        lengths, step = [], model.step

        def noted(entries):
            entries = list(entries)
            lengths.extend(len(tokens) for _, tokens, _ in entries)
            return step(entries)

        model.step = noted
        found = model.generate(tokens, **options)
        found._work.speculation = TextSpeculation(Wrong(), FixedDepth(5), StepTimes(from_zero=True))
        assert tokens_of(found) == wanted
        # the prompt, then one token and the draft for every step
        assert lengths[0] == 200
        assert max(lengths[1:]) <= 6


@pytest.mark.parametrize("name", HEADS)
def test_turns_of_a_chat_with_a_head(files, name):
    """What is kept of a text serves the next one, with drafts as without."""
    with ikq.Model.load(files(name), n_ctx=128) as model:
        tokens, drafts = prompt(name, 0).tolist(), {"mtp": True, "draft_max": 3, **ALWAYS}
        options = {"max_tokens": 8, "temperature": 0, "ignore_eos": True}
        for _ in range(3):
            model._batcher.forget()
            wanted = tokens_of(model.generate(tokens, **options))
            found = model.generate(tokens, **options, **drafts)
            assert tokens_of(found) == wanted
            tokens = [*tokens, *wanted, 7, 8]


# The trained model


@pytest.fixture(scope="module")
def greedy():
    file = SHARED / "models" / "tiny-moe-hf-greedy.json"
    if not file.is_file():
        pytest.skip("../shared/models is not there: greedy texts of the oracle are not compared")
    return json.loads(file.read_text())


@pytest.fixture(scope="module")
def small(tiny_moe, tmp_path_factory):
    """The trained model in four bits, which says almost the same."""
    file = tmp_path_factory.mktemp("small") / "small.gguf"
    ikq.quantize_file(tiny_moe, file, "Q4_K_M", imatrix=None)
    return file


@pytest.mark.parametrize("adapts", [False, True])
def test_the_trained_model(model, small, greedy, adapts):
    n_drafted = n_accepted = 0
    for case in greedy:
        wanted = tokens_of(model.generate(case["prompt"], max_tokens=64, temperature=0))
        for drafts in ({"draft_model": small}, {"lookup": True}, {"draft_model": model}):
            found = model.generate(case["prompt"], max_tokens=64, temperature=0, **drafts, draft_adapt=adapts)
            assert tokens_of(found) == wanted
            if drafts.get("draft_model") == small:
                n_drafted += found.stats.n_drafted
                n_accepted += found.stats.n_accepted
    if not adapts:
        assert n_drafted > 100
        assert n_accepted > 0.7 * n_drafted


def test_sampled_texts_of_the_trained_model(model, small):
    for seed in range(4):
        options = {
            "max_tokens": 60,
            "seed": seed,
            "temperature": 1.0,
            "repeat_penalty": 1.1,
            "xtc_probability": 0.3,
        }
        for drafts in ({"draft_model": small}, {"lookup": True}):
            stats = check_same_text(
                model, model.tokenize("import sys\n"), drafts | {"draft_adapt": False}, **options
            )
            assert stats.n_accepted < stats.n_drafted


def test_a_draft_model_is_loaded_once_and_closed_with_the_model(tiny_moe, small):
    with ikq.Model.load(tiny_moe, n_ctx=64) as model:
        for name in (small, str(small)):
            list(model.generate("import", max_tokens=4, draft_model=name))
        (draft,) = model._draft_models._by_path.values()
        assert draft.n_ctx == 64
    with pytest.raises(ValueError, match="closed"):
        draft.new_sequence()


def test_a_draft_model_of_another_vocabulary(model):
    with pytest.raises(
        ikq.RefusedError, match=r"llama-bf16\.gguf has another vocabulary: token 0 is '<unk>'"
    ):
        model.generate("import", draft_model=path("llama/llama-bf16"))


def test_a_chat_with_drafts(model, small):
    messages = [{"role": "user", "content": "What is a module?"}]
    wanted = list(model.chat(messages, max_tokens=30, temperature=0))
    found = list(model.chat(messages, max_tokens=30, temperature=0, draft_model=small, draft_adapt=False))
    assert found == wanted


def test_a_lent_sequence_with_drafts(model, small):
    tokens = model.tokenize("This module provides a function")
    with model.new_sequence() as plain, model.new_sequence() as drafted:
        options = {"max_tokens": 30, "temperature": 0}
        wanted = tokens_of(model.generate(tokens, **options, sequence=plain))
        found = model.generate(tokens, **options, sequence=drafted, draft_model=small, draft_adapt=False)
        assert tokens_of(found) == wanted
        assert plain.tokens == drafted.tokens == [*tokens, *wanted[:-1]]
        a, b = model.step([(plain, wanted[-1:], "last"), (drafted, wanted[-1:], "last")])
        assert np.array_equal(a, b)


# Statistics


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("name", HEADS)
def test_statistics_of_heads(files, name, own):
    """All matrices of the head have entries; the model's are as without it, and so is the perplexity."""
    with (
        ikq.Model.load(files(name, own=own), n_ctx=64) as model,
        ikq.Model.load(path(name), n_ctx=64) as plain,
    ):
        tokens = np.tile(prompt(name, 0), 4)
        windows = windows_of(tokens)
        found, losses = collected(model, windows)
        wanted, plain_losses = collected(plain, windows)
        assert np.array_equal(losses, plain_losses)
        assert set(wanted) < set(found)
        for key in wanted:
            assert np.array_equal(found[key].sums, wanted[key].sums)
            assert np.array_equal(found[key].counts, wanted[key].counts)
        with ikq.GGUFReader(files(name, own=own)) as gguf:
            matrices = wanted_tensors(gguf.tensors)
        covered = coverage(found, matrices)
        assert covered.missing == ()
        assert covered.foreign == ()
        part = f"blk.{len(model.spec.layers)}.nextn"
        assert f"{part}.eh_proj.weight" in matrices
        assert (f"{part}.shared_head_head.weight" in found) == own
        # a chunk of 32 tokens has 31 pairs
        assert found[f"{part}.eh_proj.weight"].counts.tolist() == [31 * windows.n]


@pytest.mark.parametrize("name", HEADS)
def test_statistics_of_a_head_beside_numpy(files, name):
    changed = with_head(name)
    numpy_model, numpy_head = NumpyModel(changed, model_spec(changed)), NumpyModel(changed, mtp_spec(changed))
    with ikq.Model.load(files(name), **EXACT) as model:
        windows = windows_of(prompt(name, 0))
        found, _ = collected(model, windows)
    n = len(model_spec(changed).layers)
    numpy_model.logits(windows[0].tokens)
    tokens, hidden = windows[0].tokens[1:], numpy_model.hidden[-1][:-1]
    spec = numpy_head.spec
    embedded = numpy_head.tensor(spec.token_embd)[tokens] * spec.embd_scale
    both = np.concatenate(
        [numpy_head.norm(embedded, spec.nextn.enorm), numpy_head.norm(hidden, spec.nextn.hnorm)], -1
    )
    sums = found[f"blk.{n}.nextn.eh_proj.weight"].sums[0]
    assert largest((both**2).sum(0), sums) < 1e-3 * sums.max()


def windows_of(tokens):
    return cut(np.asarray(tokens, np.int32), n_ctx=32, chunks=-1, bos=None)


def collected(model, windows):
    with model.collect_activations() as collector:
        for done in run_chunks(model, windows, collector):
            losses = done.losses
    return collector.statistics(), losses


def test_a_run_that_goes_on_with_a_head(files):
    """Bit for bit that of a run in one go."""
    name = HEADS[1]
    with ikq.Model.load(files(name, own=True), n_ctx=64) as model:
        windows = windows_of(np.tile(prompt(name, 0), 4))
        whole, _ = collected(model, windows)
        with model.collect_activations() as first:
            steps = run_chunks(model, windows, first)
            next(steps)
            next(steps)
        with model.collect_activations() as second:
            second.restore(first.state())
            for _ in run_chunks(model, windows, second, first=2):
                pass
        parts = second.statistics()
        assert list(parts) == list(whole)
        for key in whole:
            assert np.array_equal(parts[key].sums, whole[key].sums)
            assert np.array_equal(parts[key].counts, whole[key].counts)


# Commands


@pytest.fixture(scope="module")
def with_tokenizer(tiny_moe, tmp_path_factory):
    """The trained model with a head."""
    file = tmp_path_factory.mktemp("commands") / "head.gguf"
    add_head(Changed(ikq.GGUFReader(tiny_moe))).write(file)
    return file


def run(*args, **options):
    command = [sys.executable, "-m", "ikq", *map(str, args)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL, **options
    )


def test_run_with_drafts(with_tokenizer, small):
    common = ("run", "-m", with_tokenizer, "-p", "import sys\n", "-n", 40, "--temp", 0, "-no-cnv")
    plain = run(*common)
    assert plain.returncode == 0
    assert "acceptance" not in plain.stderr
    for options in (
        ["-md", small],
        ["--lookup"],
        ["--lookup", "3"],
        ["--mtp", "--draft-max", "3", "--draft-p-min", "0"],
    ):
        found = run(*common, *options, "--no-draft-adapt")
        assert found.returncode == 0, found.stderr
        assert found.stdout == plain.stdout
        rate = re.search(
            r"draft acceptance rate = ([\d.]+) \( *(\d+) accepted / *(\d+) drafted\)", found.stderr
        )
        assert float(rate[1]) == pytest.approx(int(rate[2]) / int(rate[3]), abs=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mtp"], "has no head for further tokens"),
        (["--mtp", "--lookup"], "lookup and mtp: one of them can draft"),
        (["--draft-max", "0", "--lookup"], "draft_max=0"),
        (["-md", "llama/llama-bf16"], "has another vocabulary: token 0 is '<unk>', in the model it is '!'"),
    ],
)
def test_run_with_drafts_that_are_refused(tiny_moe, options, message):
    options = [path(o) if "/" in o else o for o in options]
    found = run("run", "-m", tiny_moe, "-p", "import", "-n", 4, "-no-cnv", *options)
    assert found.returncode == 2
    assert message in found.stderr
    assert "Traceback" not in found.stderr


def test_imatrix_of_a_model_with_a_head(with_tokenizer, tmp_path):
    text = tmp_path / "text"
    text.write_text("The module provides a function to open a file. " * 40)
    common = ("imatrix", "-m", with_tokenizer, "-f", text, "-c", 64, "--process-output")
    found = run(*common, "-o", tmp_path / "all.gguf")
    assert found.returncode == 0, found.stderr
    assert re.search(r"nextn\.eh_proj +1 of 1", found.stdout + found.stderr)
    assert "without data" not in found.stdout + found.stderr
    statistics = ikq.ActivationStatistics.open(tmp_path / "all.gguf")
    assert statistics["blk.4.nextn.eh_proj.weight"].sums.shape == (1, 512)
    # what was collected serves for quantizing; an untrained router may leave experts out
    plan = ikq.plan_quantization(
        with_tokenizer, None, "IQ2_XXS", imatrix=tmp_path / "all.gguf", allow_missing=True
    )
    assert plan.coverage.missing == ()
    assert not plan.coverage.borrowed
