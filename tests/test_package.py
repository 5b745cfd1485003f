import importlib.metadata

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
