"""`ikq.Sequence` and `Model.step`: forks, going back, shifts, what is held and what it takes, errors."""

import gc
import signal
import time

import numpy as np
import pytest
from engine_checks import EXACT, INVALID, TOLERANCE, largest
from model_files import NAMES, RECURRENT, path, prompt, reader, reference
from numpy_model import NumpyModel
from sequence_checks import DEFAULT, fresh, load, long_text, run, same

import ikq
from ikq.models import model_spec

NOT_RECURRENT = [n for n in NAMES if n not in RECURRENT]
PAGE = 256
CHUNK = 32


# What is computed


@pytest.mark.parametrize("name", NAMES)
def test_hidden_states_are_what_the_output_matrix_reads(name):
    ids = prompt(name, 0)
    spec = model_spec(reader(name))
    with load(name, **EXACT) as model:
        logits = model.logits(ids)
        hidden = model.eval(ids[:1], want="hidden")
        assert hidden.shape == (1, spec.n_embd)
        hidden = fresh(model, ids, want="hidden")
    output = reader(name).tensors.get("output.weight", reader(name).tensors["token_embd.weight"]).dequantize()
    products = hidden.astype(np.float64) @ output.astype(np.float64).T
    assert largest(products, logits) < TOLERANCE


@pytest.mark.parametrize("name", NAMES)
def test_a_step_of_several_is_right(name):
    """Not only equal to itself: both prompts beside the float64 model."""
    with load(name, **EXACT) as model:
        sequences = [model.new_sequence() for _ in range(2)]
        found = model.step([(s, prompt(name, i), "all") for i, s in enumerate(sequences)])
    for i, logits in enumerate(found):
        assert largest(logits, reference(name, i)) < TOLERANCE


@pytest.mark.parametrize("name", NAMES)
def test_forks(name):
    ids = long_text(300)
    others = long_text(301)
    with load(name, n_ctx=512) as model:
        straight = fresh(model, ids)
        mixed = {n: fresh(model, np.concatenate([ids[:n], others[n:]])) for n in (40, 256, 270)}
        with model.new_sequence() as sequence:
            forks = {}
            for start, end in ((0, 40), (40, 256), (256, 270), (270, 300)):
                assert same(straight[start:end], run(model, sequence, ids[start:end]))
                if end in mixed:
                    forks[end] = sequence.fork()
                    assert forks[end].tokens == ids[:end].tolist()
            # both go on: what one writes the other does not see
            entries = [(forks[n], others[n:], "all") for n in forks]
            for n, logits in zip(forks, model.step(entries), strict=True):
                assert same(mixed[n][n:], logits), n
            # a fork of a fork stays when that is closed
            second = forks[270].fork()
            forks[270].close()
            tokens = np.concatenate([ids[:270], others[270:], ids[:7]])
            assert second.tokens == tokens[:-7].tolist()
            assert same(run(model, second, ids[:7], 1), fresh(model, tokens)[-7:])


@pytest.mark.parametrize("name", NAMES)
def test_going_back(name):
    ids = long_text(300)
    with load(name, n_ctx=512) as model:
        straight = fresh(model, ids)
        for n_past, places in ((300, (299, 290, 256, 255, 60, 0)), (257, (256, 255, 200, 10))):
            for n in places:
                with model.new_sequence() as sequence:
                    run(model, sequence, ids[:n_past], 64)
                    reach = sequence.rewindable(n)
                    assert reach <= n
                    if reach < n:
                        assert name in RECURRENT or name.startswith(("gemma3", "gpt-oss"))
                        with pytest.raises(ikq.UnsupportedError, match=f"position {n}.*back to {reach}"):
                            sequence.truncate(n)
                        assert sequence.n_past == n_past
                    sequence.truncate(reach)
                    assert sequence.tokens == ids[:reach].tolist()
                    assert same(straight[reach:], run(model, sequence, ids[reach:])), (n_past, n)
                    sequence.truncate(1000)  # no more than there is
                    assert sequence.n_past == 300


@pytest.mark.parametrize("name", NAMES)
def test_the_last_step_can_always_be_taken_back(name):
    """That is what rejected drafts need."""
    ids = long_text(400)
    with load(name, n_ctx=512) as model:
        straight = fresh(model, ids)
        for n_past, n_step in ((30, 5), (31, 40), (64, 8), (95, 1), (250, 30), (265, 40), (300, 33)):
            for kept in {0, 1, n_step // 2, n_step - 1}:
                with model.new_sequence() as sequence:
                    n = n_past + kept
                    run(model, sequence, ids[:n_past], 17)
                    run(model, sequence, [*ids[n_past:n], *ids[: n_step - kept]])
                    reach = sequence.rewindable(n)
                    # recurrent layers that have begun another chunk go back to before the step
                    assert reach in ((n, n_past) if name in RECURRENT else (n,)), (n_past, n_step, kept)
                    sequence.truncate(reach)
                    assert same(straight[reach:], run(model, sequence, ids[reach:])), (n_past, n_step, kept)


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers_keep_snapshots(name):
    ids = long_text(2000)
    with load(name, n_ctx=2048, n_ubatch=100) as model, model.new_sequence() as sequence:
        straight = fresh(model, ids)
        run(model, sequence, ids)
        reach = {n: sequence.rewindable(n) for n in range(0, 2001, 10)}
        # a message that was edited costs at most as much again as what follows it, or an interval of snapshots
        assert all(n - at <= max(2000 - n, 512 + 100) for n, at in reach.items()), reach
        assert len(set(reach.values())) >= 4
        # inside a chunk it costs nothing
        for n in range(2000 // CHUNK * CHUNK, 2000):
            assert sequence.rewindable(n) == n
        for n in (1990, 1500, 1100, 600, 30):
            fork = sequence.fork()
            fork.truncate(fork.rewindable(n))
            assert same(straight[fork.n_past :], run(model, fork, ids[fork.n_past :])), n


@pytest.mark.parametrize("name", NOT_RECURRENT)
def test_shifts(name):
    """On a fork, beside others, after truncation: the same as straight; the other of both forks stays."""
    ids = long_text(300)
    with load(name, n_ctx=512) as model:
        straight = fresh(model, ids)
        sequence = model.new_sequence()
        run(model, sequence, ids[:290])
        sequence.shift(4, 100)
        assert sequence.tokens == [*ids[:4].tolist(), *ids[104:290].tolist()]
        assert (sequence.n_past, sequence.n_unshifted) == (190, 4)
        shifted = run(model, sequence, ids[:30])
        assert not same(shifted, straight[:30])

        original = model.new_sequence()
        run(model, original, ids[:290], 50)
        fork = original.fork()
        fork.shift(4, 100)
        beside = model.new_sequence()
        found = model.step([(beside, ids, "all"), (fork, ids[:30], "all"), (original, ids[290:], "all")])
        assert same(found[0], straight)
        assert same(found[1], shifted)
        assert same(found[2], straight[290:])
        # the kept beginning is as it was
        fork.truncate(fork.rewindable(4))
        assert fork.n_unshifted == fork.n_past
        assert same(straight[fork.n_past :], run(model, fork, ids[fork.n_past :]))


@pytest.mark.parametrize("name", ["qwen3/qwen3-bf16", "deepseek3/deepseek3-bf16", "gemma3/gemma3-bf16"])
@pytest.mark.parametrize("places", [(0, 256), (256, 10), (100, 1), (10, 500), (0, 300)])
def test_shifts_over_pages_are_right(name, places):
    ids = long_text(600)
    expected = NumpyModel(reader(name), model_spec(reader(name)))
    expected.eval(ids[:560])
    expected.shift(*places)
    wanted = expected.eval(ids[560:])
    with load(name, **{**EXACT, "n_ctx": 1024}) as model, model.new_sequence() as sequence:
        run(model, sequence, ids[:560])
        sequence.shift(*places)
        assert largest(run(model, sequence, ids[560:]), wanted) < 2 * TOLERANCE


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_models_do_not_shift(name):
    with load(name, **DEFAULT) as model, model.new_sequence() as sequence:
        before = run(model, sequence, prompt(name, 0))
        with pytest.raises(ikq.UnsupportedError, match="recurrent"):
            sequence.shift(2, 3)
        assert sequence.n_past == len(before)


# What is held


def test_bytes_are_counted():
    with load("qwen3/qwen3-bf16", n_ctx=1024) as model:
        assert (model.memory.cache, model.pages_held()) == (0, [(None, 0)])
        page = model.sequence_bytes(1)
        # 2 layers, 4 heads, 64 numbers or as many as they have, keys and values of 2 bytes
        attention = model.spec.layers[0].attention
        assert page == PAGE * 2 * attention.n_head_kv * 2 * attention.head_dim * 2
        assert [model.sequence_bytes(n) for n in (0, 256, 257, 1024)] == [0, page, 2 * page, 4 * page]
        sequence = model.new_sequence()
        assert sequence.n_bytes == 0
        run(model, sequence, long_text(300))
        assert sequence.n_bytes == model.memory.cache == 2 * page
        fork = sequence.fork()
        assert (fork.n_bytes, model.memory.cache) == (2 * page, 2 * page)
        run(model, fork, [1])  # writes to the second page
        assert (fork.n_bytes, model.memory.cache) == (2 * page, 3 * page)
        assert model.pages_held() == [(None, 3)]
        fork.truncate(256)
        assert (fork.n_bytes, model.memory.cache) == (page, 2 * page)
        sequence.close()
        assert model.memory.cache == page
        del fork
        gc.collect()
        assert model.memory.cache == 0
        with model.new_sequence() as other:
            run(model, other, [1, 2])
            assert model.memory.cache == page
        assert model.memory.cache == 0
        model.logits([1])
        assert model.memory.cache == page
        model.truncate(0)
        assert model.memory.cache == 0


@pytest.mark.parametrize("name", RECURRENT)
def test_states_take_no_more_than_was_told(name):
    ids = long_text(3000)
    with load(name, n_ctx=3100) as model, model.new_sequence() as sequence:
        for i in range(0, 3000, 100):
            model.step([(sequence, ids[i : i + 100], "none")])
            assert sequence.n_bytes == model.memory.cache <= model.sequence_bytes(sequence.n_past)
        # one more is there only while a snapshot replaces another
        state = model.sequence_bytes(2) - model.sequence_bytes(1)
        assert model.memory.cache == model.sequence_bytes(3000) - state


@pytest.mark.parametrize("cache", ["f32", "f16", "q8_0", "q4_0"])
def test_a_prompt_of_4096_tokens_shared_by_eight(cache):
    ids = long_text(4096)
    with load("qwen3/qwen3-bf16", n_ctx=5000, cache_type_k=cache, cache_type_v=cache) as model:
        first = model.new_sequence()
        run(model, first, ids, want="last")
        one_prompt = model.memory.cache
        assert one_prompt == model.sequence_bytes(4096) == first.n_bytes
        sequences = [first, *(first.fork() for _ in range(7))]
        assert model.memory.cache == one_prompt
        # their answers are their own
        found = model.step([(s, [i], "last") for i, s in enumerate(sequences)])
        assert model.memory.cache == one_prompt + 8 * model.sequence_bytes(1)
        assert all(not same(found[0], logits) for logits in found[1:])
        for s in sequences[1:]:
            s.close()
        assert same(found[0], run(model, second_time(model, ids), [0], want="last"))


def second_time(model, ids):
    sequence = model.new_sequence()
    run(model, sequence, ids, 1000, want="last")
    return sequence


@pytest.mark.parametrize("swa_full", [False, True])
def test_layers_with_a_window_hold_windows(swa_full):
    name = "gemma3/gemma3-bf16"
    ids = long_text(8192)
    with load(name, n_ctx=8192, swa_full=swa_full) as model, model.new_sequence() as sequence:
        windows = {x.attention.window for x in model.spec.layers}
        assert len(windows) == 2
        window = max(w for w in windows if w is not None)
        assert window < PAGE
        last = run(model, sequence, ids, want="last")[-1:]
        held = dict(model.pages_held())
        assert held.keys() == windows
        assert held[None] == 8192 // PAGE
        # the window, and what is kept so that the last tokens can be taken back
        assert held[window] == (8192 // PAGE if swa_full else 2)
        assert sequence.n_bytes == model.memory.cache <= model.sequence_bytes(8192)
        if not swa_full:
            # 5 of 6 layers have windows
            assert model.sequence_bytes(8192) < 0.25 * bytes_of_full_contexts(name)
        assert sequence.rewindable(100) == (100 if swa_full else 0)
        assert sequence.rewindable(8191) == 8191
    with load(name, n_ctx=8192, swa_full=not swa_full) as model:
        assert same(last, fresh(model, ids, 3000, want="last")[-1:])


def bytes_of_full_contexts(name):
    with load(name, n_ctx=8192, swa_full=True) as model:
        return model.sequence_bytes(8192)


@pytest.mark.parametrize("name", RECURRENT)
def test_states_are_counted(name):
    with load(name, n_ctx=2048) as model:
        # of two positions a sequence can hold two states, and the page is the same
        state = model.sequence_bytes(2) - model.sequence_bytes(1)
        assert state > 0 == model.sequence_bytes(0)
        with model.new_sequence() as sequence:
            run(model, sequence, [1])
            page = model.sequence_bytes(1) - state
            assert sequence.n_bytes == model.memory.cache == page + state
            fork = sequence.fork()
            assert model.memory.cache == page + 2 * state
            fork.close()
            run(model, sequence, long_text(1500), 300, want="last")
            # the state, snapshots, and the one before the last step
            assert (model.memory.cache - 6 * page) % state == 0
            assert 1 <= (model.memory.cache - 6 * page) // state <= 7
            assert model.memory.cache <= model.sequence_bytes(1501)
        assert model.memory.cache == 0


# Errors


def test_errors_leave_sequences_as_they_were():
    name = "qwen3/qwen3-bf16"
    ids = prompt(name, 0)
    with load(name, n_ctx=64) as model, load(name, n_ctx=64) as stranger:
        whole = fresh(model, ids)
        a, b, closed = (model.new_sequence() for _ in range(3))
        foreign = stranger.new_sequence()
        closed.close()
        run(model, a, ids[:20])
        run(model, b, ids[:30])
        for entries, error, message in (
            ([(a, [1], "all"), (a, [2], "all")], ValueError, "stands twice"),
            ([(a, [1], "all"), (foreign, [2], "all")], ValueError, "another model"),
            ([(a, [1], "all"), (closed, [2], "all")], ValueError, "closed"),
            ([(a, [1], "all"), (b, [], "all")], ikq.ShapeError, "no tokens"),
            ([(a, [1], "all"), (b, [1] * 35, "all")], ikq.ShapeError, "65 positions"),
            ([(a, [1], "all"), (b, [512], "all")], ikq.FormatError, "512"),
            ([(a, [1], "all"), (b, [1.5], "all")], ikq.FormatError, "float64"),
            ([(a, [1], "some"), (b, [1], "all")], ValueError, "want.*all, last, none, hidden"),
        ):
            with pytest.raises(error, match=message):
                model.step(entries)
            assert (a.n_past, b.n_past) == (20, 30)
        found = model.step([(a, ids[20:], "all"), (b, ids[30:], "all")])
        assert same(found[0], whole[20:])
        assert same(found[1], whole[30:])
        assert model.step([]) == []
        for use in (lambda: closed.n_past, lambda: closed.tokens, lambda: closed.n_bytes, closed.fork, lambda: closed.truncate(0),
                    lambda: closed.rewindable(0), lambda: closed.shift(0, 0), lambda: closed.save("x")):  # fmt: skip
            with pytest.raises(ValueError, match="closed"):
                use()
        closed.close()
        assert repr(closed) == "<closed Sequence>"
        assert repr(a) == "<Sequence of 47 tokens>"
        for change in (
            lambda: a.truncate(-1),
            lambda: a.shift(-1, 1),
            lambda: a.shift(0, 48),
            lambda: a.shift(40, 8),
        ):
            with pytest.raises((OverflowError, *INVALID)):
                change()
        assert a.n_past == 47


def test_a_closed_model():
    model = load("qwen3/qwen3-bf16", n_ctx=64)
    sequence = model.new_sequence()
    run(model, sequence, [1, 2])
    text = model.generate([1, 2, 3])
    next(text)
    model.close()
    for use in (lambda: model.step([(sequence, [1], "all")]), model.new_sequence, lambda: model.load_sequence("x"),
                lambda: sequence.shift(0, 1), lambda: sequence.save("x"), model.pages_held, lambda: next(text)):  # fmt: skip
        with pytest.raises(ValueError, match="closed"):
            use()
    sequence.close()


@pytest.mark.parametrize("name", ["qwen3/qwen3-bf16", "gemma3/gemma3-bf16", *RECURRENT])
def test_an_interrupted_step(name):
    """Ctrl-C in a long step: sequences hold what they held, also pages that it gave back; recurrent ones may hold nothing."""
    ids = long_text(20_000)
    with load(name, n_ctx=30_000, n_ubatch=64, n_threads=1) as model:
        sequence, other = model.new_sequence(), model.new_sequence()
        run(model, sequence, ids[:40])
        run(model, other, ids[:50])

        def interrupt(*_):
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        start = time.perf_counter()
        try:
            with pytest.raises(KeyboardInterrupt):
                model.step([(other, ids[:10], "all"), (sequence, ids, "last")])
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert time.perf_counter() - start < 5
        straight = fresh(model, ids[:100])
        for s, n in ((sequence, 40), (other, 50)):
            n_past = s.n_past
            assert n_past in ((n, 0) if name in RECURRENT else (n,))
            assert s.tokens == ids[:n_past].tolist()
            assert same(straight[n_past:], run(model, s, ids[n_past:100]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"devices": ("CPU2x",)}, "there is no device CPU2x"),
        ({"devices": ("CPU", "CUDA0")}, "no GPU is usable|CUDA0"),
        ({"override_tensor": "exps"}, "REGEX=DEVICE"),
        ({"override_tensor": "exps=GPU"}, "no device GPU"),
        ({"override_tensor": ["attn=CPU", "(=CPU"]}, "override_tensor"),
    ],
)
def test_bad_places(options, message):
    with pytest.raises((ikq.RefusedError, ikq.UnsupportedError, ikq.DeviceError, ValueError), match=message):
        ikq.Model.load(path("qwen3/qwen3-bf16"), n_ctx=64, **options)


@pytest.mark.parametrize("places", [(2, 560), (2, 570), (423, 143), (300, 200), (0, 500)])
def test_shifts_behind_windows_do_not_depend_on_cuts(places):
    """Which pages a window has given back depends on how a prompt was cut; what follows a shift does not."""
    ids = long_text(640)
    with load("gemma3/gemma3-bf16", n_ctx=1024) as model:
        found = []
        for width in (None, 33, 100):
            with model.new_sequence() as sequence:
                run(model, sequence, ids[:582], width)
                sequence.shift(*places)
                assert sequence.rewindable(sequence.n_past - 1) == 0
                found.append(run(model, sequence, ids[582:]))
        assert all(same(found[0], other) for other in found[1:])
