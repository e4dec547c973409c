"""Gemma 4's tokenizer: merges on plain text that fall back to bytes, against the `tokenizers` library."""

import numpy as np
from seeded_models import case, converted

import ikq


def test_tokenizer_with_merges_on_plain_text(tmp_path):
    from tokenizers import Tokenizer

    reader = ikq.GGUFReader(converted(tmp_path, case("gemma4")))
    oracle = Tokenizer.from_file(str(tmp_path / "hf" / "tokenizer.json"))
    assert reader.metadata["tokenizer.ggml.model"] == "gemma4"
    # parsers of replies see it, though it is special
    assert reader.metadata["tokenizer.ggml.token_type"][4:6] == [4, 3]
    found = ikq.Tokenizer.from_reader(reader)
    rng = np.random.default_rng(3)
    texts = ["the rain in spain,  stays.\n\n\nmainly \u00e9\u4f60", " a", "a\n", "\n \n"]
    texts += ["".join(rng.choice(list("etaoin shr\nd.,X"), 80)) for _ in range(50)]
    n = 0
    for text in texts:
        ids = oracle.encode(text, add_special_tokens=False).ids
        assert found.encode(text, add_special=False) == ids
        assert found.encode(text, add_special=True) == [2, *ids]
        assert found.decode(ids) == text
        n += len(ids)
    assert n < 0.8 * sum(map(len, texts))  # pairs were joined
