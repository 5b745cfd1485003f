import ast
import importlib.metadata
import pathlib
import re

import pytest

import tfp_cvae


def test_one_version():
    assert importlib.metadata.version("tfp-cvae") == tfp_cvae.__version__


@pytest.mark.parametrize(
    "versions",
    [
        {"tensorflow": "2.21.0", "tf-keras": "2.20.1", "tensorflow-probability": "0.25.0"},
        {"tensorflow": "2.21.0", "tf-keras": "2.21.0", "tensorflow-probability": "0.24.0"},
    ],
)
def test_versions_that_do_not_match_are_named_in_one_sentence(monkeypatch, versions):
    monkeypatch.setattr(importlib.metadata, "version", versions.__getitem__)
    with pytest.raises(ImportError, match="needs tensorflow and tf-keras of one version") as error:
        tfp_cvae._check_versions()
    assert "tf-keras 2.2" in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_name():
    with pytest.raises(AttributeError, match="module 'tfp_cvae' has no attribute 'CVAEE'"):
        tfp_cvae.CVAEE  # noqa: B018


def test_imports_point_upwards_in_the_layout():
    """Of the table in docs/development.md; what is imported late, within a function, is not looked at."""
    root = pathlib.Path(__file__).resolve().parents[1]
    table = (root / "docs" / "development.md").read_text().partition("| module |")[2].partition("\n\n")[0]
    row_of = {name: row for row, line in enumerate(table.splitlines()) for name in re.findall(r"`(\w+)`", line)}
    package = root / "tfp_cvae"
    assert set(row_of) >= {path.stem for path in package.glob("*.py")} - {"__init__", "__main__"}
    for path in package.glob("[!_]*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "tfp_cvae":
                names = [alias.name for alias in node.names] if node.module == "tfp_cvae" else [node.module[9:]]
                for name in names:
                    assert row_of.get(name, -1) <= row_of[path.stem], f"{path.stem} imports {name}"
