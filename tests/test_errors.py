"""Every error of the tree survives pickling with all it carries, and has a status and a code of its own."""

import pickle  # noqa: TID251  # Ray carries errors between processes so
import re

import pytest

from deployments import errors
from deployments.errors import RetinaError


def every_error() -> list[type[RetinaError]]:
    found = [RetinaError]
    for error in found:
        found.extend(error.__subclasses__())
    return found


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
def test_survives_pickling(kind: type[RetinaError]) -> None:
    error = pickle.loads(pickle.dumps(kind("what was wrong", "field", 2.5)))
    assert type(error) is kind
    assert (error.message, error.param, error.retry_after_s) == ("what was wrong", "field", 2.5)
    assert str(error) == "what was wrong"


def test_the_drawn_tree_is_the_tree() -> None:
    drawn = re.findall(r"[├└]── (\w+)", errors.__doc__ or "")
    assert set(drawn) | {"RetinaError"} == {kind.__name__ for kind in every_error()}


def test_statuses_are_http_errors_and_codes_differ() -> None:
    kinds = every_error()
    assert all(400 <= kind.status < 600 for kind in kinds)
    assert len({kind.code for kind in kinds}) == len(kinds)
