"""Log lines of Retina's own loggers: INFO and above to stderr, with the request's id where there is one.

Called by whoever owns a process (a replica, the command line), never at import.
"""

from __future__ import annotations

import logging
import sys

PLAIN = "%(asctime)s %(levelname)s %(name)s %(message)s"
BY_REQUEST = "%(asctime)s %(levelname)s [%(request_id)s] %(name)s %(message)s"


def configure_logging(request_ids: logging.Filter | None = None) -> None:
    """`request_ids` sets `request_id` on every record. May be called again; the last call counts."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(BY_REQUEST if request_ids else PLAIN))
    if request_ids is not None:
        handler.addFilter(request_ids)
    logger = logging.getLogger("deployments")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO)
