"""What a failed start says: one line, with the cause and no wrapping."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel, field_validator

from thriftree.server.console import Console, fresh_log, plain


class Config(BaseModel):
    """Refuses as our refusals do inside vLLM's config."""

    flag: int

    @field_validator("flag")
    @classmethod
    def _refuse(cls, value: int) -> int:
        raise ValueError("cannot run with --flag")


def test_a_refusal_comes_out_of_its_wrapping() -> None:
    with pytest.raises(ValueError) as caught:
        Config(flag=1)
    assert plain(caught.value) == "cannot run with --flag"
    assert plain(OSError("no\n  network")) == "OSError: no network"


def test_one_line_of_bearable_length(capsys: pytest.CaptureFixture[str]) -> None:
    Console().fail("first\n" + "word " * 1000)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and len(lines[0]) < 700 and lines[0].startswith("thriftree: first word")


def test_the_cause_is_the_first_telling_error_of_the_log(tmp_path: Path) -> None:
    console = Console()
    console.log = tmp_path / "log"
    first, second = (
        "(EngineCore pid=3) torch.OutOfMemoryError: 3 GiB missing",
        "RuntimeError: Engine core init",
    )
    console.log.write_text(f"INFO ok\n{first}\n{second}ialization failed\n")
    assert console.cause("x").startswith("OutOfMemoryError: 3 GiB missing")
    console.log.write_text("INFO ok\n")
    assert console.cause("see it").startswith("see it")


def test_old_logs_go(tmp_path: Path) -> None:
    for index in range(15):
        (tmp_path / f"serve-{index}.log").touch()
    fresh_log(tmp_path).touch()
    assert len(list(tmp_path.iterdir())) == 10
