"""Changes outside norm balls that need no gradient: every point of a small grid of parameters is tried."""
