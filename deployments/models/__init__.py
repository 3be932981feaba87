"""Model families: what a checkpoint's pictures, prompts, tower and language part are (`family.py` is the seam)."""
