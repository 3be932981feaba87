"""Streams that clients may come back to: what was sent of an answer is kept, so that any ingress replica can go on."""
