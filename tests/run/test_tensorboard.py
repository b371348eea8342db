"""What TensorBoard shows besides scalars and grids: custom charts and the HPARAMS tab, read back from the files."""

import dataclasses
import re
import signal

import pytest
from conftest import small_config
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.custom_scalar.metadata import CONFIG_SUMMARY_TAG
from tensorboard.plugins.hparams import metadata

import train
from magnet.maddpg import MADDPG
from magnet.run import checkpoint
from magnet.run.tensorboard import charts, write_hparams

TINY = "--data faces --image-size 32 --width 4 --nz 4 --batch-size 8 --device cpu --evaluate-every 2".split()


def parameters(events):
    """The parameters of a run in the HPARAMS tab."""
    content = events.PluginTagToContent("hparams")[metadata.SESSION_START_INFO_TAG]
    found = metadata.parse_session_start_info_plugin_data(content).hparams
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in found.items()}


def columns(events):
    """The metrics of a run in the HPARAMS tab."""
    content = events.PluginTagToContent("hparams")[metadata.EXPERIMENT_TAG]
    return {info.name.tag for info in metadata.parse_experiment_plugin_data(content).metric_infos}


def test_a_later_line_in_the_hparams_tab_replaces_the_earlier(tmp_path):
    for lr, step, best in ((1e-3, 0, 9.0), (2e-4, 40, 7.5)):
        config = small_config(lr=lr, spectral_norm=True)
        write_hparams(tmp_path, config, 50, {"swd": best, "step": step, "worse_since": 0})
    (path,) = tmp_path.iterdir()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert parameters(events) == dataclasses.asdict(config)
    assert [(e.step, e.value) for e in events.Scalars("best/swd")] == [(50, 7.5)]


def test_a_stopped_run_that_goes_on_has_one_line_of_its_last_parameters_and_scores(place, monkeypatch):
    step = MADDPG.step
    with monkeypatch.context() as patch:
        patch.setattr(MADDPG, "step", lambda trainer: (trainer.steps == 2 and signal.raise_signal(15)) or step(trainer))
        assert train.main([*TINY, "--steps", "9", "--name", "run"]) == 143
    run = place / "models" / "run"
    assert parameters(EventAccumulator(str(run)).Reload())["lr"] == 2e-4
    assert train.main(["--resume", "run", "--steps", "6", "--lr", "1e-4"]) == 0
    assert {path.name for path in run.iterdir() if path.is_dir()} == {"samples", "checkpoints"}, "no run within the run"

    events = EventAccumulator(str(run)).Reload()
    config = checkpoint.load_newest(run / "checkpoints")[1]["config"]
    assert parameters(events) == config and (config["lr"], config["steps"]) == (1e-4, 6)
    best = checkpoint.load(run / "checkpoints" / "best.pt")["best"]["swd"]
    assert [(e.step, e.value) for e in events.Scalars("best/swd")] == [(6, pytest.approx(best))]
    scalars = set(events.Tags()["scalars"])
    assert {"swd", "best/swd", "generator/reward", "discriminator/accuracy_fake"} <= columns(events) <= scalars

    layout = Layout.FromString(events.Tensors(CONFIG_SUMMARY_TAG)[-1].tensor_proto.string_val[0])
    (category,) = layout.category
    shown = {
        chart.title: {tag for tag in scalars for pattern in chart.multiline.tag if re.match(pattern, tag)}
        for chart in category.chart
    }
    assert shown == {
        "rewards": {"generator/reward", "discriminator/reward"},
        "accuracies": {"discriminator/accuracy_real", "discriminator/accuracy_fake"},
        "scores": {"swd", "swd_16", "swd_32"},
    }


def test_charts_of_several_agents_name_all_of_them_and_points_have_scores_of_their_own():
    (team,) = charts(small_config(generators=2, discriminators=2)).values()
    rewards = [f"^{name}/reward$" for name in ("generator_0", "generator_1", "discriminator_0", "discriminator_1")]
    assert team["rewards"] == ["Multiline", rewards]
    assert len(team["accuracies"][1]) == 4 and "scores" not in team
    (points,) = charts(small_config(data="gaussians-8", evaluate_every=5)).values()
    assert points["scores"] == ["Multiline", ["^kl$", "^modes$", "^high_quality$"]]
