"""generator: one model answers many requests at once over a KV cache of slots; `engine.py` is the way in."""
