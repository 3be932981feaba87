"""Options of the terminal as the service's own requests: its schemas say what is allowed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar

import typer
from pydantic import ValidationError

if TYPE_CHECKING:
    from pydantic import BaseModel

Shape = TypeVar("Shape", bound="BaseModel")


def to_request(shape: type[Shape], given: Mapping[str, object]) -> Shape:
    """Options that are None were not given. Raises BadParameter naming the option."""
    try:
        return shape.model_validate({name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        option = f"--{str(problem['loc'][0]).replace('_', '-')}"
        raise typer.BadParameter(problem["msg"].removeprefix("Value error, "), param_hint=option) from error
