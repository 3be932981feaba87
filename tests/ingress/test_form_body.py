"""Data URLs: what is base64 and what is not, in one piece and in slices."""

from __future__ import annotations

import base64
import os

import pytest

from deployments.errors import InvalidImage
from deployments.ingress import form_body
from deployments.ingress.form_body import decode_data_url, decode_long_data_url

HEAD = "data:image/png;base64,"
NOT_BASE64 = ["a", "ab", "abc", "abcde", "ab==abcd", "abcdef==abcd", "abcdefgh====", "ab=c", "=abc", "====", "a==="]
NEARLY_BASE64 = ["abc-", "abc_", "äbcd", "abcdefghi", "abcdefgh=", "abcd abc", "abc\xa0", "abcdefg\ud800"]
LENGTHS = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 23, 24, 25, 300]


@pytest.fixture(autouse=True)
def _short_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(form_body, "SLICE_CHARS", 8)


@pytest.mark.parametrize("length", LENGTHS)
async def test_slices_join_to_the_bytes(length: int) -> None:
    data = os.urandom(length)
    url = HEAD + base64.b64encode(data).decode()
    assert decode_data_url(url) == await decode_long_data_url(url, "image") == data


async def test_lines_and_spaces_in_base64() -> None:
    data = os.urandom(100)
    for text in (base64.encodebytes(data).decode(), f" {base64.b64encode(data).decode()}\r\n", "\t"):
        url = HEAD + text
        assert decode_data_url(url) == await decode_long_data_url(url, "image") == (data if text.strip() else b"")


@pytest.mark.parametrize("words", ["image/png;charset=utf-8", "image/png;name=a.png;x=", "IMAGE/svg+xml;a=b=c"])
def test_parameters_of_the_media_type(words: str) -> None:
    assert decode_data_url(f"data:{words};base64,YWJj") == b"abc"


@pytest.mark.parametrize("head", ["data:image/png;name=a,b;base64,", "data:image/png;charset;base64,", "data:;base64,"])
def test_what_is_no_picture_in_base64(head: str) -> None:
    with pytest.raises(InvalidImage, match="must be a data URL"):
        decode_data_url(f"{head}YWJj")


@pytest.mark.parametrize("text", [*NOT_BASE64, *NEARLY_BASE64])
async def test_what_is_not_base64(text: str) -> None:
    with pytest.raises(InvalidImage, match="the data URL of here is not base64") as error:
        await decode_long_data_url(HEAD + text, "here")
    assert error.value.param == "here"
    with pytest.raises(InvalidImage, match="the data URL of image is not base64"):
        decode_data_url(HEAD + text)
