"""A GGUF file as an ordinary checkpoint folder. Run as a process of its own: ``python -m thriftree.zoo.convert``.

transformers reads the GGUF, de-quantises to float32 and un-permutes the rotary halves; what is left to do is to take
away the marks of quantisation, which would make it refuse to save. A process of its own gives the memory back and
leaves the server's torch untouched.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from thriftree.zoo.cache import ZooError


def convert(gguf: Path, out: Path, eos_token_id: int) -> None:
    """`gguf` -> `out` (config, float32 safetensors, tokenizer, chat template), in a child process."""
    command = [sys.executable, "-m", "thriftree.zoo.convert", str(gguf), str(out), str(eos_token_id)]
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, env={**os.environ, **quiet}, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no output")
    if "No space left" in done.stderr:
        raise ZooError(f"no disk space while converting into {out}; free some or set THRIFTREE_CACHE")
    if done.returncode < 0:
        raise ZooError(f"the conversion was killed by signal {-done.returncode} (out of memory? it takes about 2 GB)")
    if "No module named" in last or "requires `accelerate`" in done.stderr or "pip install" in last:
        raise ZooError(f"the conversion needs `pip install 'thriftree[model]'` once ({last})")
    raise ZooError(f"the conversion failed: {last}")


def _convert(gguf: Path, out: Path, eos_token_id: int) -> None:
    import torch

    from thriftree.zoo.cpu_wheels import repair

    repair()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    for mark in ("hf_quantizer", "quantization_method", "is_quantized"):
        if hasattr(model, mark):
            setattr(model, mark, None)
    model.config.eos_token_id = model.generation_config.eos_token_id = eos_token_id
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    _forget_origin(out / "config.json")


def _forget_origin(config: Path) -> None:
    """The scratch folder's name has no place in the checkpoint."""
    data = json.loads(config.read_text())
    data.pop("_name_or_path", None)
    data.pop("_model_name_or_path", None)
    config.write_text(json.dumps(data, indent=2) + "\n")


if __name__ == "__main__":
    _convert(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
