"""The page's modules that need no browser, run by V8."""

from __future__ import annotations

import json
import re
from importlib.resources import files

from py_mini_racer import MiniRacer


def modules(*names: str) -> MiniRacer:
    """An engine in which what these modules export is global."""
    engine = MiniRacer()
    for name in names:
        source = (files("ikq.serve") / "static" / name).read_text(encoding="utf-8")
        source = re.sub(r"^import .*;$", "", source, flags=re.MULTILINE)
        engine.eval(re.sub(r"^export (function|class|const)", r"\1", source, flags=re.MULTILINE))
    return engine


def call(engine: MiniRacer, function: str, *arguments: object) -> object:
    """What a function returns, by way of JSON."""
    passed = ", ".join(json.dumps(argument) for argument in arguments)
    return json.loads(engine.eval(f"JSON.stringify({function}({passed}) ?? null)"))
