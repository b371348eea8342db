"""MAGNET: the Multi-Agent Generative Network, a game of a generator and a discriminator on faces, learned by MADDPG.

faces = magnet.load().sample(64, seed=0)        # uint8 (64, 3, 64, 64)
"""


def load(run=None, device: str = "auto", data=None):
    """The `magnet.run.model.Model` of a run folder, a checkpoint or exported weights. Raises UserError.

    run: None: models/celeba-64.pt, the weights that come with MAGNET.
    data: where the images that a run folder learned from lie now, if they were moved; `answer` needs them.
    """
    from magnet.run.model import Model  # here, for it imports torch: --help of the programs stays immediate
    from magnet.support.paths import CELEBA_64, user_path

    run = CELEBA_64 if run is None else user_path(run)
    return Model(run, device, None if data is None else user_path(data))
