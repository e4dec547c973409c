"""What is computed when, and for whom: seeds under load, chunks between steps, what is not computed twice."""

from __future__ import annotations

import http.client
import itertools
import json
import random
import threading
import time

import pytest
from model_files import path
from serving import GREEDY, TINY, address, engine, serving

import ikq
from ikq.inference.steps import Work
from ikq.serve.engine import shortest_first
from ikq.serve.queueing import FairQueue
from ikq.speculation.options import Speculation


def words(n, seed=0):
    """A text of at least n tokens that no other seed's begins as."""
    rng = random.Random(seed)
    return f"{seed} " + " ".join(rng.choice(["import", "os", "def", "return", "self", "x"]) for _ in range(n))


def together(do, items):
    """What `do` gives for each, all at the same time."""
    found = [None] * len(items)

    def run(i):
        found[i] = do(items[i])

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(items))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def complete(server, prompt, **options):
    status, reply = server.ask("/v1/completions", {"prompt": prompt, "max_tokens": 16, **options})
    assert status == 200, reply
    return reply


def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not come to pass"
        time.sleep(0.005)


def test_the_same_seed_gives_the_same_text_under_load(server):
    request = {"seed": 11, "max_tokens": 48, "temperature": 1.2, "top_k": 0, "top_p": 1, "min_p": 0}
    alone = complete(server, "import os\n", **request)["choices"][0]["text"]

    def ask(i):
        if i == 8:
            time.sleep(0.05)
            return complete(server, "import os\n", **request)["choices"][0]["text"]
        return complete(server, words(30 + 20 * i, i), seed=i, max_tokens=40)

    assert together(ask, list(range(17)))[8] == alone
    with ikq.Model.load(TINY, n_ctx=1024) as model:
        options = {k: v for k, v in request.items() if k != "max_tokens"}
        assert model.generate("import os\n", max_tokens=48, **options).text() == alone


@pytest.mark.parametrize("drafts", [{"lookup": True}, {"draft_model": str(TINY)}])
def test_drafts_change_no_text(drafts):
    prompt = "import os\nimport sys\nimport os\nimport"
    with ikq.Model.load(TINY, n_ctx=512) as model:
        expected = [model.generate(prompt, max_tokens=32, seed=s).text() for s in range(4)]
    from ikq.serve.settings import Settings

    settings = Settings(port=0, access_log=False)
    with ikq.Server(TINY, settings, load_options={"n_ctx": 512}, speculation=Speculation(**drafts)) as server:
        from serving import ask

        server.ask = lambda *args, **kwargs: ask(server, *args, **kwargs)
        replies = together(lambda s: complete(server, prompt, seed=s, max_tokens=32), list(range(4)))
    assert [r["choices"][0]["text"] for r in replies] == expected


def test_what_begins_alike_is_computed_once():
    with serving(n_ctx=4096, parallel=8, queue=100) as server:
        shared = words(2000)
        with ikq.Model.load(TINY, n_ctx=4096) as model:
            n_shared = len(model.tokenize(shared))
        assert n_shared >= 2000
        n = 100

        def ask(i):
            return complete(server, f"{shared}\n{i} def", max_tokens=2, **GREEDY)["usage"]

        usages = together(ask, list(range(n)))
        computed = [u["prompt_tokens"] - u["prompt_tokens_details"]["cached_tokens"] for u in usages]
        assert sum(computed) <= n_shared + n * 12
        assert engine(server).counters.n_prompt == sum(computed)


@pytest.mark.parametrize("name", ["tiny", "qwen3next/qwen3next-bf16", "gemma3/gemma3-bf16"])
def test_a_second_turn_computes_what_is_new(name, tmp_path):
    file = TINY if name == "tiny" else path(name)
    interval = 1 if name == "tiny" else 256
    first = [{"role": "user", "content": words(600)}]
    load = {"swa_full": True} if name.startswith("gemma3") else {}
    settings = {"n_ctx": 4096, "prefix_dir": tmp_path, "load": load}

    def chat(server, messages):
        body = {"messages": messages, "max_tokens": 8, "ignore_eos": True, **GREEDY}
        status, reply = server.ask("/v1/chat/completions", body)
        assert status == 200, reply
        usage = reply["usage"]
        return reply, usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"]

    with serving(file, **settings) as server:
        reply, n = chat(server, first)
        assert n == reply["usage"]["prompt_tokens"]
        n_first = n
        second = [*first, reply["choices"][0]["message"], {"role": "user", "content": "go on"}]
        again, n = chat(server, second)
        # an answer may be cut into other tokens when it is read
        n_new = again["usage"]["prompt_tokens"] - n_first
        assert n <= n_new + interval
        text = again["choices"][0]["message"]["content"]
    # a server that is started again knows it still
    with serving(file, **settings) as server:
        once_more, n = chat(server, second)
        assert n <= n_new + interval
        assert once_more["choices"][0]["message"]["content"] == text


def test_tokens_of_others_come_while_a_prompt_is_read():
    with serving(n_ctx=8192, load={"n_ubatch": 128}) as server:
        steps = []
        (loaded,) = server.models.loaded
        step = loaded.model.step

        def noted(entries):
            entries = list(entries)
            steps.append([len(tokens) for _, tokens, _ in entries])
            return step(entries)

        loaded.model.step = noted
        body = {"prompt": "import", "max_tokens": 400, "stream": True, "ignore_eos": True, "seed": 1}
        streams = [threading.Thread(target=lambda: server.ask("/v1/completions", body)) for _ in range(3)]
        for thread in streams:
            thread.start()
        until(lambda: engine(server).n_running == 3)
        complete(server, words(4000), max_tokens=1)
        for thread in streams:
            thread.join()
    chunks = [s for s in steps if max(s) > 30]
    assert len(chunks) >= 30
    # every chunk of the prompt has the next token of each of the others beside it, while they last
    assert sum(s.count(1) == 3 for s in chunks) >= len(chunks) - 4
    assert max(map(sum, steps)) <= 128 + 3


def test_the_wait_for_tokens_while_a_prompt_is_read():
    """A prompt of 4096 tokens delays the next token of others by the step of one chunk, not by the whole of it."""
    n_ubatch = 256
    with serving(n_ctx=8192, load={"n_ubatch": n_ubatch}, parallel=4) as server:
        (loaded,) = server.models.loaded
        step, chunks = loaded.model.step, []

        def timed(entries):
            entries = list(entries)
            start = time.perf_counter()
            found = step(entries)
            if sum(len(tokens) for _, tokens, _ in entries) >= n_ubatch:
                chunks.append(time.perf_counter() - start)
            return found

        loaded.model.step = timed
        came, enough = [], threading.Event()
        body = {"prompt": "import", "max_tokens": 3000, "stream": True, "ignore_eos": True, "seed": 1}

        def listen():
            connection = http.client.HTTPConnection(*address(server), timeout=60)
            connection.request("POST", "/v1/completions", json.dumps(body))
            with connection.getresponse() as response:
                for line in response:
                    if line.startswith(b"data: "):
                        came.append(time.perf_counter())
                    if enough.is_set():
                        break
            connection.close()

        listener = threading.Thread(target=listen)
        listener.start()
        until(lambda: len(came) > 20)
        prompt = random.Random(1).choices(range(300, 4000), k=4096)
        begin = time.perf_counter()
        complete(server, prompt, max_tokens=1)
        end = time.perf_counter()
        enough.set()
        listener.join()
    gaps = [b - a for a, b in itertools.pairwise(came) if b > begin and a < end]
    assert len(chunks) >= 4096 // n_ubatch - 2
    # a token beside each chunk
    assert len(gaps) >= len(chunks)
    # it is chosen, sent and received behind the step, by threads that a busy machine lets wait now and then
    assert sorted(gaps)[-2] <= 2 * max(chunks) + 0.05
    # were the prompt read at once, there would be one gap of all that time
    assert max(gaps) <= (end - begin) / 3


def test_a_client_that_goes_away_is_not_computed_for(server):
    before = engine(server).counters.n_cancelled
    for stream in (True, False):
        connection = http.client.HTTPConnection(*address(server), timeout=20)
        body = {"prompt": "import", "max_tokens": 900, "ignore_eos": True, "stream": stream}
        connection.request("POST", "/v1/completions", json.dumps(body))
        until(lambda: engine(server).n_running == 1)
        connection.close()
        until(lambda: engine(server).n_wanted == 0, 5)
    assert engine(server).counters.n_cancelled == before + 2
    assert engine(server).counters.n_chosen < 10_000


def test_too_many_are_told_when_to_come_again():
    with serving(parallel=1, queue=1) as server:
        body = {"prompt": "import", "max_tokens": 700, "ignore_eos": True}
        threads = [threading.Thread(target=lambda: server.ask("/v1/completions", body)) for _ in range(2)]
        for thread in threads:
            thread.start()
        until(lambda: engine(server).n_wanted == 2)
        connection = http.client.HTTPConnection(*address(server), timeout=20)
        connection.request("POST", "/v1/completions", json.dumps(body))
        response = connection.getresponse()
        assert response.status == 429
        assert int(response.getheader("retry-after")) >= 1
        assert json.loads(response.read())["error"]["type"] == "rate_limit_error"
        connection.close()
        for thread in threads:
            thread.join()
        complete(server, "import", max_tokens=1)


def test_a_request_that_takes_too_long(server):
    body = {"prompt": "import", "max_tokens": 900, "ignore_eos": True, "timeout": 0.05}
    status, reply = server.ask("/v1/completions", body)
    assert (status, reply["error"]["type"]) == (408, "timeout_error")
    assert "0.05 s that it gave itself" in reply["error"]["message"]
    assert engine(server).n_wanted == 0


def test_a_request_that_takes_longer_than_the_server_allows():
    with serving(timeout=0.05) as server:
        body = {"prompt": "import", "max_tokens": 900, "ignore_eos": True, "timeout": 9}
        status, reply = server.ask("/v1/completions", body)
    assert (status, reply["error"]["type"]) == (408, "timeout_error")
    assert "0.05 s that the server allows (--timeout)" in reply["error"]["message"]


def test_texts_wait_when_memory_is_short_and_are_the_same():
    # each takes three pages of 256 in the end, two when it is let in
    n_texts, n_tokens = 2, 290
    prompts = [random.Random(i).choices(range(300, 4000), k=240) for i in range(n_texts)]

    def ask_all(server):
        def ask(i):
            return complete(server, prompts[i], seed=i, max_tokens=n_tokens, ignore_eos=True)["choices"]

        return together(ask, list(range(n_texts)))

    with serving(n_ctx=1024, parallel=n_texts) as server:
        expected = ask_all(server)
        assert engine(server).counters.n_paused == 0
        (loaded,) = server.models.loaded
        page = loaded.model.sequence_bytes(256)
    with serving(n_ctx=1024, parallel=n_texts, cache_bytes=5 * page) as server:
        found = ask_all(server)
        assert engine(server).counters.n_paused > 0
    assert found == expected


def test_a_panic_of_the_core_ends_what_it_met_and_nothing_else():
    """It is no `Exception`; the engine's thread survives it, and what clients hear says nothing of it."""

    class Panic(BaseException):
        pass

    with serving(n_ctx=512) as server:
        (loaded,) = server.models.loaded
        step = loaded.model.step

        def panicking(entries):
            raise Panic("index out of bounds")

        loaded.model.step = panicking
        body = {"prompt": "import", "max_tokens": 4, "n": 2}
        for path_, body_ in (("/v1/completions", body), ("/v1/embeddings", {"input": "import"})):
            status, reply = server.ask(path_, body_)
            assert (status, "bounds" in str(reply)) == (500, False), path_
        assert engine(server).n_wanted == 0
        loaded.model.step = step
        complete(server, "import", max_tokens=4)


def test_clients_take_turns():
    queue = FairQueue()
    for i in range(5):
        queue.add("much", f"much{i}")
    queue.add("little", "little")
    assert [queue.pop() for _ in range(3)] == ["much0", "little", "much1"]
    assert queue.peek() == "much2"
    assert queue.remove(lambda x: x != "much3") == ["much2", "much4"]
    assert list(queue) == ["much3"]


def test_requests_of_a_client_take_turns():
    queue = FairQueue()
    for i in range(4):
        queue.add("a", f"many{i}", 1)
    queue.add("a", "one", 2)
    queue.add("b", "other", 3)
    assert [queue.pop() for _ in range(4)] == ["many0", "other", "one", "many1"]
    assert (len(queue), queue.peek()) == (2, "many2")
    assert queue.remove(lambda x: x == "many2") == ["many2"]
    assert [queue.pop(), len(queue)] == ["many3", 0]


def test_short_prompts_are_read_first_and_long_ones_are_not_forgotten():
    long, short, middle = (Work([1] * n) for n in (4000, 20, 300))
    shares = {id(p[0]): n for p, n in shortest_first([(long, 0), (short, 0), (middle, 0)], 512)}
    assert shares == {id(long): 192, id(short): 20, id(middle): 300}
    shares = {id(p[0]): n for p, n in shortest_first([(long, 0), (middle, 0), (Work([1] * 400), 0)], 400)}
    assert (shares[id(long)], shares[id(middle)]) == (100, 300)
