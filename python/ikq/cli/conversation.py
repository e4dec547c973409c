"""A chat in the terminal: `Conversation`."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import ikq
from ikq.cli.prompt_cache import PromptCache
from ikq.text.generate import Generation, Stats

__all__ = ["Conversation"]

HELP = """\
/help            this text
/reset           forget the conversation (the system message stays)
/system [TEXT]   set the system message; without TEXT show it
/regen           another answer to the last message
/save FILE       write the conversation as JSON
/load FILE       read one
/stats           tokens, speeds and how full the context is
/exit            leave (also Ctrl-D, or Ctrl-C here)
A line that ends with \\ goes on in the next one; \"\"\" begins and ends a message of several lines.
Ctrl-C ends an answer early."""

_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"


class Conversation:
    """Reads messages, prints answers as they come, keeps both."""

    def __init__(
        self,
        model: ikq.Model,
        options: dict[str, Any],
        stats: Stats,
        cache: PromptCache,
        *,
        system: str | None,
        prefix: str,
        suffix: str,
        template_options: dict[str, Any],
    ) -> None:
        self._model = model
        self._options = options
        self._stats = stats
        self._cache = cache
        self._prefix, self._suffix = prefix, suffix
        self._template_options = template_options
        self._messages: list[dict[str, str]] = []
        self._n_answers = 0
        self._n_tokens = 0
        self._last: Stats | None = None
        self._is_terminal = sys.stdin.isatty()
        self._dims = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        if system:
            self._messages.append({"role": "system", "content": system})

    def run(self, first: str | None, *, single_turn: bool) -> int:
        """Until the user leaves; returns the exit code.

        Raises:
            KeyboardInterrupt: Ctrl-C at the prompt.
        """
        if self._model.chat_template.is_fallback:
            print("note: the file has no chat template; ChatML is used", file=sys.stderr)
        if self._is_terminal:
            _edit_lines()
            print("/help lists commands; Ctrl-C ends an answer, at the prompt the program.", file=sys.stderr)
        if first is not None:
            if self._is_terminal:
                print(f"> {first}")
            self._say(first)
            if single_turn:
                return 0
        while (read := self._read()) is not None:
            message, is_plain = read
            if is_plain and message.startswith("/"):
                if not self._command(message):
                    break
            elif message.strip():
                self._say(message)
                if single_turn:
                    break
        return 0

    def _read(self) -> tuple[str, bool] | None:
        """The next message, and whether it may be a command; `None` at the end of the input."""
        lines: list[str] = []
        quoted = False
        while True:
            try:
                line = input(("> " if not lines and not quoted else "  ") if self._is_terminal else "")
            except EOFError:
                if self._is_terminal:
                    print()
                return ("\n".join(lines), False) if lines else None
            except KeyboardInterrupt:
                print()
                raise
            if line.strip() == '"""':
                if quoted:
                    return "\n".join(lines), False
                quoted = True
            elif not quoted and line.endswith("\\"):
                lines.append(line[:-1])
            else:
                lines.append(line)
                if not quoted:
                    return "\n".join(lines), len(lines) == 1

    def _say(self, message: str) -> None:
        content = f"{self._prefix}{message}{self._suffix}"
        self._messages.append({"role": "user", "content": content})
        if not self._answer():
            self._messages.pop()

    def _answer(self) -> bool:
        """Prints and keeps an answer to the last message; whether there was one."""
        options = dict(self._options)
        seed = options["sampling"].seed
        if seed is not None:  # another answer of the same chat is another text
            options["sampling"] = replace(options["sampling"], seed=(seed + self._n_answers) % 2**64)
        self._n_answers += 1
        try:
            generation = self._model.chat(self._messages, template_options=self._template_options, **options)
        except ikq.ShapeError as e:
            print(f"error: {e}; /reset begins anew", file=sys.stderr)
            return False
        except ikq.FormatError as e:
            print(f"error: {e}", file=sys.stderr)
            return False
        answer = self._print(generation)
        self._last = generation.stats
        self._n_tokens = len(generation.tokens)
        self._stats.add(generation.stats)
        self._messages.append({"role": "assistant", "content": answer})
        if generation.reason == "context":
            print(
                f"note: the context of {self._model.n_ctx} tokens is full; /reset begins anew, "
                "-c makes it larger",
                file=sys.stderr,
            )
        return True

    def _print(self, generation: Generation) -> str:
        """Prints an answer as it comes; returns it without reasoning."""
        parts: list[str] = []
        is_dim = False
        try:
            for piece in generation:
                self._cache.prompt_done(generation)
                if self._dims and piece.reasoning != is_dim and piece.text:
                    is_dim = piece.reasoning
                    print(_DIM if is_dim else _PLAIN, end="")
                print(piece.text, end="", flush=True)
                if not piece.reasoning:
                    parts.append(piece.text)
        except KeyboardInterrupt:
            generation.close()
            # readline would print the ^C of the terminal into the next prompt
            print(_PLAIN if is_dim else "", end="")
            print("\n[interrupted]", file=sys.stderr, flush=True)
            return "".join(parts).strip()
        print(_PLAIN if is_dim else "", flush=True)
        return "".join(parts).strip()

    def _command(self, line: str) -> bool:
        """Does what a line with a command says; whether the chat goes on."""
        name, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        if name in ("/exit", "/quit", "/bye"):
            return False
        commands = {
            "/reset": self._reset,
            "/clear": self._reset,
            "/system": self._system,
            "/regen": self._regenerate,
            "/save": self._save,
            "/load": self._load,
            "/stats": self._show_stats,
        }
        if name == "/help":
            print(HELP)
        elif name in commands:
            commands[name](rest)
        else:
            print(f"there is no command {name}; /help lists them", file=sys.stderr)
        return True

    def _reset(self, _: str) -> None:
        self._messages = [m for m in self._messages[:1] if m["role"] == "system"]
        print("(forgotten)")

    def _system(self, text: str) -> None:
        has_one = bool(self._messages) and self._messages[0]["role"] == "system"
        if text:
            self._messages[: 1 if has_one else 0] = [{"role": "system", "content": text}]
        else:
            print(self._messages[0]["content"] if has_one else "(there is none)")

    def _regenerate(self, _: str) -> None:
        if self._messages and self._messages[-1]["role"] == "assistant":
            removed = self._messages.pop()
            if not self._answer():
                self._messages.append(removed)
        else:
            print("there is no answer yet", file=sys.stderr)

    def _save(self, file: str) -> None:
        if not file:
            print("/save needs a file", file=sys.stderr)
            return
        text = json.dumps({"messages": self._messages}, indent=1, ensure_ascii=False)
        try:
            Path(file).expanduser().write_text(text + "\n", encoding="utf-8")
        except OSError as e:
            print(f"error: {file}: {e.strerror}", file=sys.stderr)
            return
        print(f"({len(self._messages)} messages written to {file})")

    def _load(self, file: str) -> None:
        if not file:
            print("/load needs a file", file=sys.stderr)
            return
        try:
            found = json.loads(Path(file).expanduser().read_text(encoding="utf-8"))
            messages = [
                {"role": str(m["role"]), "content": str(m["content"])}
                for m in (found["messages"] if isinstance(found, dict) else found)
            ]
        except OSError as e:
            print(f"error: {file}: {e.strerror}", file=sys.stderr)
        except (ValueError, KeyError, TypeError):
            print(f"error: {file}: not a conversation that /save wrote", file=sys.stderr)
        else:
            self._messages = messages
            print(f"({len(messages)} messages read)")

    def _show_stats(self, _: str) -> None:
        n_ctx = self._model.n_ctx
        print(f"context: {self._n_tokens} of {n_ctx} tokens; {len(self._messages)} messages")
        if self._last is not None:
            s = self._last
            print(f"last prompt: {s.n_reused} tokens reused, {_speed(s.n_prompt, s.prompt_seconds)}")
            print(f"last answer: {_speed(max(0, s.n_generated - 1), s.eval_seconds)}")


def _speed(n: int, seconds: float) -> str:
    return f"{n} tokens computed in {seconds:.2f} s" + (f" ({n / seconds:.1f} t/s)" if seconds > 0 else "")


def _edit_lines() -> None:
    """Lets `input` edit lines and remember them, where Python can."""
    try:
        import readline
    except ImportError:
        return
    # a pasted text of several lines is one message
    readline.parse_and_bind("set enable-bracketed-paste on")
