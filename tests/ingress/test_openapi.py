"""What the OpenAPI document says is what the routes do: requests made from it, and the page made from it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_service import ROOT, fake_service

from deployments.api_page import api_page
from deployments.ingress.app import openapi_document

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,unsupported_method"
)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_request_made_from_the_document_gets_a_server_error_or_an_undocumented_reply(tmp_path: Path) -> None:
    """schemathesis: requests that fit the document and ones that do not, each field at its limits, and sequences."""
    program = Path(sys.executable).parent / "schemathesis"
    options = ["--checks", CHECKS, "--max-examples", "20", "--seed", "1", "--no-color"]
    with fake_service(tmp_path, _say_little) as url:
        run = subprocess.run(
            [program, "run", f"{url}/openapi.json", *options], cwd=tmp_path, capture_output=True, text=True
        )
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"{_num_operations()} selected" in run.stdout


def test_the_page_of_the_api_is_up_to_date() -> None:
    page = api_page(openapi_document())
    assert (ROOT / "docs" / "api.md").read_text() == page, "run: retina openapi --markdown > docs/api.md"


def _say_little(args: dict[str, Any]) -> None:
    """The fake model pauses before each word, and there are thousands of requests."""
    args["generator"] = {"default_new_tokens": 1}


def _num_operations() -> int:
    return sum(len(operations) for operations in openapi_document()["paths"].values())
