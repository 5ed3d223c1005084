"""Sphinx configuration: API pages come from the docstrings."""

import functools
import importlib
import importlib.metadata
import inspect
import re
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from formulas import FORMULAS

project = "jaxkd"
author = copyright = "The jaxkd authors"
version = release = importlib.metadata.version("jaxkd-distillation")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_design",
]
html_theme = "furo"
html_title = f"jaxkd {version}"
html_static_path = ["_static"]
html_css_files = ["jaxkd.css"]
exclude_patterns = ["_build", "conf.py", "formulas.py"]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
# Formulas and names in the docstrings are in single backticks: show them as code.
default_role = "code"
suppress_warnings = ["ref.python"]  # two classes of one name are told apart by their module
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Source"]
napoleon_use_ivar = True  # fields of named tuples are listed once
myst_heading_anchors = 2
myst_enable_extensions = ["colon_fence", "dollarmath"]

# The notebooks are Python files (jupytext, py:percent).  They are run anew by a build, in a copy.
_here = Path(__file__).parent
shutil.copytree(_here.parent / "experiments" / "notebooks", _here / "notebooks", dirs_exist_ok=True)
nb_custom_formats = {".py": ["jupytext.reads", {"fmt": "py:percent"}]}
nb_execution_mode = "cache"
nb_execution_timeout = 900
nb_execution_raise_on_error = True
nb_execution_in_temp = True

_NAME = re.compile(r"(?<![`:\w])`([A-Za-z_][\w.]*)`(?![`_])")


def _improve(app, what, name, obj, options, lines):  # the arguments of Sphinx's event
    """Puts a formula below the first line of a docstring, and links the names of the package in it."""
    module = name if what == "module" else name.rpartition(".")[0]
    lines[:] = [_NAME.sub(lambda found: _linked(found[1], module), line) for line in lines]
    formula = FORMULAS.get(name.removeprefix("jaxkd.").replace("losses.feature.", "losses."))
    if formula is not None:
        end = lines.index("") if "" in lines else len(lines)
        lines[end:end] = ["", ".. math::", "", f"   {formula}", ""]


@functools.cache
def _linked(text, module):
    """A link to a function or class of the package, or the text as code."""
    for full in (text, f"jaxkd.{text}", f"{module}.{text}"):
        path, _, last = full.rpartition(".")
        if path.startswith("jaxkd"):
            try:
                found = getattr(importlib.import_module(path), last, None)
            except ImportError:
                continue
            if callable(found):
                return f":py:obj:`{text} <{full}>`"
    return f"`{text}`"


def _as_written(app, what, name, obj, options, signature, returned):
    """Types as the source has them, and not what they stand for: unions of unions."""
    if what not in ("function", "method") or signature is None:
        return None
    found = inspect.signature(obj)
    parts = list(found.parameters.values())[1 if what == "method" else 0 :]
    parts = [part.replace(annotation=_Text(part.annotation)) for part in parts]
    result = _Text(found.return_annotation)
    return str(found.replace(parameters=parts, return_annotation=inspect.Signature.empty)), result


class _Text(str):
    """An annotation that is printed without quotation marks, and without the modules' private names."""

    def __new__(cls, annotation):
        text = "" if annotation is inspect.Parameter.empty else annotation
        return super().__new__(cls, re.sub(r"\b(_\w+|jax|np|models|data)\.(?=\w)", "", str(text)))

    __repr__ = str.__str__


def setup(app):
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", _improve)
    app.connect("autodoc-process-signature", _as_written)
