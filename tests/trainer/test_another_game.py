"""Another game is one new class: in this one the generated images are the next state."""

import torch
from conftest import CPU, run, small_config, small_faces, step_and_batch

from magnet.game.environment import Environment, new_environment
from magnet.maddpg import MADDPG

PIXELS = ((3, 32, 32), torch.float32)


class OwnImages(Environment):
    """The first state is real images; each later one is the images that the generator made of the state before."""

    fields = Environment.fields | {"state": PIXELS, "next_state": PIXELS}

    def step(self, actions):
        state = self.own_state
        observations, rewards, terminated, truncated, info = super().step(actions)
        self.own_state = actions["generator"]
        info |= {"state": state, "next_state": self.own_state}
        return self._observations(), rewards, terminated, truncated, info

    def reset(self, seed=None):
        self.own_state = None
        self.own_state = super().reset(seed)["generator"]
        return self._observations()

    def recall(self, transitions):
        return transitions["state"], self.dataset.batch(transitions["real"])

    def next_observations(self, transitions):
        return transitions["next_state"], self.dataset.batch(transitions["next_real"])

    def _observations(self):
        return super()._observations() | ({} if self.own_state is None else {"generator": self.own_state})


def test_a_game_whose_next_state_is_the_generators_action_is_played_and_learned():
    config = small_config(gamma=0.9, episode_length=4, replay_fraction=0.25)
    names = new_environment(config, small_faces())
    game = OwnImages(small_faces(), names.batch, 4, names.generators, names.discriminators)
    trainer = MADDPG(config, game, CPU)
    run(trainer, 2)
    (generator,), new = trainer.generators, trainer.new_rows
    state = trainer.observations["generator"]
    assert (trainer.dataset.batch(game.real) != state).any()
    target_inputs = []  # the next states of the TD target
    generator.targets["actor"].stack.register_forward_pre_hook(lambda _, args: target_inputs.append(args[0].clone()))
    _, batch = step_and_batch(trainer)
    assert torch.equal(batch.state[:new], state)
    assert torch.equal(batch.transitions["next_state"][:new], batch.played_images[0][:new])
    assert torch.equal(target_inputs[0], batch.transitions["next_state"])
    buffer = trainer.replay.storage["state"][: len(trainer.replay)]
    assert all((buffer == old).flatten(1).all(dim=1).any() for old in batch.state[new:])
    run(trainer, 8)  # over the end of an episode
