"""What GPUs (the stand-in) do not compute of Gemma 4 is refused by name."""

from emulator import needs_gxx
from seeded_models import case, converted
from standin import environment, ikq_command

pytestmark = needs_gxx


def test_norms_of_values(tmp_path):
    path = converted(tmp_path, case("gemma4"))
    done = ikq_command(environment(), "run", "-m", str(path), "-p", "the", "-n", "1", "-ngl", "99")
    assert done.returncode == 1
    assert (
        "layer 0, attention: a norm of values is not computed on GPUs yet; leave it on the CPU" in done.stderr
    )
