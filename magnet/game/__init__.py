"""The game: environment, reward functions, replay buffer."""
