"""--init: which networks a new run takes from another, from a checkpoint or from exported weights, and which sizes."""

import dataclasses

import pytest
import torch
from conftest import new_trainer, run, small_config, weights

from magnet.config import complete
from magnet.run import checkpoint
from magnet.run.exported import export
from magnet.run.initial_networks import adopt_architecture, take_networks
from magnet.support.errors import UserError


def write_checkpoint(trainer, path):
    """A checkpoint of `trainer`, as train.py writes it."""
    state = {"config": dataclasses.asdict(trainer.config), "faces": "f", "trainer": trainer.state_dict(), "best": None}
    checkpoint.save(path, state)
    return str(path)


def trained(**changes):
    trainer = new_trainer(device="cpu", **changes)
    run(trainer, 3)
    return trainer


def test_all_networks_and_targets_of_a_checkpoint_are_taken_and_nothing_else(tmp_path):
    old, new = trained(seed=5), new_trainer()
    output = take_networks(new.agents, write_checkpoint(old, tmp_path / "c.pt"))
    expected = weights(old.agents)
    assert all(torch.equal(one, expected[name]) for name, one in weights(new.agents).items())
    statistics = (agent.networks["actor"].normalise.running_var for agent in (old.generators[0], new.generators[0]))
    assert torch.equal(*statistics)
    assert "after 3 steps: " in output and "New: nothing" in output and new.steps == 0
    assert not any(adam.state for agent in new.agents for adam in agent.optimizers.values())
    run(new, 2)


def test_exported_weights_are_where_networks_and_targets_begin(tmp_path):
    old, new = trained(seed=5), new_trainer()
    export(tmp_path / "w.pt", old.generators, old.discriminators, old.dataset, 3, "f")
    fresh = weights(new.agents)
    output = take_networks(new.agents, str(tmp_path / "w.pt"))
    assert "G, G_a, D_a" in output and "New: G_c, D_c." in output
    averages, result = weights(old.agents), weights(new.agents)
    for name, one in result.items():
        if "critic" in name:
            assert torch.equal(one, fresh[name])
        else:
            target = averages[f"{name.removesuffix(' target')} target"]
            torch.testing.assert_close(one, target, rtol=1e-3, atol=1e-4)  # in half precision
            assert one.dtype == torch.float32
    run(new, 2)


@pytest.mark.parametrize(
    ("old", "new", "taken", "fresh"),
    [({"algorithm": "gan"}, {}, "G, D_a", "G_a, G_c, D_c"),
     ({"extra_reward": "resemble"}, {"extra_reward": "resemble"}, "G, G_a, G_c, Q_r, D_a, D_c", "nothing"),
     ({"extra_reward": "resemble"}, {"extra_reward": "jpeg"}, "G, G_a, G_c, D_a, D_c", "Q_r"),
     ({"spectral_norm": True}, {}, "G, G_a, G_c, D_c", "D_a"),
     ({"generators": 2}, {"generators": 2, "seed": 1}, "G_0, G_a_0, G_c_0, G_1", "nothing")],
)  # fmt: skip
def test_what_has_no_counterpart_is_new(old, new, taken, fresh, tmp_path):
    path = write_checkpoint(trained(**old), tmp_path / "c.pt")
    output = take_networks(new_trainer(**new).agents, path)
    assert f"steps: {taken}" in output and f"New: {fresh}." in output


def test_a_run_without_a_network_in_common_is_refused(tmp_path):
    path = write_checkpoint(trained(generators=2, discriminators=2), tmp_path / "c.pt")
    with pytest.raises(UserError, match="no network of this game"):
        take_networks(new_trainer().agents, path)


def test_sizes_follow_the_networks_and_others_are_refused(tmp_path):
    path = write_checkpoint(trained(), tmp_path / "c.pt")
    config = adopt_architecture(complete({"init": path, "lr": 0.1}), {"init": path, "lr": 0.1})
    ours = small_config()
    assert (config.image_size, config.width, config.nz, config.lr) == (32, ours.width, ours.nz, 0.1)
    assert adopt_architecture(config, {"width": ours.width}) == config
    with pytest.raises(UserError, match=f"--nz {ours.nz}: leave out other values"):
        adopt_architecture(config, {"nz": 7})
    assert adopt_architecture(ours, {}) is ours
