"""Which Retina this is."""

from __future__ import annotations

import functools
import importlib.metadata


@functools.cache
def retina_version() -> str:
    try:
        return importlib.metadata.version("retina-serve")
    except importlib.metadata.PackageNotFoundError:
        return "0+source"  # run from the source tree without being installed
