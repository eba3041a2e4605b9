"""Word lists and vectors that come from packages by name; nothing is fetched when an attack runs."""
