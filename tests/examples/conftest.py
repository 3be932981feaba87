"""One fake service for all examples, and a picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_service import ROOT, fake_service

PICTURE = ROOT / "demo" / "images" / "blue-square-and-yellow-star.jpg"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with fake_service(tmp_path_factory.mktemp("service")) as address:
        yield address


@pytest.fixture
def picture() -> Path:
    return PICTURE
