"""The page's files from npm packages: what package.json says they are. Run it to fetch them anew."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "deployments" / "ingress" / "ui" / "vendor"


class NpmUnavailable(Exception):
    """There is no npm, or no registry that it reaches."""


def fetch_files() -> dict[str, bytes]:
    """By their name in the folder, as the packages have them. Raises NpmUnavailable."""
    manifest = json.loads((FOLDER / "package.json").read_text())
    files: dict[str, bytes] = {}
    for package, version in manifest["dependencies"].items():
        contents = _fetch_package(package, version)
        for name, source in manifest["files"].items():
            if source.startswith(f"{package}/"):
                files[name] = contents[source.removeprefix(f"{package}/")]
    return files


def _fetch_package(package: str, version: str) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        command = ["npm", "pack", "--silent", "--pack-destination", folder, f"{package}@{version}"]
        try:
            subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.SubprocessError) as error:
            raise NpmUnavailable(f"{package}@{version}: {getattr(error, 'stderr', None) or error}") from error
        (archive,) = Path(folder).glob("*.tgz")
        return _unpack(archive.read_bytes())


def _unpack(archive: bytes) -> dict[str, bytes]:
    contents: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is not None:
                contents[member.name.partition("/")[2]] = file.read()
    return contents


if __name__ == "__main__":
    for name, data in fetch_files().items():
        (FOLDER / name).write_bytes(data)
        print(name, len(data))
