"""What GPUs (the stand-in) do not compute of models that are kept as oracles is refused by name."""

from emulator import needs_gxx
from oracle_models import recipe, write_folder
from standin import environment, ikq_command

import ikq

pytestmark = needs_gxx


def test_norms_of_values(tmp_path):
    path = tmp_path / "x.gguf"
    ikq.convert_checkpoint(write_folder(tmp_path / "hf", recipe("gemma4")), path, "f32")
    done = ikq_command(environment(), "run", "-m", str(path), "-p", "the", "-n", "1", "-ngl", "99")
    assert done.returncode == 1
    assert (
        "layer 0, attention: a norm of values is not computed on GPUs yet; leave it on the CPU" in done.stderr
    )
