"""Speculative decoding: cheap guesses of several tokens, which the model checks in one step.

A drafter proposes how the text goes on. The model computes logits after the last token and after every
proposed one in one step, whose cost is far below that of as many steps. Then each position gets its token as
it would have without a draft: the text's own sampler chooses from the model's logits there. While the token
is the proposed one, the logits after it are at hand already; at the first other one the rest of the draft is
forgotten.

Logits do not depend on what is computed beside them or on how tokens are cut into steps, so the text is the
same, token by token, as without speculation and with the same seed; and so is its distribution. A bad draft
costs time, never another text.

    drafter.py      what a drafter is, and drafting for several texts at a time
    lookup.py       drafts from earlier occurrences of the last tokens
    draft_model.py  drafts of a smaller model with the same vocabulary
    mtp.py          drafts of the model's own multi-token prediction head (MTP)
    vocabulary.py   which models can draft for which
    verify.py       the rule by which drafts are kept
    depth.py        how many tokens are worth drafting
    experience.py   what earlier texts have shown about that
    text.py         all of it for one text, between its generation and the model's steps
    options.py      which of these a text uses
"""

from ikq.speculation.depth import AdaptiveDepth, Depth, FixedDepth, StepTimes
from ikq.speculation.draft_model import DraftModel
from ikq.speculation.drafter import Ask, Drafter, Drafting, draft_together
from ikq.speculation.lookup import Lookup
from ikq.speculation.mtp import Mtp, MtpHead
from ikq.speculation.options import Speculation, SpeculationKeywords
from ikq.speculation.text import TextSpeculation
from ikq.speculation.verify import Verified
from ikq.speculation.vocabulary import check_same_vocabulary

__all__ = [
    "AdaptiveDepth",
    "Ask",
    "Depth",
    "DraftModel",
    "Drafter",
    "Drafting",
    "FixedDepth",
    "Lookup",
    "Mtp",
    "MtpHead",
    "Speculation",
    "SpeculationKeywords",
    "StepTimes",
    "TextSpeculation",
    "Verified",
    "check_same_vocabulary",
    "draft_together",
]
