"""The documentation as a site: see the section "These pages" of development.md."""

import inspect
import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Of the checkout, if the package is not installed.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from pygments.lexers.special import TextLexer
from sphinx.util.inspect import stringify_signature

import tfp_cvae

DOCS = pathlib.Path(__file__).resolve().parent

project = "tfp_cvae"
author = "the authors of tfp_cvae"
version = release = tfp_cvae.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx-mathjax-offline",
]
exclude_patterns = ["_build", "**/.ipynb_checkpoints"]
nitpicky = True

# Markdown and notebooks.
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"

# Docstrings: names in them are in single backticks, and types of other packages have no page here.
default_role = "literal"
highlight_language = "text"
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_attr_annotations = False
napoleon_custom_sections = [("Call args", "params_style")]
nitpick_ignore_regex = [
    ("py:.*", r"(collections|matplotlib|numpy|os|pathlib|tensorflow|tensorflow_probability|tf_keras|types|zipfile)\..*")
]

# Nothing is loaded from another host.
nb_ipywidgets_js = {}
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_title = f"tfp_cvae {version}"
html_copy_source = False
html_show_sphinx = False


def _copy_notebooks(app: object) -> None:
    """Brings the notebooks, which Sphinx reads from nowhere but its own folder, and their links to these pages."""
    for old in (DOCS / "notebooks").glob("*.ipynb"):
        if not (DOCS.parent / "notebooks" / old.name).exists():
            old.unlink()
    for path in (DOCS.parent / "notebooks").glob("*.ipynb"):
        text, copy = path.read_text().replace("](../docs/", "](../"), DOCS / "notebooks" / path.name
        # What has not changed keeps its date, and is not built again.
        if not copy.exists() or copy.read_text() != text:
            copy.parent.mkdir(exist_ok=True)
            copy.write_text(text)


def _link(app: object, name: str, source: list[str]) -> None:
    """Has links to files of the repository, which a viewer of Markdown follows, lead to their pages here."""
    source[0] = (
        source[0]
        .replace("](../notebooks/", "](notebooks/")
        .replace("](../benchmarks/results/README.md", "](results.md")
    )


def _mark_up(app: object, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Gives docstrings, which are plain text, the marks of reStructuredText for formulas, lists and bars."""
    # An empty comment, or napoleon takes what is before a colon in the first line for a type.
    no_type = ["..", ""]
    marked = [*no_type] if what == "attribute" else []
    in_sections = formula = False
    for line in lines:
        previous = marked[-1] if marked else ""
        in_sections |= line in ("Args:", "Attributes:")
        if line.strip():
            # A formula is indented, after an empty line.
            begins = not in_sections and _indent(line) >= 4 and not previous
            if begins and not formula:
                marked += ["::", ""]
            formula = begins or (formula and _indent(line) >= 4)
            if line.lstrip().startswith("- ") and previous.strip() and _indent(line) > _indent(previous):
                marked.append("")
        marked.append(line if formula else line.replace("|", r"\|"))
        if line == "Returns:":
            marked += [f"    {mark}" for mark in no_type]
    lines[:] = marked


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _signature(app: object, what: str, name: str, obj: object, options: object, signature: str, returns: str) -> object:
    """Shows the arguments of the constructor, where Keras hides them behind those of `__new__`."""
    if what == "class" and signature == "(*args, **kwargs)":
        parameters = list(inspect.signature(obj.__init__).parameters.values())[1:]
        return stringify_signature(inspect.Signature(parameters), unqualified_typehints=True), returns
    return None


def setup(app: object) -> None:
    """Called by Sphinx."""
    app.connect("builder-inited", _copy_notebooks)
    app.connect("source-read", _link)
    app.connect("autodoc-process-signature", _signature)
    app.add_lexer("textproto", TextLexer)
    # Before napoleon, whose priority is 500.
    app.connect("autodoc-process-docstring", _mark_up, priority=400)
