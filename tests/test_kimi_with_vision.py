"""Kimi K2.5 has K2's model under another prefix, and beside it what sees."""

import numpy as np
from seeded_models import case, converted

import ikq


def test_kimi_with_vision(tmp_path):
    def change(tensors, config):
        for name in list(tensors):
            tensors[f"language_model.{name}"] = tensors.pop(name)
        tensors["vision_tower.patch_embed.proj.weight"] = np.ones((4, 3), np.float32)
        tensors["mm_projector.proj.0.weight"] = np.ones((4, 4), np.float32)
        inner = dict(config)
        config.clear()
        config |= {"architectures": ["KimiK25ForConditionalGeneration"], "text_config": inner}

    own = case("kimi-k2")
    (tmp_path / "whole").mkdir()
    (tmp_path / "text").mkdir()
    files = converted(tmp_path / "whole", own, change), converted(tmp_path / "text", own)
    found, expected = (ikq.GGUFReader(file).tensors for file in files)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[n].raw, expected[n].raw) for n in expected)
