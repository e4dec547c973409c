"""`Settings`: how a server runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ikq.sampling import SamplingOptions

__all__ = ["Settings"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a server runs; defaults are those of `ikq serve`.

    Attributes:
        host: Address that it listens at.
        port: Port; 0: any free one.
        api_keys: Keys, one of which each request must have; none: everybody may ask.
        cors_origins: Origins of pages that browsers let ask; `*`: all.
        ssl_certfile: Certificate, for HTTPS.
        ssl_keyfile: Its key.
        parallel: The largest number of texts that are computed together (slots).
        queue: The largest number of texts that wait; further requests are refused with status 429.
        timeout: The seconds that a request may take altogether; `None`: no limit.
        send_timeout: Seconds that a client may leave a part of a stream unread.
        grace: The seconds in which requests may be completed when the server shuts down.
        max_body: The largest number of bytes of a request.
        cache_bytes: Memory for the KV caches and recurrent states of all texts, including those that are kept
            for later requests; `None`: as much as `parallel` texts of full length take, at most half of the
            free memory.
        prefix_dir: The folder in which kept KV caches are saved when the server ends; `None`: they are not.
        slot_dir: Folder of `/slots/N?action=save` and `restore`; `None`: they are refused.
        models_max: The largest number of models that are loaded at a time.
        access_log: Log a line per request.
        log_json: Log in JSON.
        page: Serve the web page at `/`.
        slots: Tell about slots at `/slots`.
        sampling: How tokens are chosen where a request does not say.
        max_tokens: The largest number of tokens of a text where a request does not say; `None`: no limit.
        cache_prompt: Whether KV caches may be reused by other requests where a request does not say.
        pooling: How states of tokens become an embedding; `None`: as the model's file says, or their mean.
        template_options: Variables of chat templates where a request does not say.
        chat_template: The chat template of all models; `None`: the one that a model's file has.
        reasoning_format: `none`: thoughts stay in the content where a request does not say otherwise.
        reasoning_budget: The largest number of tokens of reasoning where a request does not say; `None`: no
            limit.
        prefill_assistant: A reply continues the last message if it is the assistant's, where a request does
            not say.
        api_prefix: A prefix of all paths; empty, or begins with `/`.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    api_keys: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    ssl_certfile: Path | None = None
    ssl_keyfile: Path | None = None
    parallel: int = 4
    queue: int = 64
    timeout: float | None = 3600.0
    send_timeout: float = 60.0
    grace: float = 30.0
    max_body: int = 32 * 2**20
    cache_bytes: int | None = None
    prefix_dir: Path | None = None
    slot_dir: Path | None = None
    models_max: int = 1
    access_log: bool = True
    log_json: bool = False
    page: bool = True
    slots: bool = True
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    max_tokens: int | None = None
    cache_prompt: bool = True
    pooling: Literal["mean", "cls", "last"] | None = None
    template_options: Mapping[str, Any] = field(default_factory=dict)
    chat_template: str | None = None
    reasoning_format: Literal["auto", "none"] = "auto"
    reasoning_budget: int | None = None
    prefill_assistant: bool = True
    api_prefix: str = ""

    def __post_init__(self) -> None:
        for name, low in (
            ("port", 0),
            ("parallel", 1),
            ("queue", 0),
            ("grace", 0),
            ("max_body", 1),
            ("models_max", 1),
        ):
            value = getattr(self, name)
            if value < low:
                raise ValueError(f"{name}={value}: expected {low} or more")
        if self.port > 65535:
            raise ValueError(f"port={self.port}: expected at most 65535")
        for name in ("timeout", "send_timeout"):
            seconds = getattr(self, name)
            if seconds is not None and seconds <= 0:
                raise ValueError(f"{name}={seconds}: expected more than 0 seconds")
        for name in ("cache_bytes", "max_tokens", "reasoning_budget"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name}={value}: expected 0 or more")
        if (self.ssl_certfile is None) != (self.ssl_keyfile is None):
            raise ValueError("ssl_certfile and ssl_keyfile go together")
        if self.api_prefix and not (self.api_prefix.startswith("/") and self.api_prefix[-1] != "/"):
            raise ValueError(f"api_prefix={self.api_prefix!r}: expected /NAME, without a / at its end")
