"""What a Docker daemon would do with our Dockerfile, with the kernel's own tools; root only.

This machine's root file system stands in for the base image, so it must be what that is: Debian 12 with Python 3.11.
An overlay in a mount namespace takes every write: `apt-get`, `useradd` and absolute paths run as they are written, and
nothing outside changes.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.deploy import dockerfile

ROOT = Path(__file__).parents[2]
PYTHON = Path("/usr/bin/python3.11")
_PATH = "/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin"
_PRIVILEGES = "--reuid 10001 --regid 10001 --clear-groups --no-new-privs --bounding-set -all --inh-caps -all"


def missing() -> str | None:
    """Why this machine cannot stand in for the base image; None when it can."""
    if os.geteuid() != 0:
        return "needs root (mount namespaces, chroot)"
    if lost := [tool for tool in ("unshare", "mkfs.ext4", "setpriv", "ip", "apt-get") if not shutil.which(tool)]:
        return f"needs {', '.join(lost)}"
    if 'VERSION_ID="12"' not in Path("/etc/os-release").read_text() or not PYTHON.exists():
        return f"needs Debian 12 with {PYTHON}, which stands in for the base image"
    done = subprocess.run(["unshare", "--mount", "--net", "true"], capture_output=True, text=True, check=False)
    return done.stderr.strip() or None if done.returncode else None


def context(target: Path) -> None:
    """The build context as .dockerignore leaves it."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    kept = [line[1:] for line in lines if line.startswith("!")]
    left_out = shutil.ignore_patterns(*(line.removeprefix("**/") for line in lines if line.startswith("**/")))
    target.mkdir()
    for name in kept:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=left_out)
        else:
            shutil.copy(source, target / name)


def environment(stages: Mapping[str, dockerfile.Stage], name: str) -> dict[str, str]:
    """The ENV of a stage and of what it is built on."""
    found = {"PATH": _PATH}
    for stage in dockerfile.lineage(stages, name):
        for text in stage.all("ENV"):
            for pair in shlex.split(text):
                key, _, value = pair.partition("=")
                found[key] = value.replace("$PATH", found["PATH"])
    return found


def run(folder: Path, inside: Path, environment: Mapping[str, str], command: str) -> subprocess.CompletedProcess[str]:
    """Build the CPU image's `build` stage in `folder`, then run `inside` as the image would run.

    As user 10001 without privileges, on a read-only root, with no network but loopback. `command`: the image's command
    line, for `inside`.
    """
    stages = dockerfile.parse(ROOT / "Dockerfile", {"ENGINE": "cpu"})
    (folder / "build.sh").write_text(dockerfile.script(stages, "build", {"ENGINE": "cpu"}))
    context(folder / "context")
    shutil.copy(inside, folder / "inside.sh")
    words = [
        "env",
        "-i",
        *(f"{key}={value}" for key, value in environment.items()),
        "bash",
        "-eu",
        "/inside.sh",
        command,
    ]
    (folder / "start.sh").write_text(
        f"ip link set lo up\ncd /home/thriftree\nexec setpriv {_PRIVILEGES} {shlex.join(words)}\n"
    )
    (folder / "outer.sh").write_text(_OUTER.format(python=PYTHON, path=_PATH))
    return subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--kill-child", "bash", "-eux", str(folder / "outer.sh")],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=1500,
    )  # fmt: skip


def command_line(stage: dockerfile.Stage) -> list[str]:
    """ENTRYPOINT and CMD."""
    return [word for name in ("ENTRYPOINT", "CMD") for text in stage.all(name) for word in json.loads(text)]


def health_check(stage: dockerfile.Stage) -> list[str]:
    """The command of HEALTHCHECK."""
    (text,) = stage.all("HEALTHCHECK")
    words: list[str] = json.loads(text[text.index("[") :])
    return words


# The disk is a file, because an overlay takes no upper folder inside its own lower one.
_OUTER = """
mount --make-rprivate /
truncate -s 20G disk.img
mkfs.ext4 -q disk.img
mkdir disk root
mount -o loop disk.img disk
mkdir disk/upper disk/work
mount -t overlay overlay -o "lowerdir=/,upperdir=$PWD/disk/upper,workdir=$PWD/disk/work" root
mount -t proc proc root/proc
mount --rbind /dev root/dev
mount --rbind /sys root/sys
mount -t tmpfs tmpfs root/tmp
mkdir root/context
mount --bind context root/context
ln -sf {python} root/usr/local/bin/python
cp build.sh root/tmp/
chroot root env "PATH={path}" bash /tmp/build.sh
umount root/context
rm -rf root/src root/context
cp inside.sh start.sh root/
umount root/tmp
mount -o remount,ro root
for volume in root/tmp root/data root/home/thriftree/.cache; do
    mount -t tmpfs -o uid=10001,gid=10001 tmpfs "$volume"
done
exec unshare --net chroot root bash -eu /start.sh
"""
