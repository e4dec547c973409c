"""Behind the attention of the last layer only those tokens are computed of which something is wanted: no bit hangs on that."""

import pytest
from best_logits_checks import check as check_best
from model_files import NAMES, path
from seeded_models import CASES, case, converted
from sequence_checks import same

import ikq
from ikq.inference.sequence import Best

TEXTS = ([5, 9, 2, 11, 3, 8, 1], [7], [3, 3, 6, 10, 4], [1, 2, 3, 4, 5, 6], [12, 4])


@pytest.mark.parametrize("name", [*NAMES, *CASES])
@pytest.mark.parametrize("n_ubatch", [512, 4])
def test_what_is_wanted_of_other_tokens_makes_no_difference(name, n_ubatch, tmp_path):
    file = converted(tmp_path, case(name)) if name in CASES else path(name)
    with ikq.Model.load(file, n_ctx=64, n_ubatch=n_ubatch) as model:
        all_of = []
        for text in TEXTS:
            with model.new_sequence() as sequence:
                (logits,) = model.step([(sequence, text, "all")])
                all_of.append(logits)
        wants = ("last", "none", "all", Best(3), "none")
        sequences = [model.new_sequence() for _ in TEXTS]
        found = model.step(list(zip(sequences, TEXTS, wants, strict=True)))
        assert found[1] is None
        assert found[4] is None
        assert same(found[0], all_of[0][-1:])
        assert same(found[2], all_of[2])
        check_best(found[3], all_of[3][-1:], 3)
        # the caches hold all tokens, those of which nothing was wanted too
        again = model.step([(sequence, [9, 1], "last") for sequence in sequences])
        for text, logits in zip(TEXTS, again, strict=True):
            with model.new_sequence() as sequence:
                (whole,) = model.step([(sequence, [*text, 9, 1], "all")])
                assert same(logits, whole[-1:])
