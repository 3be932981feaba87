"""Looks at each picture once: `encoder` is the route of a request, `cache` remembers, `batcher` feeds the towers."""
