"""`auto` becomes what the machine can do, and what it cannot do is refused."""

from __future__ import annotations

import pytest

from deployments.errors import ConfigError
from deployments.models.placement import resolve_device, resolve_dtype

pytestmark = pytest.mark.torch


def pretend_cuda(monkeypatch: pytest.MonkeyPatch, *, is_there: bool, has_bfloat16: bool = False) -> None:
    import torch

    def is_supported(*, including_emulation: bool) -> bool:
        return including_emulation or has_bfloat16

    monkeypatch.setattr(torch.cuda, "is_available", lambda: is_there)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)


@pytest.mark.parametrize("is_there", [True, False])
def test_auto_is_cuda_where_there_is_one(monkeypatch: pytest.MonkeyPatch, is_there: bool) -> None:
    pretend_cuda(monkeypatch, is_there=is_there)
    assert resolve_device("auto") == ("cuda" if is_there else "cpu")
    assert resolve_device("cpu") == "cpu"


def test_auto_says_that_it_runs_on_the_cpu(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    pretend_cuda(monkeypatch, is_there=False)
    resolve_device("auto")
    assert "running on the CPU" in caplog.text


def test_cuda_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_cuda(monkeypatch, is_there=True)
    assert resolve_device("cuda") == "cuda"
    pretend_cuda(monkeypatch, is_there=False)
    with pytest.raises(ConfigError, match="set it to auto or cpu") as caught:
        resolve_device("cuda")
    assert caught.value.param == "device"


@pytest.mark.parametrize(("has_bfloat16", "dtype"), [(True, "bfloat16"), (False, "float16")])
def test_auto_is_the_shortest_dtype_that_the_gpu_has(
    monkeypatch: pytest.MonkeyPatch, has_bfloat16: bool, dtype: str
) -> None:
    pretend_cuda(monkeypatch, is_there=True, has_bfloat16=has_bfloat16)
    assert resolve_dtype("auto", "cuda") == dtype


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [
        ({"avx512_bf16": True}, "bfloat16"),
        ({"avx512_bf16": False, "amx_bf16": True}, "bfloat16"),
        ({"architecture": "aarch64", "bf16": True}, "bfloat16"),
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, "float32"),
        ({}, "float32"),
    ],
)
def test_auto_on_a_cpu_is_bfloat16_only_where_it_is_native(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, object], dtype: str
) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: capabilities)
    assert resolve_dtype("auto", "cpu") == dtype


def test_a_dtype_that_is_named_is_taken() -> None:
    assert (resolve_dtype("bfloat16", "cpu"), resolve_dtype("float32", "cuda")) == ("bfloat16", "float32")
