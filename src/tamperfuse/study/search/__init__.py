"""The adaptive attacker: a search over an attack's parameters."""
