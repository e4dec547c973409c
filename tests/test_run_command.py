"""`ikq run`: completion, chat through a pipe and in a terminal, Ctrl-C, errors and their exit codes."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import pytest
from model_files import Changed

import ikq
from ikq.__main__ import main

GREEDY = ["--temp", "0", "--no-perf"]


def run(*arguments, **kwargs):
    command = [sys.executable, "-m", "ikq", "run", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **kwargs)


@pytest.fixture(scope="module")
def with_template(tiny_moe, tmp_path_factory):
    """The model with a template that opens the reasoning; what the model writes is closed nowhere."""
    changed = Changed(ikq.GGUFReader(tiny_moe))
    changed.metadata["tokenizer.chat_template"] = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}"
        "{% if enable_thinking is not defined or enable_thinking %}<think>{% endif %}"
    )
    file = tmp_path_factory.mktemp("run") / "template.gguf"
    changed.write(file)
    return file


def completion(model, prompt, n):
    with ikq.Model.load(model, n_ctx=128) as m:
        return m.generate(prompt, max_tokens=n, temperature=0).text()


# Completion


def test_a_prompt_and_what_follows(tiny_moe, capsys):
    assert (
        main(["run", "-m", str(tiny_moe), "-p", "import sys\\n", "-n", "20", "--temp", "0", "-c", "128"]) == 0
    )
    out, err = capsys.readouterr()
    follows = completion(tiny_moe, "import sys\n", 20)
    assert out == f"import sys\n{follows}\n"
    numbers = r" =\s+[\d.]+ ms"
    rate = r"\(\s*[\d.]+ ms per token,\s+[\d.]+ tokens per second\)"
    assert re.search(rf"load time{numbers}\n", err)
    assert re.search(rf"prompt eval time{numbers} /\s+3 tokens {rate}\n", err)
    assert re.search(rf" eval time{numbers} /\s+19 runs   {rate}\n", err)
    assert re.search(rf"total time{numbers} /\s+22 tokens", err)
    assert (
        main(["cli", "-m", str(tiny_moe), "-p", "import sys\n", "-n", "20", "--no-display-prompt", *GREEDY])
        == 0
    )
    assert capsys.readouterr() == (f"{follows}\n", "")


def test_a_prompt_from_a_pipe_and_from_a_file(tiny_moe, tmp_path):
    follows = completion(tiny_moe, "The \\n module", 8)
    done = run("-m", tiny_moe, "-n", 8, *GREEDY, input="The \\n module")
    assert (done.stdout, done.stderr, done.returncode) == (f"The \\n module{follows}\n", "", 0)
    file = tmp_path / "prompt.txt"
    file.write_text("The \\n module")
    done = run("-m", tiny_moe, "-n", 8, "-f", file, *GREEDY)
    assert done.stdout == f"The \\n module{follows}\n"


def test_escapes(tiny_moe, capsys):
    for options, shown in [([], "a\tb\\"), (["-e"], "a\tb\\"), (["--no-escape"], "a\\tb\\\\")]:
        assert main(["run", "-m", str(tiny_moe), "-p", "a\\tb\\\\", "-n", "0", *GREEDY, *options]) == 0
        assert capsys.readouterr().out == f"{shown}\n"


def test_stop_and_seed(tiny_moe, capsys):
    arguments = ["run", "-m", str(tiny_moe), "-p", "import", "-n", "30", "--no-perf"]
    texts = []
    for seed in ("1", "1", "2"):
        assert main([*arguments, "-s", seed, "--temp", "1.5"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]
    assert main([*arguments, "--temp", "0", "-r", "port"]) == 0
    out = capsys.readouterr().out
    assert "port" not in out.removeprefix("import")


def test_all_sampling_options_reach_the_sampler(tiny_moe, capsys):
    options = [
        "--top-k",
        "5",
        "--top-p",
        "0.9",
        "--min-p",
        "0.1",
        "--typical",
        "0.9",
        "--top-nsigma",
        "2",
        "--xtc-probability",
        "0.1",
        "--xtc-threshold",
        "0.2",
        "--repeat-penalty",
        "1.1",
        "--presence-penalty",
        "0.1",
        "--frequency-penalty",
        "0.1",
        "--repeat-last-n",
        "10",
        "--dry-multiplier",
        "0.5",
        "--dry-base",
        "1.5",
        "--dry-allowed-length",
        "3",
        "--dry-penalty-last-n",
        "50",
        "--dry-sequence-breaker",
        "none",
        "--dynatemp-range",
        "0.2",
        "--dynatemp-exp",
        "1.1",
        "--mirostat",
        "0",
        "--mirostat-lr",
        "0.2",
        "--mirostat-ent",
        "4",
        "--adaptive-target",
        "0.3",
        "--adaptive-decay",
        "0.8",
        "--adaptive-updt-w-cur",
        "-l",
        "5-inf",
        "--logit-bias",
        "6+2",
        "--samplers",
        "top_k;temperature",
        "-s",
        "3",
    ]
    arguments = ["run", "-m", str(tiny_moe), "-p", "import", "-n", "5", "--no-perf", *options]
    assert main(arguments) == 0
    from ikq.cli import build_parser
    from ikq.cli.sampling_options import sampling_options

    found = sampling_options(build_parser().parse_args(arguments))
    assert (found.top_k, found.typical_p, found.mirostat_eta, found.mirostat_tau) == (5, 0.9, 0.2, 4.0)
    assert (found.dry_sequence_breakers, found.samplers) == ([], ("top_k", "temperature"))
    assert found.logit_bias == {5: float("-inf"), 6: 2.0}
    assert (found.adaptive_target, found.adaptive_update_with_current, found.seed) == (0.3, True, 3)
    assert (found.dynatemp_range, found.dynatemp_exponent, found.top_n_sigma) == (0.2, 1.1, 2.0)
    capsys.readouterr()


def test_flags_of_other_builds(tiny_moe, capsys):
    flags = [
        "-ngl",
        "99",
        "-ot",
        "exps=CPU",
        "--cpu-moe",
        "--n-cpu-moe",
        "3",
        "-fa",
        "-mqkv",
        "-fa",
        "on",
        "-tb",
        "7",
        "--mlock",
        "-rtr",
        "--fallback-cpu",
    ]
    assert main(["run", "-m", str(tiny_moe), "-p", "a", "-n", "1", "--no-perf", *flags]) == 0
    *notes, gpu = capsys.readouterr().err.splitlines()
    assert gpu.startswith("note: -ngl: ")
    assert gpu.endswith("; all layers run on the CPU")
    assert notes == [
        "note: -fa, -mqkv, -fa on ignored: not needed, ikq decides this by itself",
        "note: --mlock ignored: not offered",
        "note: -rtr ignored: weights are re-arranged while loading in any case",
        "note: -tb ignored: one set of threads (-t) does both prompt and generation",
    ]


def test_loading_options(tiny_moe, capsys):
    flags = [
        "-c",
        "64",
        "-t",
        "1",
        "-b",
        "256",
        "-ub",
        "16",
        "-ctk",
        "q8_0",
        "-ctv",
        "F32",
        "-no-fmoe",
        "-no-fug",
        "-muge",
        "-ser",
        "1,0.5",
        "--no-mmap",
        "--compute",
        "f32",
        "-ngl",
        "2",
        "-dev",
        "CPU1,CPU2",
        "-ts",
        "3,1",
        "-ot",
        "exps=CPU2,attn=CPU",
        "-ot",
        "output=CPU1",
        "--cpu-moe",
        "-ncmoe",
        "1",
        "-nkvo",
        "--no-cache-rotation",
        "--swa-full",
        "--override-kv",
        "qwen3moe.rope.freq_base=float:500",
        "--override-kv",
        "general.name=str:x",
    ]
    from ikq.cli import build_parser
    from ikq.cli.model_options import load_options

    arguments = ["run", "-m", str(tiny_moe), "-p", "a", "-n", "1", "--no-perf", *flags]
    assert load_options(build_parser().parse_args(arguments)) == {
        "n_ctx": 64,
        "n_threads": 1,
        "n_ubatch": 16,
        "cache_type_k": "q8_0",
        "cache_type_v": "f32",
        "compute": "f32",
        "fused_up_gate": False,
        "fused_moe": False,
        "merge_up_gate_experts": True,
        "expert_reduction": (1, 0.5),
        "mmap": "off",
        "n_gpu_layers": 2,
        "devices": ["CPU", "CPU1", "CPU2"],
        "tensor_split": [3.0, 1.0],
        "override_tensor": ["exps=CPU2,attn=CPU", "output=CPU1"],
        "cpu_moe": True,
        "n_cpu_moe": 1,
        "kv_offload": False,
        "fit": False,
        "fit_margin": 1024,
        "lora": (),
        "fit_sequences": 1,
        "cache_rotation": False,
        "swa_full": True,
        "override_kv": {"qwen3moe.rope.freq_base": 500.0, "general.name": "x"},
    }
    assert main(arguments) == 0
    capsys.readouterr()


# Errors


def test_a_prompt_longer_than_the_context(tiny_moe, capsys):
    assert main(["run", "-m", str(tiny_moe), "-p", "a b c " * 20, "-c", "16"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(
        r"error: the prompt has \d+ tokens, the context holds 16; shorten it or .*\(-c\)\n", err
    )


def test_a_full_context_is_said(tiny_moe, capsys):
    arguments = ["run", "-m", str(tiny_moe), "-p", "a", "-c", "16", "--ignore-eos", *GREEDY]
    assert main(arguments) == 0
    assert "context of 16 tokens is full" in capsys.readouterr().err
    assert main([*arguments, "--context-shift", "--keep", "2", "-n", "40"]) == 0
    assert capsys.readouterr().err == ""


def test_an_empty_prompt(tiny_moe, tmp_path, capsys):
    assert main(["run", "-m", str(tiny_moe), "-p", ""]) == 2
    assert capsys.readouterr().err == "error: the prompt (-p) is empty\n"
    (tmp_path / "empty").write_text("")
    assert main(["run", "-m", str(tiny_moe), "-f", str(tmp_path / "empty")]) == 2
    assert "is empty" in capsys.readouterr().err
    done = run("-m", tiny_moe, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stderr) == (2, "error: the prompt (standard input) is empty\n")


@pytest.mark.parametrize("model", [None, "no_vocab"])
def test_a_file_without_a_tokenizer(tiny_moe, tmp_path, capsys, model):
    changed = Changed(ikq.GGUFReader(tiny_moe))
    for key in [k for k in changed.metadata if k.startswith("tokenizer.")]:
        del changed.metadata[key]
    if model:
        changed.metadata["tokenizer.ggml.model"] = model
    changed.write(tmp_path / "none.gguf")
    assert main(["run", "-m", str(tmp_path / "none.gguf"), "-p", "a"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: the file has no tokenizer")
    assert err.count("\n") == 1


def test_files_that_are_no_model(tmp_path, capsys):
    (tmp_path / "text.gguf").write_text("no model at all, but a text of some length")
    (tmp_path / "latin").write_bytes(b"gr\xfc\xdfe")
    for file, words in [("text.gguf", "GGUF"), ("none.gguf", "no such file"), (".", "directory")]:
        assert main(["run", "-m", str(tmp_path / file), "-p", "a"]) == 1
        err = capsys.readouterr().err
        assert err.startswith("error: ")
        assert words in err
        assert err.count("\n") == 1
    assert main(["run", "-m", "x", "-f", str(tmp_path / "latin")]) == 1
    assert "not UTF-8 at byte 2" in capsys.readouterr().err


def test_placement_rules_that_fit_nothing(tiny_moe, capsys):
    arguments = ["run", "--dry-run", "-m", str(tiny_moe), "-dev", "CPU,CPU1"]
    assert main([*arguments, "-ot", "exps=CPU1,no_such=CPU1"]) == 0
    assert capsys.readouterr().err == "note: -ot no_such: no tensor has such a name\n"
    assert main(["run", "-m", str(tiny_moe), "-n", "1", "-p", "a", "--no-perf", "-ot", "blk.9=CPU"]) == 0
    assert capsys.readouterr().err == "note: -ot blk.9: no tensor has such a name\n"


def test_all_layers_are_shown_as_all(tiny_moe, capsys):
    for n in ("all", "-1"):
        assert main(["run", "--dry-run", "-m", str(tiny_moe), "-dev", "CPU,CPU1", "-ngl", n]) == 0
        out = capsys.readouterr().out
        assert "n_gpu_layers=all" in out
        assert "2147483647" not in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--temp", "-1"], "temperature=-1"),
        (["--top-p", "1.5"], "top_p=1.5"),
        (["--mirostat", "1"], "mirostat=1"),
        (["--samplers", "top_q"], "top_q"),
        (["-n", "-5"], "-n -5"),
        (["-t", "0"], "-t 0"),
        (["-ub", "0"], "-ub 0"),
        (["-ncmoe", "-1"], "-ncmoe -1"),
        (["-ot", "exps"], "override_tensor=exps"),
        (["-ot", "exps=GPU0"], "override_tensor=exps=GPU0: there is no device GPU0"),
        (["-ot", "exps="], "override_tensor=exps=: the device is missing; expected REGEX=DEVICE (-ot)"),
        (["-ot", "exps=CPU,"], 'override_tensor=exps=CPU,: rule "": there is no `=`; expected REGEX=DEVICE'),
        (["-ot", "=CPU"], "override_tensor==CPU: the expression is missing"),
        (["-dev", "GPU0"], "devices=GPU0: there is no device GPU0"),
        (["-ot", "(=CPU"], "override_tensor=(=CPU"),
        (["--prompt-cache-all"], "--prompt-cache FILE"),
    ],
)
def test_values_out_of_range_are_2(arguments, words, tiny_moe, capsys):
    assert main(["run", "-m", str(tiny_moe), "-p", "a", *arguments]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["-m", "x", "-p", "a", "-f", "b"],
        ["-m", "x", "-l", "5"],
        ["-m", "x", "--override-kv", "a=int"],
        ["-m", "x", "--override-kv", "a=bool:yes"],
        ["-m", "x", "-ser", "1"],
        ["-m", "x", "-ngl", "some"],
        ["-m", "x", "--chat-template-kwargs", "1"],
        ["-m", "x", "--nonsense"],
    ],
)
def test_wrong_usage_is_2(arguments, capsys):
    with pytest.raises(SystemExit) as e:
        main(["run", *arguments])
    assert e.value.code == 2
    assert "usage: ikq" in capsys.readouterr().err


# Chat through a pipe


def test_a_chat_through_a_pipe(tiny_moe, tmp_path):
    saved = tmp_path / "chat.json"
    lines = [
        "Hello",
        "/stats",
        "/regen",
        "two \\",
        "lines",
        '"""',
        "/reset is no command here",
        "",
        '"""',
        "/system",
        "/system Be long.",
        "/nonsense",
        "/help",
        f"/save {saved}",
        f"/load {saved}",
        f"/load {tiny_moe}",
        "/load",
        "/reset",
        "/regen",
        "/exit",
        "not read",
    ]
    done = run(
        "-m", tiny_moe, "-cnv", "-n", 5, "-c", 512, "-sys", "Be brief.", "-s", 3, input="\n".join(lines)
    )
    assert done.returncode == 0
    said = json.loads(saved.read_text())["messages"]
    assert [m["role"] for m in said] == ["system", *["user", "assistant"] * 3]
    assert said[0]["content"] == "Be long."
    assert [m["content"] for m in said if m["role"] == "user"] == [
        "Hello",
        "two \nlines",
        "/reset is no command here\n",
    ]
    for m in said:
        assert m["role"] != "assistant" or m["content"] in done.stdout
    assert "tokens reused" in done.stdout
    assert "Be brief." in done.stdout
    assert "/regen " in done.stdout
    assert "(7 messages read)" in done.stdout
    assert "(forgotten)" in done.stdout
    assert "no chat template; ChatML" in done.stderr
    assert "no command /nonsense" in done.stderr
    assert "not a conversation" in done.stderr
    assert "/load needs a file" in done.stderr
    assert "there is no answer yet" in done.stderr
    assert re.search(r"sample time =.*/\s+20 runs", done.stderr)
    assert "\x1b" not in done.stdout


def test_one_turn(with_template, capsys):
    arguments = ["run", "-m", str(with_template), "-cnv", "-st", "-p", "Hi", "-n", "6", *GREEDY]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert out == completion(with_template, "[user]Hi\n<think>", 6) + "\n"
    assert main([*arguments, "--chat-template-kwargs", '{"enable_thinking": false}']) == 0
    assert capsys.readouterr().out == completion(with_template, "[user]Hi\n", 6) + "\n"
    assert main([*arguments, "--in-prefix", "(", "--in-suffix", ")"]) == 0
    assert capsys.readouterr().out == completion(with_template, "[user](Hi)\n<think>", 6) + "\n"


def test_a_message_that_does_not_fit(with_template):
    lines = ["word " * 100, "Hi", "/exit"]
    done = run("-m", with_template, "-cnv", "-n", 2, "-c", 32, input="\n".join(lines))
    assert done.returncode == 0
    assert re.search(r"error: the prompt has \d+ tokens, .*; /reset begins anew\n", done.stderr)
    assert len(done.stdout.strip()) > 0


# Ctrl-C and a terminal


def hears_interrupts():
    """What shells start in the background ignores interrupts, and so would its children, these tests among them."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_while_completing(tiny_moe):
    command = [
        sys.executable,
        "-m",
        "ikq",
        "run",
        "-m",
        tiny_moe,
        "-p",
        "import",
        "--ignore-eos",
        "-c",
        "500",
    ]
    process = subprocess.Popen(
        [*map(str, command), "--context-shift"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=hears_interrupts,
    )
    os.set_blocking(process.stdout.fileno(), True)
    assert len(process.stdout.read(40)) == 40  # it is generating
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"eval time" in err
    assert b"Traceback" not in err


class Terminal:
    """A program in a terminal of its own."""

    def __init__(self, *command):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            hears_interrupts()
            os.environ["TERM"] = "xterm"
            os.execv(command[0], command)
        self.text = ""

    def send(self, text):
        os.write(self.fd, text.encode())

    def wait_for(self, pattern, seconds=60):
        """Reads until the pattern is found after what was waited for before; returns the text up to its end."""
        end = time.monotonic() + seconds
        while not (found := re.search(pattern, self.text, re.S)):
            assert time.monotonic() < end, f"no {pattern!r} in {self.text!r}"
            if select.select([self.fd], [], [], 0.1)[0]:
                try:
                    self.text += os.read(self.fd, 65536).decode(errors="replace")
                except OSError:  # the program has left
                    break
        found = re.search(pattern, self.text, re.S)
        assert found, f"no {pattern!r} in {self.text!r}"
        before, self.text = self.text[: found.end()], self.text[found.end() :]
        return before

    def close(self):
        """The exit code."""
        while True:
            try:
                if not os.read(self.fd, 65536):
                    break
            except OSError:
                break
        _, status = os.waitpid(self.pid, 0)
        os.close(self.fd)
        return os.waitstatus_to_exitcode(status)


def test_a_chat_in_a_terminal(with_template):
    options = ["--ignore-eos", "-c", "100000", "-s", "1"]
    terminal = Terminal(sys.executable, "-m", "ikq", "run", "-m", str(with_template), *options)
    terminal.wait_for("/help lists commands")
    terminal.wait_for("> ")
    terminal.send("Hello\n")
    # streaming and dimmed, as it is reasoning
    terminal.wait_for(r"\x1b\[2m.{200}")
    terminal.send("\x03")
    shown = terminal.wait_for(r"\[interrupted\].*> ")
    assert "\x1b[0m" in shown
    assert "Traceback" not in shown
    terminal.send("/stats\n")
    terminal.wait_for(r"context: \d+ of \d+ tokens; 2 messages")
    terminal.send("More\n")
    terminal.wait_for(r"\x1b\[2m.{100}")
    terminal.send("\x03")
    terminal.wait_for(r"\[interrupted\].*> ")
    # readline shows the prompt before it waits: a signal between the two is seen with the next key only
    time.sleep(1)
    terminal.send("\x03")
    shown = terminal.wait_for("total time.*\n")
    assert "eval time" in shown
    assert "error" not in shown
    assert terminal.close() == 130


def test_the_end_of_the_input_leaves_a_terminal(tiny_moe):
    terminal = Terminal(sys.executable, "-m", "ikq", "run", "-m", str(tiny_moe), "-n", "4", "--no-perf")
    terminal.wait_for("> ")
    terminal.send("Hello \\\nthere\n")
    terminal.wait_for("there.*> ")
    terminal.send("\x04")
    assert terminal.close() == 0
