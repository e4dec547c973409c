"""Probabilities of tokens that are parts of a letter, and of what is impossible."""

from __future__ import annotations

import math

import pytest

from ikq.serve.events import TokenLogprob
from ikq.serve.openai.logprobs import chat_logprobs, completion_logprobs


class Reply:
    """Tokens are bytes."""

    def token_bytes(self, token: int) -> bytes:
        return bytes([token])


def tokens(text: str):
    return [TokenLogprob(token=byte, logprob=-1.0, top=((65, -0.5), (byte, -1.0))) for byte in text.encode()]


def test_offsets_are_places_in_the_text():
    found = completion_logprobs(Reply(), tokens("a\N{EURO SIGN}b"), 10)
    assert found["tokens"] == ["a", "bytes:\\xe2", "bytes:\\x82", "bytes:\\xac", "b"]
    assert found["text_offset"] == [10, 11, 11, 11, 12]
    # they are not one and the same
    assert found["top_logprobs"][1] == {"A": -0.5, "bytes:\\xe2": -1.0}


@pytest.mark.parametrize("form", [chat_logprobs, lambda *args: completion_logprobs(*args, 0)])
def test_what_is_impossible_is_a_number(form):
    token = TokenLogprob(token=65, logprob=-math.inf, top=((66, 0.0), (67, -math.inf)))
    text = str(form(Reply(), [token]))
    assert "inf" not in text
    assert "-9999.0" in text
