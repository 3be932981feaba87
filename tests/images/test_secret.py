"""One secret for all processes, closed to others."""

from __future__ import annotations

import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deployments.errors import ConfigError
from deployments.images.secret import open_secret, tenant_secret

ROOT = Path(__file__).parent.parent.parent


def test_made_once_with_closed_modes(tmp_path: Path) -> None:
    data_dir = tmp_path / "deep" / "data"
    secret = open_secret(data_dir)
    assert len(secret) == 32
    assert open_secret(data_dir) == secret
    assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700
    assert stat.S_IMODE(data_dir.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE((data_dir / "secret").stat().st_mode) == 0o600
    assert [path.name for path in data_dir.iterdir()] == ["secret"]


def test_a_folder_of_somebody_else_keeps_its_mode(tmp_path: Path) -> None:
    """`data_dir: .` is the checkout."""
    tmp_path.chmod(0o755)
    open_secret(tmp_path)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600


def test_a_data_dir_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    with pytest.raises(FileExistsError):
        open_secret(tmp_path / "data")


def test_folders_have_secrets_of_their_own(tmp_path: Path) -> None:
    assert open_secret(tmp_path / "a") != open_secret(tmp_path / "b")


def test_threads_that_race_get_the_same(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as threads:
        secrets = set(threads.map(lambda _: open_secret(tmp_path), range(64)))
    assert len(secrets) == 1


RACE = """
import sys
from pathlib import Path
from deployments.images.secret import open_secret
sys.stdin.read()
print(open_secret(Path(sys.argv[1])).hex())
"""


def test_processes_that_race_get_the_same(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RACE, str(tmp_path)]
    pipe = subprocess.PIPE
    processes = [subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) for _ in range(4)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()  # the start signal
        process.stdin = None
    assert len({process.communicate(timeout=60)[0] for process in processes}) == 1


def test_a_broken_secret_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"short")
    with pytest.raises(ConfigError, match="5 bytes instead of 32"):
        open_secret(tmp_path)


def test_tenants_have_keys_of_their_own() -> None:
    keys = {tenant_secret(secret, tenant) for secret in (b"a" * 32, b"b" * 32) for tenant in ("", "x", "y", "ü")}
    assert len(keys) == 8
    assert tenant_secret(b"a" * 32, "x") == tenant_secret(b"a" * 32, "x")
