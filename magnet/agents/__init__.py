"""The agents: networks, and how each kind learns."""
