"""The examples in the docstrings of deployments/vlm.py run as they stand there."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

from deployments import vlm

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("name", vlm.__all__)
def test_every_class_shows_a_use_that_works(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[1])
    shown = getattr(vlm, name)
    [example] = [
        found for found in doctest.DocTestFinder(recurse=False).find(shown, name, module=False) if found.examples
    ]
    example.globs = {}
    results = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example)
    assert results.attempted > 0
    assert results.failed == 0
