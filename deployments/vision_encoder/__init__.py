"""Looks at each picture once: `encoder` is a request's route, `cache` remembers, `line` and `batcher` feed a tower."""
