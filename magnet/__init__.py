"""MAGNET: the Multi-Agent Generative Network, a game of a generator and a discriminator on faces, learned by MADDPG."""
