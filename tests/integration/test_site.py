"""The documentation as a site: it builds without a warning, loads nothing from elsewhere, and leaves nothing out."""

import html.parser
import os
import pathlib
import re
import subprocess
import sys

import pytest
import sphinx.util.inventory

import tfp_cvae

ROOT = pathlib.Path(__file__).resolve().parents[2]

# What a browser fetches by itself, as against <a href>.
LOADS = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src", "object": "data"}
ELSEWHERE = re.compile(r"\s*(https?:)?//")
IN_CODE = re.compile(r"(?:@import|url\(|import\(|src\s*=)\s*[\"']?\s*(?:https?:)?//")


class Loads(html.parser.HTMLParser):
    """Collects what a page loads, and the text of its scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.targets, self.code, self._inside = [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self._inside = tag
        target = dict(attributes).get(LOADS.get(tag, ""))
        if target:
            self.targets.append(target)

    def handle_endtag(self, tag):
        self._inside = None

    def handle_data(self, data):
        if self._inside in ("script", "style"):
            self.code.append(data)

    def from_elsewhere(self):
        return [target for target in self.targets if ELSEWHERE.match(target)] + [
            found for code in self.code for found in IN_CODE.findall(code)
        ]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-d", folder / "doctrees"]
    built = subprocess.run(
        [*command, ROOT / "docs", folder / "html"],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    return folder / "html"


@pytest.fixture(scope="module")
def pages(site):
    found = {path.relative_to(site).with_suffix("").as_posix(): path.read_text() for path in site.rglob("*.html")}
    return {name: text for name, text in found.items() if not name.startswith("_static")}


def test_each_source_is_a_page_that_can_be_reached(site, pages):
    sources = [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs").glob("api/*.md")]
    names = {path.relative_to(ROOT / "docs").with_suffix("").as_posix() for path in sources}
    notebooks = {f"notebooks/{path.stem}" for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert len(names) > 15
    assert notebooks
    assert names | notebooks <= set(pages)
    linked = {
        (page.parent / target).resolve()
        for page in (site / f"{name}.html" for name in pages)
        for target in re.findall(r'href="([^":#]+\.html)', page.read_text())
    }
    assert {(site / f"{name}.html").resolve() for name in names | notebooks} <= linked


def test_what_is_loaded_from_elsewhere_is_found():
    for text in (
        '<script src="https://host/a.js"></script>',
        '<link rel="preconnect" href="//host">',
        "<style>@font-face {src: url(https://host/a.woff)}</style>",
        '<script>import("https://host/a.js")</script>',
    ):
        assert Loads(text).from_elsewhere(), text
    assert not Loads('<script src="a.js"></script><a href="https://host">b</a>').from_elsewhere()


def test_nothing_is_loaded_from_elsewhere(site, pages):
    for name, text in pages.items():
        assert Loads(text).from_elsewhere() == [], name
        assert any("_static/" in target for target in Loads(text).targets), name
    sheets = list(site.rglob("*.css"))
    assert sheets
    for sheet in sheets:
        assert not IN_CODE.search(sheet.read_text()), sheet


def test_what_is_loaded_is_there(site, pages):
    for name, text in pages.items():
        page = site / f"{name}.html"
        for target in Loads(text).targets:
            path = re.split("[?#]", target)[0]
            if path and not target.startswith("data:"):
                assert (page.parent / path).exists(), (name, target)


def test_mathematics_has_its_program_and_fonts(site, pages):
    assert any(target.endswith("_static/mathjax/tex-chtml.js") for target in Loads(pages["concepts"]).targets)
    assert (site / "_static/mathjax/tex-chtml.js").is_file()
    assert (site / "_static/mathjax/output/chtml/fonts/woff-v2/MathJax_Main-Regular.woff").is_file()
    assert r"\mathrm{ELBO}" in pages["concepts"]


def test_the_reference_has_every_public_name(site, pages):
    with (site / "objects.inv").open("rb") as file:
        inventory = sphinx.util.inventory.InventoryFile.load(file, "", os.path.join)
    documented = {name: item for kind in inventory if kind.startswith("py:") for name, item in inventory[kind].items()}
    for name in tfp_cvae.__all__:
        home = f"tfp_cvae.{tfp_cvae._HOMES[name]}.{name}" if name in tfp_cvae._HOMES else f"tfp_cvae.{name}"
        assert home in documented, name
        page, _, anchor = documented[home].uri.partition("#")
        assert f'id="{anchor.replace("$", home)}"' in pages[page.removesuffix(".html")], name
        # And is listed on the first page of the reference.
        assert f"#{home}" in pages["api/index"] or name == "__version__", name
