import pathlib

import pytest

from tfp_cvae.dataset_names import check_is_there, default_output, is_tfds_name, path_of


@pytest.mark.parametrize(
    ("dataset", "output"),
    [
        ("mnist5k", "runs/mnist5k"),
        ("emnist/balanced", "runs/emnist-balanced"),
        ("{folder}/stripes.npz", "runs/stripes"),
        ("{folder}", "runs/{name}"),
        ("x" * 1000, "runs/" + "x" * 100),
    ],
)
def test_default_output(npz, dataset, output):
    folder = npz.parent
    assert default_output(dataset.format(folder=folder)) == pathlib.Path(output.format(name=folder.name))


@pytest.mark.parametrize(
    ("dataset", "is_name"),
    [
        *((name, True) for name in ("mnist", "emnist/balanced", "emnist/balanced:3.*", "mnist:3.0.1")),
        *((name, False) for name in ("Mnist", "mnist/a/b", "mnist:", "kaggle:mnist", "../mnist", "a b", "m" * 1000)),
    ],
)
def test_names_of_tfds(dataset, is_name):
    assert is_tfds_name(dataset) == is_name


def test_paths(npz, monkeypatch):
    monkeypatch.chdir(npz.parent)
    (npz.parent / "mnist5k").mkdir()
    (npz.parent / "pets").mkdir()
    for dataset, path in {
        "stripes.npz": npz,
        "not/there.npz": npz.parent / "not" / "there.npz",
        "pets": npz.parent / "pets",
        "mnist5k": None,
        "not_there": None,
    }.items():
        assert path_of(dataset) == path


def test_what_can_only_be_a_path_has_to_be_there(npz, monkeypatch):
    monkeypatch.chdir(npz.parent)
    for dataset in ("mnist5k", "mnist", "no_such_name", "stripes.npz", str(npz.parent)):
        check_is_there(dataset)
    (npz.parent / "notes").write_text("")
    for dataset in ("not/there.npz", "./pets", "~/pets", "pets/", "/not/there"):
        with pytest.raises(ValueError, match="expected"):
            check_is_there(dataset)
    with pytest.raises(ValueError, match=r"dataset: expected a folder .* got another file: 'notes'"):
        check_is_there("notes")
