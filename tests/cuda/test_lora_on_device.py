"""LoRA adapters beside a GPU (the stand-in): what they change is on the CPU, or loading is refused by name."""

import json

from adapter_files import matrices, pairs_for, write_adapter
from emulator import needs_gxx
from standin import environment, run

import ikq

pytestmark = needs_gxx

PROGRAM = """
import json, sys
import numpy as np, ikq
path, lora, refused, allowed = sys.argv[1], sys.argv[2], *map(json.loads, sys.argv[3:])
ids = list(range(3, 15))
try:
    ikq.Model.load(path, n_ctx=64, lora=[lora], **refused)
except ikq.RefusedError as error:
    print(error)
def logits(**options):
    with ikq.Model.load(path, n_ctx=64, compute="f32", cache_type_k="f32", cache_type_v="f32", **options) as model:
        return model.logits(ids)
found = logits(lora=[lora], **allowed)
print(np.abs(found - logits(lora=[lora])).max(), np.abs(found - logits()).max())
"""


def test_layers_with_adapters_stay_on_the_cpu(tmp_path):
    from model_files import path

    model = path("llama/llama-bf16")
    with ikq.GGUFReader(model) as reader:
        names = [n for n in matrices(reader) if "attn" in n]
        file = write_adapter(tmp_path / "a.gguf", "llama", pairs_for(reader, names))
    refused = {"devices": ["CUDA0"], "n_gpu_layers": 1}
    allowed = {"override_tensor": [r"ffn_(up|gate|down)\.=CUDA0"]}
    out = run(PROGRAM, environment(), str(model), str(file), json.dumps(refused), json.dumps(allowed))
    said, numbers = out.strip().splitlines()
    assert f"lora={file}" in said
    assert "is on CUDA0, but adapters are computed on the CPU only" in said
    of_gpu, of_adapter = map(float, numbers.split())
    # of a GPU's products, which sum in another order, and of the adapter
    assert of_gpu < 4e-4
    assert of_adapter > 0.04
