"""Names of models: what there is, and `zoo:NAME`."""

from __future__ import annotations

from pathlib import Path

import pytest

from thriftree.zoo import catalogue, shapes_vl, tiny
from thriftree.zoo.__main__ import main
from thriftree.zoo.cache import ZooError


def test_zoo_names_become_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("THRIFTREE_CACHE", str(tmp_path))
    assert catalogue.resolve("org/model") == ("org/model", None)
    assert catalogue.resolve("zoo:llama-mha") == (str(tiny.ensure("llama-mha")), "llama-mha")
    with pytest.raises(ZooError, match=r"no model 'shapes'; there are smollm2-135m-instruct, shapes-vl, llama-gqa"):
        catalogue.resolve("zoo:shapes")
    with pytest.raises(ZooError, match="--source is for smollm2"):
        catalogue.ensure("shapes-vl", tmp_path)


def test_weights_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shapes_vl, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(ZooError, match="shapes-vl is not in this installation"):
        shapes_vl.ensure()


def test_the_list_names_every_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == list(catalogue.names())
