"""The notebooks run from top to bottom from a fresh kernel, with the settings of their `parameters` made small."""

import json
import pathlib

import nbformat
import papermill
import pytest

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "notebooks"

# What is injected after the cell with the tag `parameters`.
SMALL = {
    "01_quickstart": {"epochs": 2, "columns": 3},
    "02_derivation": {"num_draws": 200},
    "03_report_figures": {
        "dataset": "mnist5k",
        "epochs": 1,
        "mistake_epochs": 1,
        "classifier_epochs": 1,
        "classifier_images": 20,
        "count": 10,
    },
    "04_evaluation": {
        "dataset": "mnist5k",
        "epochs": 1,
        "plane_epochs": 1,
        "evaluation": {
            "num_importance_samples": 2,
            "num_images": 50,
            "generated_per_class": 5,
            "num_classifier_images": 20,
            "classifier_epochs": 1,
        },
        "num_samples": [1, 2],
        "few_images": 10,
        "grid": 3,
    },
    "05_serving": {"epochs": 2, "num_importance_samples": 2, "num_images": 10, "columns": 3},
    "06_your_own_data": {
        "images_per_class": 20,
        "epochs": 1,
        "recipe_epochs": 1,
        "own_epochs": 1,
        "num_samples": 2,
        "priors": ["label"],  # that of the recipe is a flow
        "tfds_name": "mnist",
    },
    "07_few_labels": {"epochs": 5, "label_epochs": 1, "supervised_epochs": 2, "num_samples": 2},
}


def test_there_are_seven():
    assert [path.stem for path in sorted(FOLDER.glob("*.ipynb"))] == list(SMALL)


@pytest.mark.parametrize("name", SMALL)
def test_notebook_runs(name, tmp_path):
    source = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    (settings,) = [cell for cell in source.cells if "parameters" in cell.metadata.get("tags", [])]
    known = {}
    exec(settings.source, known)
    # papermill would take a misspelt parameter for a new variable.
    assert set(SMALL[name]) <= set(known)
    if name == "04_evaluation":
        source.cells.append(nbformat.v4.new_code_cell(SLIDERS))
    nbformat.write(source, tmp_path / "source.ipynb")
    run = papermill.execute_notebook(
        str(tmp_path / "source.ipynb"),
        str(tmp_path / "run.ipynb"),
        SMALL[name],
        cwd=str(tmp_path),
        kernel_name="python3",
        progress_bar=False,
    )
    code = [cell for cell in run.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    # One is that of the parameters.
    assert len(code) == 1 + sum(cell.cell_type == "code" for cell in source.cells)


SLIDERS = """
before = bytes(canvas.value)
controls.children[1].value = 2.0
moved = bytes(canvas.value)
controls.children[0].value = 7
assert len({before, moved, bytes(canvas.value)}) == 3
assert before.startswith(b"\\x89PNG")
"""


@pytest.mark.parametrize("name", SMALL)
def test_notebook_is_committed_as_it_was_run_at_full_size(name):
    text = (FOLDER / f"{name}.ipynb").read_text()
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert any("image/png" in output.get("data", {}) for cell in code for output in cell.outputs)
    kinds = {output.output_type for cell in code for output in cell.outputs}
    assert kinds <= {"stream", "display_data", "execute_result"}
    assert not [cell.source for cell in code for output in cell.outputs if output.get("name") == "stderr"]
    assert "papermill" not in json.dumps([notebook.metadata, *(cell.metadata for cell in notebook.cells)])
    assert len(text) < 3_000_000
