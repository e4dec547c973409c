"""What kernels of GPUs do not compute yet, as rules that leave it on the CPU: `rules_for_the_cpu`.

Loading refuses the same by name (`rare_attention` and `rare_ffn` in `rust/ikq-model/src/network/mod.rs`).
"""

from __future__ import annotations

from collections.abc import Sequence

from ikq.models.spec import Gqa, Layer, Mla, ModelSpec, Moe

__all__ = ["blocks", "rules_for_the_cpu"]


def blocks(numbers: Sequence[int]) -> str:
    """An expression for the names of tensors of these layers."""
    listed = "|".join(map(str, numbers))
    return rf"blk\.({listed})" if len(numbers) > 1 else rf"blk\.{listed}"


def rules_for_the_cpu(spec: ModelSpec) -> tuple[str, ...]:
    """Rules of `override_tensor` for attention, FFNs and the output that GPUs do not compute."""
    if spec.norm_kind != "rms":
        return (r"^blk\.=CPU", "^output|^token_embd=CPU")
    attention = [i for i, layer in enumerate(spec.layers) if _attention_stays(layer)]
    ffn = [i for i, layer in enumerate(spec.layers) if _ffn_stays(layer)]
    rules = []
    if attention:
        rules.append(rf"{blocks(attention)}\.(attn|ssm)_.*=CPU")
    if ffn:
        rules.append(rf"{blocks(ffn)}\.ffn_.*=CPU")
    return tuple(rules)


def _attention_stays(layer: Layer) -> bool:
    a = layer.attention
    if layer.parallel or layer.attention_factor != 1:
        return True
    if isinstance(a, Gqa):
        rare = a.qk_norm in ("row", "rotated_head") or a.gate is not None or a.temperature is not None
        return rare or a.v_norm or a.shares is not None
    return isinstance(a, Mla) and a.temperature is not None


def _ffn_stays(layer: Layer) -> bool:
    f = layer.ffn
    if layer.parallel or layer.ffn_factor != 1 or f.limit is not None:
        return True
    if not isinstance(f, Moe):
        return False
    limited = f.shared is not None and f.shared.limit is not None
    return f.weighs_input or f.norms is not None or limited
