"""`/metrics`: numbers in Prometheus' text, by the names that llama-server gives them where it has them."""

from __future__ import annotations

from collections.abc import Sequence

from ikq.serve.loaded import LoadedModel

__all__ = ["CONTENT_TYPE", "metrics_text"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def metrics_text(models: Sequence[LoadedModel]) -> str:
    """Numbers of all models that are loaded."""
    rows: dict[tuple[str, str, str], list[tuple[str, float]]] = {}
    for model in models:
        for name, kind, about, value in _numbers(model):
            rows.setdefault((name, kind, about), []).append((_escaped(model.name), value))
    lines: list[str] = []
    for (name, kind, about), values in rows.items():
        lines += [f"# HELP {name} {about}", f"# TYPE {name} {kind}"]
        lines += [f'{name}{{model="{model}"}} {value:.9g}' for model, value in values]
    return "\n".join(lines) + "\n"


def _numbers(model: LoadedModel) -> list[tuple[str, str, str, float]]:
    engine = model.engine
    c, prefixes = engine.counters, engine.prefixes
    held = model.model.memory.cache
    n_running = engine.n_running
    read, written = c.prompt_seconds, c.chosen_seconds
    return [
        ("llamacpp:prompt_tokens_total", "counter", "Tokens of prompts that were computed.", c.n_prompt),
        ("llamacpp:prompt_seconds_total", "counter", "Seconds until first tokens.", read),
        ("llamacpp:tokens_predicted_total", "counter", "Tokens that were chosen.", c.n_chosen),
        ("llamacpp:tokens_predicted_seconds_total", "counter", "Seconds between first and last.", written),
        ("llamacpp:n_decode_total", "counter", "Steps of the model.", c.n_steps),
        (
            "llamacpp:n_busy_slots_per_decode",
            "gauge",
            "Texts in a step on average.",
            c.n_entries / max(1, c.n_steps),
        ),
        (
            "llamacpp:prompt_tokens_seconds",
            "gauge",
            "Tokens of prompts per second.",
            c.n_prompt / read if read else 0,
        ),
        (
            "llamacpp:predicted_tokens_seconds",
            "gauge",
            "Tokens per second of a text.",
            c.n_chosen / written if written else 0,
        ),
        ("llamacpp:requests_processing", "gauge", "Texts that are computed.", n_running),
        ("llamacpp:requests_deferred", "gauge", "Texts that wait.", max(0, engine.n_wanted - n_running)),
        (
            "llamacpp:kv_cache_usage_ratio",
            "gauge",
            "Share of the memory for caches in use.",
            held / prefixes.budget,
        ),
        ("ikq:cache_bytes", "gauge", "Bytes that caches take.", held),
        ("ikq:prompt_tokens_cached_total", "counter", "Tokens of prompts that were there.", c.n_cached),
        ("ikq:prefixes", "gauge", "Texts that are kept for others.", len(prefixes)),
        ("ikq:prefixes_dropped_total", "counter", "Those that went for lack of room.", prefixes.n_dropped),
        ("ikq:texts_total", "counter", "Texts that are over.", c.n_texts),
        ("ikq:requests_refused_total", "counter", "Requests that found too many others.", c.n_refused),
        ("ikq:requests_cancelled_total", "counter", "Requests whose client went away.", c.n_cancelled),
        ("ikq:texts_paused_total", "counter", "How often a text made room.", c.n_paused),
        ("ikq:draft_tokens_total", "counter", "Tokens that were drafted and compared.", c.n_drafted),
        ("ikq:draft_tokens_accepted_total", "counter", "Those of them that were chosen.", c.n_accepted),
        ("ikq:step_seconds_total", "counter", "Time of steps.", c.step_seconds),
    ]


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
