"""How many WebSockets this ingress replica has open."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from deployments.errors import Overloaded

RETRY_AFTER_S = 5.0


@dataclass(slots=True)
class OpenSockets:
    count: int = 0

    @contextlib.contextmanager
    def another(self, max_sockets: int) -> Iterator[None]:
        """Raises Overloaded."""
        if self.count >= max_sockets:
            raise Overloaded(f"{self.count} sockets are open already (ingress.max_sockets)", None, RETRY_AFTER_S)
        self.count += 1
        try:
            yield
        finally:
            self.count -= 1
