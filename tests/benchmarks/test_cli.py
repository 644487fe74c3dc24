"""`thriftree bench` and `thriftree tune`: what is refused, and how."""

from __future__ import annotations

from pathlib import Path

import pytest

from thriftree.benchmarks import cli, contenders, plot, speculation, tune


def test_help_names_every_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in cli.BENCHES)
    assert cli.main([]) == 2


def test_all_runs_everything_and_fails_if_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    monkeypatch.setattr(cli, "_speculation", lambda argv: ran.append("speculation") or 1)
    monkeypatch.setattr(cli, "_kv", lambda argv: ran.append("kv") or 0)
    monkeypatch.setattr(cli, "_vision", lambda argv: ran.append("vision") or 0)
    monkeypatch.setattr(cli, "_gateway", lambda argv: ran.append("gateway") or 0)
    assert cli.main(["all"]) == 1
    assert ran == ["speculation", "kv", "vision", "gateway"]


def test_unknown_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["speed"]) == 2
    assert "speculation" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "names"),
    [
        (["--methods", "off", "eagle"], "eagle"),
        (["--methods", "auto"], "needs off"),
        (["--batch", "0"], "--batch"),
        (["--tokens", "1"], "--tokens"),
        (["--prompts", "-1"], "--prompts"),
        (["--categories", "poetry"], "poetry"),
        (["--json", "no/such/folder/out.json"], "folder"),
        (["--plot", "out.pdf"], ".png"),
        (["--dtype", "int3"], "int3"),
    ],
)
def test_a_bad_flag_is_named_before_anything_runs(
    argv: list[str], names: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert speculation.main(argv) == 2
    assert names in capsys.readouterr().err


def test_plot_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(ValueError, match="pip install matplotlib"):
        plot.check(Path("out.png"))


def test_the_short_and_the_long_form() -> None:
    short, full = speculation.options([]), speculation.options(["--full"])
    assert (short.batch, short.dtype, short.prompts, short.warm) == ([1, 2, 4, 8], ["float32"], 1, False)
    assert (full.batch, full.dtype, full.prompts, full.warm) == ([1, 2, 4, 8, 16], ["float32", "bfloat16"], 3, True)
    assert {"off_again", "tree_off"} <= set(full.methods)


def test_what_is_not_installed_is_a_reason_and_no_contender(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contenders.importlib.util, "find_spec", lambda name: None)
    assert "not installed" in str(contenders.missing("vllm_suffix"))
    built = contenders.build(
        ("off", "vllm_suffix", "auto", "suffix"), model="m", dtype="float32", eager=False, max_model_len=64
    )
    assert [one.name for one in built] == ["off", "auto", "suffix"]
    assert [one.engine.key for one in built] == ["off", "trees", "trees"]


def test_requests_say_method_and_tenant() -> None:
    built = {
        one.name: one
        for one in contenders.build(
            ("off", "tree_off", "auto"), model="m", dtype="float32", eager=False, max_model_len=64, separate=True
        )
    }
    assert built["off"].extra("t") is None
    assert built["tree_off"].extra("t") == {"thriftree": {"speculation": "off", "tenant": "t"}}
    assert built["auto"].extra("t") == {"thriftree": {"speculation": {"method": "auto"}, "tenant": "t"}}
    assert built["auto"].engine.key != built["tree_off"].engine.key
    assert built["auto"].engine.flags["speculative_config"]["method"] == "custom_class"


@pytest.mark.parametrize("argv", [[], ["shape"], ["tree"], ["tree", "m", "--nodes", "0"]])
def test_tune_refuses(argv: list[str]) -> None:
    assert tune.main(argv) == 2


def test_tune_names_the_bad_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a"}\n{"text": "b"}\n')
    assert tune.main(["tree", "m", "--prompts", str(file)]) == 1
    assert "line 2" in capsys.readouterr().err
