"""The configuration's keys, defaults, limits and meanings as Markdown, read from config.py itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from deployments.config import (
    GeneratorConfig,
    ImageConfig,
    IngressConfig,
    ModelConfig,
    PriceConfig,
    ReplicaConfig,
    RetinaConfig,
    Section,
    SessionRouterConfig,
    StreamConfig,
    VisionEncoderConfig,
)

SECTIONS: tuple[tuple[str, type[Section]], ...] = (
    ("args", RetinaConfig),
    ("models[]", ModelConfig),
    ("models[].prices", PriceConfig),
    ("images", ImageConfig),
    ("ingress", IngressConfig),
    ("ingress.streams", StreamConfig),
    ("session_router", SessionRouterConfig),
    ("vision_encoder", VisionEncoderConfig),
    ("generator", GeneratorConfig),
    ("…replica (in every part)", ReplicaConfig),
)
INTRODUCTION = """# Configuration

`args` of the application in a Serve config file. Unknown keys are refused, with the path of the key and what is
allowed there. `retina check configs/local.yaml` prints a file's settings with all defaults and what its replicas ask
of the cluster. This page is what `retina settings` prints.
"""


def settings_page() -> str:
    return INTRODUCTION + "".join(_table(name, section) for name, section in SECTIONS)


def _table(name: str, section: type[Section]) -> str:
    rows = "\n".join(_rows(section))
    return f"\n## {name}\n\n| key | default | allowed | meaning |\n|---|---|---|---|\n{rows}\n"


def _rows(section: type[Section]) -> Iterator[str]:
    schema = section.model_json_schema()["properties"]
    for name, field in section.model_fields.items():
        yield f"| `{name}` | {_default(field)} | {_allowed(schema[name])} | {field.description or 'a section, below'} |"


def _default(field: FieldInfo) -> str:
    if isinstance(field.default, Section):
        changed = field.default.model_dump(exclude_unset=True)
        return ", ".join(f"`{key}: {value:g}`" for key, value in changed.items())
    if field.default is PydanticUndefined:
        return "{}" if field.default_factory else ""
    if isinstance(field.default, tuple):
        return f"`{', '.join(field.default)}`"
    default = float(field.default) if isinstance(field.default, Decimal) else field.default
    return f"`{json.dumps(default)}`"


def _allowed(schema: dict[str, object]) -> str:
    choices = schema.get("enum")
    if isinstance(choices, list):
        return ", ".join(f"`{choice}`" for choice in choices)
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "multipleOf": "a multiple of"}
    return ", ".join(f"{sign} {schema[key]:g}" for key, sign in signs.items() if key in schema)
