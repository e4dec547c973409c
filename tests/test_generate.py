"""`Model.generate` and `Model.chat`: greedy texts of the oracles, the cache between calls, ends, threads, asyncio."""

import asyncio
import json
import threading
import time

import numpy as np
import pytest
from conftest import SHARED
from engine_checks import EXACT, INVALID
from fake_models import Core
from hypothesis import given
from hypothesis import strategies as st
from model_files import NAMES, RECURRENT, Changed, oracle, path, prompt

import ikq
from ikq.text.generate import Generation
from ikq.text.model import TextModel
from ikq.text.stopping import StopTexts

EXACT_LONG = EXACT | {"n_ctx": 512}


@pytest.fixture(scope="module")
def greedy():
    file = SHARED / "models" / "tiny-moe-hf-greedy.json"
    if not file.is_file():
        pytest.skip("../shared/models is not there: greedy texts of the oracle are not compared")
    return json.loads(file.read_text())


@pytest.fixture(scope="module")
def model(tiny_moe):
    with ikq.Model.load(tiny_moe, **EXACT_LONG) as model:
        yield model


def tokens_of(generation):
    return [piece.token for piece in generation if piece.token is not None]


# Texts of the oracles


def test_greedy_texts(model, greedy):
    assert len(greedy) == 5
    for case in greedy:
        generation = model.generate(case["prompt"], max_tokens=64, temperature=0)
        assert generation.tokens == case["prompt_ids"]
        pieces = list(generation)
        assert [p.token for p in pieces] == case["continuation_ids"]
        assert "".join(p.text for p in pieces) == case["continuation_text"]
        assert [p.reason for p in pieces] == [None] * 63 + ["length"]
        assert generation.tokens == case["prompt_ids"] + case["continuation_ids"]


def test_the_second_prompt_thrice_with_default_settings(tiny_moe, greedy):
    with ikq.Model.load(tiny_moe) as model:
        for _ in range(3):
            found = model.generate(greedy[1]["prompt"], max_tokens=64, temperature=0)
            assert tokens_of(found) == greedy[1]["continuation_ids"]


def greedy_of(name, index):
    truncated = f"prompt{index}_greedy_yarn_truncated"
    found = oracle(name)
    return found[truncated if truncated in found else f"prompt{index}_greedy"].tolist()


def check_greedy(model, tokens, wanted):
    """The oracle does not stop at the end of a text; `generate` does."""
    generation = model.generate(tokens, max_tokens=len(wanted), temperature=0)
    found = tokens_of(generation)
    assert found == wanted[: len(found)]
    assert len(found) == len(wanted) or generation.reason == "end"
    return generation.stats


@pytest.mark.parametrize("name", NAMES)
def test_greedy_texts_of_fixtures(name):
    """Each prompt at once, token by token, and after others that begin alike."""
    with ikq.Model.load(path(name), **EXACT) as model:
        for index in (0, 1):
            tokens, wanted = prompt(name, index), greedy_of(name, index)
            assert len(wanted) == 16
            check_greedy(model, tokens, wanted)
            # the answer is kept now; one token of it differs
            other = [*tokens.tolist(), *wanted[:3], (wanted[3] + 1) % 256]
            assert list(model.generate(other, max_tokens=4, temperature=0))
            stats = check_greedy(model, tokens, wanted)
            assert stats.n_reused + stats.n_prompt == len(tokens)
            # recurrent models go back as far as their states lead (test_sequences.py)
            assert stats.n_reused == len(tokens) - 1 or name in RECURRENT
            assert list(model.generate(tokens[: len(tokens) // 2], max_tokens=2, temperature=0))
            check_greedy(model, tokens, wanted)
        model.truncate(0)
        for token in tokens[:-1]:
            model.eval([token], want="none")
        stats = check_greedy(model, tokens, wanted)
        assert (stats.n_reused, stats.n_prompt) == (len(tokens) - 1, 1)


# The cache between calls


def test_a_longer_conversation_reuses_all_of_the_shorter(model):
    first = model.generate("The :mod:`os` module", max_tokens=20, temperature=0)
    found = tokens_of(first)
    assert first.stats.n_generated == 20
    again = model.generate([*first.tokens, 1, 2, 3], max_tokens=1)
    next(again)
    # the last token was chosen, not computed
    assert again.stats.n_reused == len(first.tokens) - 1
    assert again.stats.n_prompt == 4
    assert found == first.tokens[-20:]


def test_generations_may_alternate(model, greedy):
    pair = [model.generate(case["prompt"], max_tokens=20, temperature=0) for case in greedy[:2]]
    found = [[next(generation).token for generation in pair] for _ in range(20)]
    for i in (0, 1):
        assert [row[i] for row in found] == greedy[i]["continuation_ids"][:20]
    assert pair[0].stats.n_generated == 20


def test_the_cache_may_be_changed_by_hand_meanwhile(model, greedy):
    generation = model.generate(greedy[0]["prompt"], max_tokens=12, temperature=0)
    found = []
    for i, piece in enumerate(generation):
        found.append(piece.token)
        if i == 3:
            model.truncate(2)
        elif i == 5:
            model.logits([7, 8, 9])
        elif i == 7:
            model.eval([1, 2])
    assert found == greedy[0]["continuation_ids"][:12]


@pytest.mark.parametrize("name", RECURRENT)
def test_generations_of_recurrent_models_may_alternate(name):
    with ikq.Model.load(path(name), **EXACT) as model:
        pair = [model.generate(prompt(name, i), max_tokens=4, temperature=0) for i in (0, 1)]
        for i in range(4):
            for index, generation in enumerate(pair):
                assert next(generation).token == greedy_of(name, index)[i]


class Interruption(Exception):
    pass


def test_after_an_interruption(tiny_moe, greedy):
    """While a prompt is computed in parts."""

    def stop(done, total):
        if done >= 6:
            raise Interruption

    case = greedy[2]
    with ikq.Model.load(tiny_moe, **EXACT, n_ubatch=3) as model:
        with pytest.raises(Interruption):
            next(model.generate(case["prompt"], progress=stop))
        steps = []
        generation = model.generate(
            case["prompt"], max_tokens=20, temperature=0, progress=lambda *x: steps.append(x)
        )
        assert tokens_of(generation) == case["continuation_ids"][:20]
        assert generation.stats.n_reused == 6
        assert steps == [(8, 8)]
        # an error in the middle of a call leaves what was there
        model.logits([1, 2, 3])
        with pytest.raises(INVALID):
            model.eval([1, 10**6])
        assert model.n_past == 3


# Ends


def test_stop_texts(model, greedy):
    text = greedy[1]["continuation_text"]  # ", *, errors=None, *, errors=None, ..."
    for stop in (["rors=No"], ["zzz", "e, *"], "=", ["errors=None, *, errors", "None, *"]):
        generation = model.generate(greedy[1]["prompt"], max_tokens=64, temperature=0, stop=stop)
        found = generation.text()
        # the one that is complete first
        found_at = [(text.find(s) + len(s), text.find(s)) for s in stop if s in text]
        assert found == text[: min(found_at)[1]]
        assert generation.reason == "stop"
    generation = model.generate(greedy[1]["prompt"], max_tokens=64, temperature=0, stop=["errors=NOT"])
    assert generation.text() == text
    assert generation.reason == "length"


@given(st.lists(st.text("ab\n", max_size=5)), st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3))
def test_stop_texts_do_not_depend_on_pieces(pieces, stops):
    def shown(pieces):
        stop = StopTexts(stops)
        shown = [stop.push(piece) for piece in pieces]
        return "".join(shown) + stop.flush(), stop.found

    text = "".join(pieces)
    found, stopped_by = shown(pieces)
    assert (found, stopped_by) == shown([text]) == shown(text)
    ends = [text.find(s) + len(s) for s in stops if s in text]
    if ends:
        assert text.startswith(found + stopped_by)
        assert len(found + stopped_by) == min(ends)
    else:
        assert (found, stopped_by) == (text, None)


@pytest.mark.parametrize("stop", ["", ["a", ""], [1]])
def test_stop_texts_that_are_none(model, stop):
    with pytest.raises(ValueError, match="stop"):
        model.generate([1], stop=stop)


def test_the_end_of_a_text(model):
    end = min(model.tokenizer.end_ids)
    generation = model.generate([1, 2, 3], logit_bias={end: 1000.0}, seed=1)
    (piece,) = generation
    assert (piece.text, piece.token, piece.reason) == ("", end, "end")
    with pytest.raises(StopIteration):
        next(generation)
    generation = model.generate([1, 2, 3], logit_bias={end: 1000.0}, seed=1, ignore_eos=True, max_tokens=40)
    assert not set(tokens_of(generation)) & set(model.tokenizer.end_ids)
    assert generation.reason == "length"


def test_no_tokens_at_all(model):
    generation = model.generate([1, 2, 3], max_tokens=0)
    assert list(generation) == []
    assert generation.reason == "length"
    assert (generation.stats.n_prompt + generation.stats.n_reused, generation.stats.n_generated) == (3, 0)


@pytest.mark.parametrize("n_prompt", [1, 20, 31, 32])
def test_a_full_context(tiny_moe, n_prompt):
    with ikq.Model.load(tiny_moe, n_ctx=32) as model:
        generation = model.generate(list(range(n_prompt)), ignore_eos=True, seed=0)
        pieces = list(generation)
        # the last token is chosen from a full cache
        assert len(pieces) == 32 - n_prompt + 1
        assert [p.reason for p in pieces] == [None] * (32 - n_prompt) + ["context"]
        with pytest.raises(ikq.ShapeError, match="33 tokens, the context holds 32"):
            model.generate(list(range(33)))


@pytest.mark.parametrize("n_keep", [0, 5, 12, -1])
def test_context_shift(tiny_moe, n_keep):
    start = list(range(50, 62))
    options = {"max_tokens": 200, "ignore_eos": True, "context_shift": True, "n_keep": n_keep, "seed": 0}
    with ikq.Model.load(tiny_moe, n_ctx=32) as model:
        sequence = model.new_sequence()
        generation = model.generate(start, **options, sequence=sequence)
        found = tokens_of(generation)
        assert len(found) == 200
        assert generation.reason == "length"
        kept = len(start) if n_keep < 0 else n_keep
        assert generation.tokens[:kept] == start[:kept]
        assert generation.tokens[-5:] == found[-5:]
        assert len(generation.tokens) <= 33
        # what the sequence holds is what the tokens say
        assert sequence.tokens == generation.tokens[: sequence.n_past]
        assert sequence.n_unshifted == kept < sequence.n_past
        # with others in between
        generation = model.generate(start, **options)
        other = model.generate(start[::-1], ignore_eos=True, context_shift=True, seed=1)
        again = []
        for i, piece in enumerate(generation):
            again.append(piece.token)
            next(other)
            if i % 7 == 6:
                model.logits([1, 2])
        assert again == found


def test_recurrent_models_do_not_shift():
    name = RECURRENT[0]
    with ikq.Model.load(path(name), **EXACT | {"n_ctx": 64}) as model:
        generation = model.generate(prompt(name, 0), context_shift=True, ignore_eos=True)
        assert len(tokens_of(generation)) == 64 - 47 + 1
        assert generation.reason == "context"


# What is given and what comes


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ("", ikq.ShapeError),
        ([], ikq.ShapeError),
        ([1.5], ikq.FormatError),
        ([[1]], ikq.FormatError),
    ],
)
def test_prompts_that_are_none(model, given, error):
    with pytest.raises(error):
        model.generate(given)


@pytest.mark.parametrize("options", [{"max_tokens": -1}, {"logprobs": -1}, {"temperature": -1}])
def test_options_that_are_out_of_range(model, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        model.generate([1], **options)


def test_an_option_that_is_none(model):
    with pytest.raises(TypeError, match="temprature"):
        model.generate([1], temprature=1)


def test_a_token_that_is_none(model):
    generation = model.generate([1, 2, 10**6])
    with pytest.raises(INVALID):
        next(generation)


def test_logprobs(model):
    generation = model.generate([5, 6, 7], max_tokens=5, logprobs=3, seed=2, temperature=2.0)
    pieces = list(generation)
    logits = model.logits(generation.tokens[:-1])[2:].astype(np.float64)
    p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    for piece, row in zip(pieces, p, strict=True):
        assert piece.logprob == pytest.approx(row[piece.token], abs=1e-4)
        assert [t for t, _ in piece.top_logprobs] == np.argsort(-row)[:3].tolist()
        assert [x for _, x in piece.top_logprobs] == pytest.approx(np.sort(row)[::-1][:3], abs=1e-4)
    (only,) = model.generate([5], max_tokens=1, logprobs=0)
    assert only.logprob is not None
    assert only.top_logprobs == ()
    assert next(model.generate([5])).logprob is None


def test_a_seed_gives_the_same_text_at_any_number_of_threads(tiny_moe):
    texts = set()
    for n_threads in (1, 2, 3, 5):
        with ikq.Model.load(tiny_moe, n_ctx=256, n_threads=n_threads) as model:
            generation = model.generate(
                "import ", max_tokens=100, seed=7, temperature=1.5, top_k=0, top_p=1.0
            )
            texts.add(generation.text())
            assert generation.seed == 7
    assert len(texts) == 1


def test_tokenize(model):
    tokens = model.tokenize("import sys")
    assert tokens == model.tokenizer.encode("import sys")
    assert model.detokenize(tokens) == "import sys"
    assert model.tokenize("<|im_end|>", parse_special=True) == [4095]
    assert model.metadata["general.architecture"] == "qwen3moe"


@pytest.mark.parametrize("model", [None, "no_vocab"])
def test_a_file_without_a_tokenizer(tiny_moe, tmp_path, model):
    changed = Changed(ikq.GGUFReader(tiny_moe))
    for key in [k for k in changed.metadata if k.startswith("tokenizer.")]:
        del changed.metadata[key]
    if model:
        changed.metadata["tokenizer.ggml.model"] = model
    changed.write(tmp_path / "none.gguf")
    with ikq.Model.load(tmp_path / "none.gguf", n_ctx=64) as model:
        with pytest.raises(ikq.FormatError, match="no tokenizer"):
            model.generate("text")
        pieces = list(model.generate([1, 2, 3], max_tokens=4))
        assert len(pieces) == 4
        assert all(p.text == "" for p in pieces)


def test_metadata_can_be_overridden(tiny_moe):
    with ikq.Model.load(tiny_moe, n_ctx=64, override_kv={"qwen3moe.rope.freq_base": 500.0}) as model:
        other = model.logits([1, 2, 3])
    with ikq.Model.load(tiny_moe, n_ctx=64) as model:
        assert not np.array_equal(model.logits([1, 2, 3]), other)


# Chat


class Scripted(TextModel):
    """Says what it is told to."""

    def __init__(self, reader, answer):
        super().__init__(reader, 512)
        self._answer = [*self.tokenize(answer), 4095]
        self._start = None

    n_ctx = 1000

    def new_sequence(self, lora=()):
        return ikq.Sequence(Core())

    def step(self, entries):
        ((sequence, tokens, _),) = entries
        sequence._core.add(tokens)
        sequence._version += 1
        self._start = sequence.n_past if self._start is None else self._start
        logits = np.zeros((1, 4096), np.float32)
        logits[0, self._answer[min(sequence.n_past - self._start, len(self._answer) - 1)]] = 50
        return [logits]

    def _head(self, hidden, lora=()):
        raise AssertionError("nothing here drafts from hidden states")

    def _head_best(self, hidden, n, lora=()):
        raise AssertionError("nothing here drafts from hidden states")


@pytest.mark.parametrize("stop", [(), ["<never>"]])
def test_reasoning_is_told_from_the_answer(tiny_moe, stop):
    model = Scripted(ikq.GGUFReader(tiny_moe), "<think>2+2 is\n4</think>\n\nFour <b> ✓")
    generation = model.chat([{"role": "user", "content": "2+2?"}], temperature=0, logprobs=0, stop=stop)
    pieces = list(generation)
    assert "".join(p.text for p in pieces if p.reasoning) == "<think>2+2 is\n4</think>"
    assert "".join(p.text for p in pieces if not p.reasoning) == "\n\nFour <b> ✓"
    assert [p.reason for p in pieces[-2:]] == [None, "end"]
    tokens = [p.token for p in pieces if p.token is not None]
    assert tokens == model._answer
    assert all((p.logprob is None) == (p.token is None) for p in pieces)


def test_chat_is_generate_on_the_rendered_prompt(model):
    messages = [{"role": "user", "content": "What is a module?"}]
    rendered = model.chat_template.render(messages)
    wanted = tokens_of(model.generate(rendered, max_tokens=10, temperature=0))
    generation = model.chat(messages, max_tokens=10, temperature=0)
    assert tokens_of(generation) == wanted
    assert generation.tokens[: len(generation.tokens) - 10] == model.tokenize(rendered, parse_special=True)
    assert isinstance(generation, Generation)


# Several at a time


def test_threads_share_a_model(model, greedy):
    found = [None] * 4

    def work(i):
        case = greedy[i]
        found[i] = tokens_of(model.generate(case["prompt"], max_tokens=15, temperature=0))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert found == [case["continuation_ids"][:15] for case in greedy[:4]]


def test_asynchronous_generation(model, greedy):
    async def one(case):
        return [p.token async for p in model.agenerate(case["prompt"], max_tokens=30, temperature=0)]

    async def all_of_them():
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticking = asyncio.create_task(tick())
        found = await asyncio.gather(*(one(case) for case in greedy))
        ticking.cancel()
        return found, ticks

    found, ticks = asyncio.run(all_of_them())
    assert found == [case["continuation_ids"][:30] for case in greedy]
    # the loop turned far more often than pieces came
    assert ticks > 2 * 5 * 30


def test_asynchronous_chat_is_the_same(model):
    messages = [{"role": "user", "content": "Hi"}]

    async def pieces():
        return [p async for p in model.achat(messages, max_tokens=5, temperature=0)]

    assert asyncio.run(pieces()) == list(model.chat(messages, max_tokens=5, temperature=0))


def test_errors_reach_the_asynchronous_caller(model):
    async def first():
        async for _ in model.agenerate([1] * 1000):
            pass

    with pytest.raises(ikq.ShapeError, match="1000 tokens"):
        asyncio.run(first())


def test_leaving_an_asynchronous_generation_ends_it(model):
    async def leave():
        pieces = model.agenerate([1, 2, 3], ignore_eos=True)
        async for _ in pieces:
            break
        await pieces.aclose()

    def is_running():
        return any(thread.name == "ikq-generate" for thread in threading.enumerate())

    asyncio.run(leave())
    end = time.monotonic() + 5
    while is_running():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_bar_for_the_prompt(tiny_moe, capsys):
    with ikq.Model.load(tiny_moe, n_ctx=64, n_ubatch=16) as model:
        found = list(model.generate(list(range(50)), max_tokens=2, progress=True))
    assert len(found) == 2
    assert "prompt" in capsys.readouterr().err
