"""Speculation with models on a GPU (the stand-in): the text is the same without."""

import json

import pytest
from emulator import FULL, needs_gxx, only_in_full
from model_files import Changed, reader
from mtp_files import HEADS, add_head, chain, cut_to_what_follows, with_head
from standin import environment, ikq_command, run
from test_whole_models_on_device import ALL

pytestmark = [needs_gxx, pytest.mark.timeout(1800)]

PROGRAM = """
import json, sys
import ikq
path, other, text, cases = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), json.loads(sys.argv[4])
n_tokens = int(sys.argv[5])
always = {"draft_adapt": False, "draft_p_min": 0.0, "draft_max": 4}

def told(generation):
    tokens = [piece.token for piece in generation if piece.token is not None]
    return tokens, generation.stats.n_drafted, generation.stats.n_accepted

found = {}
for name, (target, draft) in cases.items():
    with ikq.Model.load(path, n_ctx=96, n_threads=2, **target) as model:
        def generated(**options):
            return told(model.generate(text, max_tokens=n_tokens, temperature=0, ignore_eos=True, **options))

        found[name] = {"plain": generated(), "mtp": generated(mtp=True, **always)}
        found[name]["lookup"] = generated(lookup=1, **always)
        with ikq.Model.load(other, n_ctx=96, n_threads=2, **draft) as small:
            found[name]["draft"] = generated(draft_model=small, **always)
print(json.dumps(found))
"""

PLACES = {
    "both": (ALL, ALL),
    "target": (ALL, {}),
    "draft": ({}, ALL),
    "experts in RAM": (ALL | {"cpu_moe": True}, {}),
}
QUICK = ("both",)
N_TOKENS = 25 if FULL else 9


def spoken(file, other, text, tmp_path):
    cases = {name: PLACES[name] for name in (PLACES if FULL else QUICK)}
    arguments = (str(file), str(other), json.dumps(text), json.dumps(cases), str(N_TOKENS))
    return json.loads(run(PROGRAM, environment(), *arguments, timeout=1700))


@only_in_full
@pytest.mark.parametrize("name", HEADS)
def test_texts_are_those_without_drafts(name, tmp_path):
    """Heads whose drafts are mostly wrong, and draft models that are always right or never."""
    file = tmp_path / "model.gguf"
    with_head(name).write(file)
    found = spoken(file, file, list(range(3, 20)), tmp_path)
    for case, by_drafter in found.items():
        plain, *_ = by_drafter["plain"]
        assert len(plain) == N_TOKENS
        for drafter, (tokens, n_drafted, n_accepted) in by_drafter.items():
            assert tokens == plain, (case, drafter)
            assert n_accepted <= n_drafted
        _, n_drafted, n_accepted = by_drafter["draft"]
        # the model drafts for itself; two devices may differ where two tokens are as likely
        assert n_accepted == n_drafted > 0 or case in ("target", "draft", "experts in RAM"), case


@pytest.mark.parametrize("name", HEADS if FULL else HEADS[1:2])
def test_a_head_that_knows_what_follows(name, tmp_path):
    """All that is drafted is accepted: the hidden states that a GPU gives are those of their tokens."""
    changed = cut_to_what_follows(add_head(Changed(reader(name))), from_hidden=True)
    file = tmp_path / "model.gguf"
    changed.write(file)
    n_vocab, n_embd = changed.array("token_embd.weight").shape
    text = [3, *chain(3, 60, min(n_vocab, n_embd))]
    for case, by_drafter in spoken(file, file, text[:17], tmp_path).items():
        for drafter, (tokens, n_drafted, n_accepted) in by_drafter.items():
            assert tokens == text[17 : 17 + N_TOKENS], (case, drafter)
            assert n_accepted == n_drafted, (case, drafter)
        assert all(by_drafter[d][1] > 0 for d in ("mtp", "draft")), case


SERVED = """
import http.client, json, sys
from ikq.__main__ import main
from ikq.speculation.draft_model import DraftModels
import ikq

path = sys.argv[1]
got, get = {}, DraftModels.get

def noted(self, given, model):
    draft = get(self, given, model)
    got[model] = draft
    return draft

DraftModels.get = noted

class Asked(ikq.Server):
    def run(self):
        with self:
            host, _, port = self.url.split("/")[2].rpartition(":")
            connection = http.client.HTTPConnection(host, int(port))
            request = {"prompt": "import sys", "max_tokens": 6, "temperature": 0, "ignore_eos": True}
            connection.request("POST", "/v1/completions", json.dumps(request), {"Content-Type": "application/json"})
            said = json.loads(connection.getresponse().read())
            ((model, draft),) = got.items()
            places = {name: sorted({p.device for p in m.explain().placement if p.stage != "embedding"}) for name, m in (("model", model), ("draft", draft))}
            print(json.dumps(places | {"text": said["choices"][0]["text"], "n_ctx": draft.n_ctx}))

ikq.Server = Asked
always = ["--draft-max", "3", "--draft-p-min", "0", "--no-draft-adapt", "--port", "0", "--no-log", "-t", "2", "-c", "64"]
sys.exit(main(["serve", "-m", path, "-md", path, *always, *sys.argv[2:]]))
"""


def test_a_servers_draft_model_is_where_its_model_is(tiny_moe):
    """Whole on the GPU that has the last layers, unless it is said where."""
    env = environment(IKQ_STANDIN_DEVICES="2")
    gpus = ("-ngl", "99", "-ts", "1,1")
    cases = {
        (): (["CPU"], ["CPU"]),
        ("-dev", "CUDA0", "-ngl", "99"): (["CUDA0"], ["CUDA0"]),
        gpus: (["CUDA0", "CUDA1"], ["CUDA1"]),
        (*gpus, "-devd", "CUDA0"): (["CUDA0", "CUDA1"], ["CUDA0"]),
        (*gpus, "-ngld", "0"): (["CUDA0", "CUDA1"], ["CPU"]),
        (*gpus, "-devd", "none"): (["CUDA0", "CUDA1"], ["CPU"]),
        ("-devd", "CUDA1", "-ngld", "1"): (["CPU"], ["CPU", "CUDA1"]),
    }
    if not FULL:
        cases = {key: cases[key] for key in (gpus, (*gpus, "-ngld", "0"), ("-devd", "CUDA1", "-ngld", "1"))}
    texts = set()
    for options, (model, draft) in cases.items():
        found = json.loads(run(SERVED, env, str(tiny_moe), *options))
        assert (found["model"], found["draft"]) == (model, draft), options
        assert found["n_ctx"] == 64
        texts.add(found["text"])
    assert len(texts) == 1


def test_the_command(tiny_moe):
    """The model's own file drafts on the GPU; without a GPU that is refused."""
    arguments = ("run", "-m", tiny_moe, "-p", "import sys", "-n", "8", "--temp", "0", "--no-perf")
    drafts = ("-md", tiny_moe, "-ngld", "99", "--draft-max", "3", "--draft-p-min", "0", "--no-draft-adapt")
    there = ikq_command(environment(), *arguments, *drafts, "-ngl", "99")
    assert there.returncode == 0, there.stderr
    assert there.stdout == ikq_command(environment(), *arguments).stdout
    without = {k: v for k, v in environment().items() if k != "LD_LIBRARY_PATH"} | {"IKQ_CUDA": "0"}
    done = ikq_command(without, *arguments, *drafts)
    assert done.returncode == 1
    assert "-ngld: no GPU is usable" in done.stderr
    done = ikq_command(without, *arguments, *drafts, "--fallback-cpu")
    assert done.returncode == 0, done.stderr
    assert "-ngld: no GPU is usable" in done.stderr
    assert done.stdout == there.stdout
