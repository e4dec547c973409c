"""Options of verbs that choose tokens."""

from __future__ import annotations

import argparse

import ikq
from ikq.cli.numbers import number, whole_number
from ikq.sampling import DEFAULT_ORDER, SamplingOptions

__all__ = ["add_predict", "add_sampling", "sampling_options"]

_D = SamplingOptions()

# Flags, field of SamplingOptions, help.
_NUMBERS: list[tuple[tuple[str, ...], str, str]] = [
    (("-s", "--seed"), "seed", "seed of the random numbers; -1: another one each time"),
    (("--temp", "--temperature"), "temperature", "0 takes the most probable token"),
    (("--dynatemp-range",), "dynatemp_range", "let the temperature vary by this with the entropy"),
    (("--dynatemp-exp",), "dynatemp_exponent", "how the entropy maps to it"),
    (("--top-k",), "top_k", "keep the k most probable; 0: off"),
    (("--top-p",), "top_p", "keep the fewest with this probability together; 1: off"),
    (("--min-p",), "min_p", "drop those less probable than this share of the first; 0: off"),
    (("--typical", "--typical-p"), "typical_p", "keep those of typical surprise; 1: off"),
    (("--top-nsigma", "--top-n-sigma"), "top_n_sigma", "drop logits n deviations below the top; 0: off"),
    (("--xtc-probability",), "xtc_probability", "how often to remove top choices; 0: off"),
    (("--xtc-threshold",), "xtc_threshold", "what a top choice is; over 0.5: off"),
    (("--repeat-penalty",), "repeat_penalty", "penalty on repeated tokens; 1: off"),
    (("--presence-penalty",), "presence_penalty", "penalty on tokens that occurred; 0: off"),
    (("--frequency-penalty",), "frequency_penalty", "the same per occurrence; 0: off"),
    (("--repeat-last-n",), "repeat_last_n", "tokens that these look back at; -1: all"),
    (("--dry-multiplier",), "dry_multiplier", "strength of DRY's penalty on long repetitions; 0: off"),
    (("--dry-base",), "dry_base", "its growth per token"),
    (("--dry-allowed-length",), "dry_allowed_length", "repetitions shorter than this are free"),
    (("--dry-penalty-last-n",), "dry_penalty_last_n", "tokens that DRY looks back at; -1: all"),
    (("--mirostat",), "mirostat", "2: Mirostat 2.0; 0: off"),
    (("--mirostat-ent",), "mirostat_tau", "its target surprise in bits"),
    (("--mirostat-lr",), "mirostat_eta", "its learning rate"),
    (("--adaptive-target",), "adaptive_target", "prefer tokens near this probability; negative: off"),
    (("--adaptive-decay",), "adaptive_decay", "how long adaptive-p remembers"),
    (("--min-keep",), "min_keep", "least candidates that any step leaves"),
]


def add_predict(group: argparse._ActionsContainer) -> None:
    """The option for how many tokens are generated."""
    group.add_argument(
        "-n",
        "--predict",
        "--n-predict",
        type=whole_number,
        default=-1,
        metavar="N",
        help="most tokens; -1: no limit",
    )


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Adds them; names are those that users of llama-cli know."""
    group = parser.add_argument_group("sampling")
    for flags, field, what in _NUMBERS:
        default = getattr(_D, field)
        shown = "" if default is None else f" ({default:g})"
        kind = number if isinstance(default, float) else whole_number
        group.add_argument(*flags, dest=field, type=kind, default=default, metavar="N", help=f"{what}{shown}")
    group.add_argument(
        "--dry-sequence-breaker",
        dest="dry_sequence_breakers",
        action="append",
        metavar="TEXT",
        help="text that repetitions are not followed across; may be repeated, replaces the usual ones; "
        "`none`: no such text",
    )
    group.add_argument(
        "--adaptive-updt-w-cur",
        dest="adaptive_update_with_current",
        action="store_true",
        help="adaptive-p remembers probabilities among candidates",
    )
    group.add_argument(
        "-l",
        "--logit-bias",
        action="append",
        default=[],
        type=_bias,
        metavar="TOKEN+N",
        help="add to the logit of a token: 15043+1, 15043-1, 15043-inf bans it; may be repeated",
    )
    group.add_argument(
        "--samplers",
        "--sampling-seq",
        "--sampler-seq",
        default=DEFAULT_ORDER,
        metavar="ORDER",
        help=f"order of the steps: names joined by ; ({';'.join(DEFAULT_ORDER)}) or letters (edskypmxtw)",
    )


def sampling_options(args: argparse.Namespace) -> SamplingOptions:
    """What the command line says about sampling.

    Raises:
        RefusedError: a value is out of range.
    """
    given = {field: getattr(args, field) for _, field, _ in _NUMBERS}
    given["adaptive_update_with_current"] = args.adaptive_update_with_current
    given["logit_bias"] = dict(args.logit_bias)
    given["samplers"] = args.samplers
    if args.dry_sequence_breakers is not None:
        given["dry_sequence_breakers"] = [t for t in args.dry_sequence_breakers if t != "none"]
    try:
        return SamplingOptions(**given)
    except ValueError as e:
        raise ikq.RefusedError(str(e)) from None


def _bias(text: str) -> tuple[int, float]:
    for sign in "+-":
        token, found, bias = text.partition(sign)
        if found and token.isdigit():
            try:
                return int(token), float(sign + bias)
            except ValueError:
                break
    raise argparse.ArgumentTypeError(f"{text!r}: expected TOKEN+N or TOKEN-N, for example 15043-inf")
