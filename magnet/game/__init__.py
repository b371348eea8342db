"""The game: environment, returns, replay buffer."""
