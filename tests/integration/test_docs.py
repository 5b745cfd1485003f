"""The pages of docs are run. What serving.md says is run too, parsed by the server's own protos, or compared."""

import ast
import csv
import dataclasses
import json
import os
import pathlib
import re
import runpy
import shlex
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import requests
import stand_ins
import tf_keras as keras
import yaml
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

import tfp_cvae
from tfp_cvae import cli
from tfp_cvae.build import build_semi_supervised_cvae
from tfp_cvae.commands import Train
from tfp_cvae.config import QUICK_EVALUATION, EvaluationConfig, TrainConfig
from tfp_cvae.export import export_saved_model

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGES = {path.stem: path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))}
TEXT = PAGES["serving"]

# The blocks of these are run in order, as one file; those of serving.md need its export, and come below.
WITH_PYTHON = ("concepts", "data", "evaluation", "few_labels", "index", "reliability", "results", "training", "workers")


def blocks(language, text=TEXT):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(program, text=TEXT):
    """Words of each command of a program, without comments and assignments before it."""
    lines = "\n".join(blocks("bash", text)).replace("\\\n", " ").splitlines()
    parts = [shlex.split(part, comments=True) for line in lines for part in line.split(" && ")]
    bare = [words[next((i for i, word in enumerate(words) if "=" not in word), 0) :] for words in parts]
    return [words for words in bare if words and words[0] == program]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the export that the page speaks of, of a model that has all signatures."""
    path = tmp_path_factory.mktemp("docs")
    keras.utils.set_random_seed(0)
    export_saved_model(build_semi_supervised_cvae((8, 8, 1), 10, 4, width=8), path / "serving" / "cvae")
    return path


def run(words, folder):
    environment = {**os.environ, "PATH": f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(words, cwd=folder, env=environment, check=True, capture_output=True, text=True).stdout


def test_no_page_is_left_out():
    assert [name for name, text in PAGES.items() if "```python" in text] == sorted((*WITH_PYTHON, "serving"))
    for text in PAGES.values():
        assert len(blocks("python", text)) == text.count("```python")


@pytest.mark.usefixtures("quick_judge")
@pytest.mark.parametrize("page", WITH_PYTHON)
def test_page(page, tmp_path, monkeypatch):
    code = "\n".join(blocks("python", PAGES[page]))
    # In a process of its own a module would not be there, if nothing else has imported it.
    assert set(re.findall(r"(?<!from )\btfp_cvae\.(\w+)", code)) <= set(tfp_cvae.__all__)
    # A file, as AutoGraph reads the source.
    (tmp_path / "page.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    runpy.run_path("page.py", run_name="__main__")


def test_commands_are_understood():
    found = {name: commands("tfp-cvae", text) for name, text in PAGES.items()}
    assert sum(map(len, found.values())) == sum(
        len(re.findall(r"(?:^|&& |[A-Z]=\S+ )tfp-cvae ", block, re.MULTILINE))
        for text in PAGES.values()
        for block in blocks("bash", text)
    )
    parsed = [cli._parse(words[1:]) for of_page in found.values() for words in of_page]
    used = {type(command).__name__ for command in parsed}
    assert used >= {"Train", "Evaluate", "Generate", "Plot", "Export", "Request", "Recipes"}
    assert any(isinstance(command, Train) and command.config.prior == "flow" for command in parsed)


def test_imports_point_upwards_in_the_layout():
    table = PAGES["development"].partition("## Layout")[2].partition("\n## ")[0]
    rows = [re.findall(r"`(\w+)`", row.split("|")[1]) for row in re.findall(r"^\| `.*", table, re.MULTILINE)]
    place = {module: number for number, row in enumerate(rows) for module in row}
    package = {path.stem: ast.parse(path.read_text()) for path in (ROOT / "tfp_cvae").glob("[!_]*.py")}
    assert sum(map(len, rows)) == len(place)
    assert set(place) == set(package)
    for module, tree in package.items():
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        for node in imports:
            found = [name.name for name in node.names] if node.module == "tfp_cvae" else node.module.split(".")[1:]
            used = [name for name in found if name in package and node.module.startswith("tfp_cvae")]
            assert all(place[name] <= place[module] for name in used), (module, used)


def test_every_setting_is_listed():
    table = PAGES["training"].partition("### Every setting")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", table, re.MULTILINE))
    defaults = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
    assert {name: eval(default) for name, default in rows.items()} == defaults


def shown(found, scale=1):
    return f"{scale * found['mean']:.2f} +- {scale * found['standard_error']:.2f}"


def test_results_are_those_of_the_files():
    folder = ROOT / "benchmarks" / "results"
    rows = re.findall(r"^\|.* \+- .*", PAGES["results"], re.MULTILINE)
    assert len(rows) == 6
    readme, page = (" ".join(text.split()) for text in ((ROOT / "README.md").read_text(), PAGES["results"]))
    evaluated = {
        name: json.loads((folder / f"{file}-evaluation.json").read_text())
        for name, file in {"best": "best", "default": "mnist"}.items()
    }
    for name, result in evaluated.items():
        scales = {"elbo": 1, "log_p_x_given_y": 1, "log_p_x": 1, "bayes_accuracy": 100}
        written = [shown(result[key], scale) for key, scale in scales.items()]
        assert all(value in page for value in written), name
        assert re.search(rf"\| `{name}` \| \S+ min \| {re.escape(' | '.join(written))}% \|", readme), name
        (row,) = [row for row in rows if row.startswith(f"| `{name}` ")]
        assert " | ".join(written[:2]) in row
    # What of the generated digits of each class is recognised, the command in the first line of the README among them.
    evaluated["first command"] = json.loads((folder / "mnist5k-evaluation.json").read_text())
    assert f"about {evaluated['first command']['elbo']['mean']:.0f} nats per image" in readme
    for name, result in evaluated.items():
        samples, each = result["samples"], [found["recognised"]["mean"] for found in result["per_class"].values()]
        for key in ("recognised", "recognised_worst_class"):
            assert f"{shown(samples[key], 100)}%" in readme, name
        assert name == "first command" or f"{', '.join(f'{100 * value:.1f}' for value in each)}%" in readme, name
    with (folder / "likelihood.csv").open(newline="") as lines:
        measured = {row["run"]: row for row in csv.DictReader(lines)}
    for row, name in zip((*rows[1:4], rows[5]), ("ten0", "ten1", "ten2", "homework"), strict=True):
        for key in ("elbo", "log_p_x_given_y"):
            mean, error = (float(measured[name][column]) for column in (key, f"{key}_se"))
            assert f"| {mean:.2f} +- {error:.2f} |" in row, (name, key)
        assert row.endswith(f"| {measured[name]['K']} |")


def test_the_amounts_of_an_evaluation_are_those_of_the_settings():
    full, quick = EvaluationConfig(), QUICK_EVALUATION
    readme, page, help_text = (
        " ".join(text.split())
        for text in (
            (ROOT / "README.md").read_text(),
            PAGES["evaluation"],
            (ROOT / "tfp_cvae" / "commands.py").read_text(),
        )
    )
    assert f"K = {full.num_importance_samples:,}" in readme
    assert f"those within {full.label_margin:.0f} nats" in readme
    assert f"K = {full.num_importance_samples:,}" in page
    assert f"({full.generated_per_class:,} of each class)" in page
    assert f"{quick.num_images} images with K = {quick.num_importance_samples}" in page
    assert (
        f"{quick.num_images} images, K = {quick.num_importance_samples}, "
        f"classifiers on {quick.num_classifier_images:,} images"
    ) in help_text


def test_errors_with_few_labels_are_those_of_the_file():
    with (ROOT / "benchmarks" / "results" / "few-labels.csv").open(newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row["run"].startswith("m2-")]
    table = re.findall(
        r"^\| ([\d,]+) \| (grey|binarized).*\| (\S+ \+- \S+) \| (\S+ \+- \S+) \|$", PAGES["few_labels"], re.M
    )
    found = {(int(labels.replace(",", "")), kind): (alone, own) for labels, kind, alone, own in table}
    assert len(found) == 8
    for (labels, kind), written in found.items():
        own = [row for row in rows if int(row["num_labels"]) == labels]
        measured = []
        for column in ("supervised", "label_posterior"):
            values = np.array([float(row[f"{column}_grey" if kind == "grey" else column]) for row in own])
            measured.append(f"{values.mean():.2f} +- {values.std(ddof=1) / len(values) ** 0.5:.2f}")
        assert written == tuple(measured), (labels, kind)


def test_python_of_a_client(folder):
    assert len(blocks("python")) == 2
    for code in blocks("python"):
        run([sys.executable, "-c", code + "\nassert image.shape == (2, 8, 8, 1)"], folder)


def test_saved_model_cli(folder):
    assert commands("saved_model_cli")
    for words in commands("saved_model_cli"):
        assert "Result for output key image" in run(words, folder)


def test_requests(folder):
    models = stand_ins.Models(folder / "serving" / "cvae")
    with stand_ins.rest_server(models) as rest, stand_ins.grpc_server(models) as grpc:
        found = [words for words in commands("tfp-cvae") if words[1] == "request"]
        assert len(found) == 2
        for words in found:
            address = [word.replace("localhost:8501", rest).replace("localhost:8500", grpc) for word in words]
            run(address, folder)
            assert PIL.Image.open(folder / "three.png").size[0] > 300
            (folder / "three.png").unlink()
        (post,) = [words for words in commands("curl") if "POST" in words]
        url, body = post[post.index("POST") + 1], post[post.index("-d") + 1]
        (answer,) = requests.post(url.replace("localhost:8501", rest), data=body).json()["outputs"]
    assert answer["b64"].startswith("iVBORw0")


def test_configs_of_models():
    (text,) = [block for block in blocks("textproto") if "model_config_list" in block]
    config = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    (entry,) = config.model_config_list.config
    assert list(entry.model_version_policy.specific.versions) == [1, 2]
    assert dict(entry.version_labels) == {"stable": 1, "canary": 2}


def test_config_of_batching():
    # Its protos are not in tensorflow-serving-api: no more than the rule that the server has for these two.
    (text,) = [block for block in blocks("textproto") if "max_batch_size" in block]
    sizes = [int(size) for size in re.search(r"allowed_batch_sizes: \[(.*)\]", text)[1].split(",")]
    assert sizes == sorted(sizes)
    assert sizes[-1] == int(re.search(r"max_batch_size { value: (\d+) }", text)[1])


def test_kubernetes():
    deployment, service = yaml.safe_load_all(blocks("yaml")[0])
    pod = deployment["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    assert service["spec"]["selector"] == pod["metadata"]["labels"] == deployment["spec"]["selector"]["matchLabels"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert (
        ports == {port["targetPort"]: port["port"] for port in service["spec"]["ports"]} == {"grpc": 8500, "rest": 8501}
    )
    assert container["readinessProbe"]["httpGet"] == {"path": "/v1/models/cvae", "port": "rest"}
    (mount,) = container["volumeMounts"]
    assert mount["name"] == pod["spec"]["volumes"][0]["name"]


def test_what_it_says_of_the_folder(folder):
    version = folder / "serving" / "cvae" / "1"
    (listing,) = re.findall(r"^```\n(serving/cvae/\n.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    for path in (
        "saved_model.pb",
        "variables",
        "assets.extra/tf_serving_warmup_requests",
        "assets.extra/model_card.json",
    ):
        assert (version / path).exists()
        assert pathlib.PurePath(path).name in listing
    table = dict(re.findall(r"^\| (`[^|]+`) \| (`[^|]+`) \|", TEXT, re.MULTILINE))
    documented = {
        name: re.findall(r"`(\w+)`", inputs)
        for names, inputs in table.items()
        for name in re.findall(r"`(\w+)`", names)
    }
    tensors = stand_ins.signature_tensors(version)
    assert {name: sorted(inputs) for name, inputs in documented.items()} == {
        name: sorted(found[0]) for name, found in tensors.items()
    }
