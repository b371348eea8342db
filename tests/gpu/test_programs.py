"""The programs with `--device cuda` on the pretended GPU, as users start them."""

import pytest
from conftest import TINY
from pretended_gpu import PretendedGPU, needs_both

import evaluate
import export
import sample
import train

pytestmark = needs_both
WORDS = (
    f"--data faces --device cuda --image-size 32 --width {TINY['width']} --nz {TINY['nz']} --batch-size 8 "
    "--replay-size 20 --sample-every 100 --evaluate-every 8"
).split()
COMMANDS = [
    (train, [*WORDS, "--dry-run"]),
    (train, [*WORDS, "--steps", "8", "--name", "a"]),
    (train, ["--resume", "models/a", "--steps", "10"]),
    (train, ["--resume", "models/a", "--steps", "12", "--device", "cpu"]),
    (train, ["--resume", "models/a", "--steps", "14", "--device", "cuda:0", "--cuda-graphs", "off"]),
    (sample, ["models/a", "--count", "9"]),
    (sample, ["models/a", "--kind", "policy", "--count", "9"]),
    (sample, ["models/a", "--kind", "guided", "--count", "9"]),
    (sample, ["models/a", "--kind", "interpolation", "--count", "9", "--out", "walk.gif"]),
    (evaluate, ["models/a", "--count", "32", "--no-features", "--guided"]),
    (export, ["models/a", "--out", "a.pt"]),
    (sample, ["a.pt", "--count", "9"]),
]
CARDS = {
    "laptop": {}, "images in pinned memory": {"free": 1000}, "before Ampere": {"capability": (7, 5)},
}  # fmt: skip


@pytest.mark.parametrize("card", CARDS)
def test_the_programs_run_on_a_gpu(card, place, capsys):
    with PretendedGPU(**CARDS[card]):
        for program, words in COMMANDS if card == "laptop" else COMMANDS[:2]:
            status = program.main(words)
            error = capsys.readouterr().err
            assert status == 0, (program.__name__, words, error[-500:])
            assert "cannot be recorded" not in error
    precision = "fp32" if card == "before Ampere" else "bf16"
    assert f'"precision": "{precision}"' in (place / "models/a/config.json").read_text()
