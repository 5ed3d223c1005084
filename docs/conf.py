"""Sphinx configuration: API pages come from the docstrings."""

import importlib.metadata
import shutil
from pathlib import Path

project = "jaxkd"
author = "The jaxkd authors"
version = release = importlib.metadata.version("jaxkd-distillation")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
html_theme = "furo"
html_title = "jaxkd"
exclude_patterns = ["_build", "conf.py"]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_type_aliases = {"ArrayLike": "ArrayLike", "jax.typing.ArrayLike": "ArrayLike"}
# Formulas and names in the docstrings are in single backticks: show them as code.
default_role = "code"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Source"]
myst_heading_anchors = 2
myst_enable_extensions = ["dollarmath"]

# The notebooks are Python files (jupytext, py:percent).  They are run anew by a build, in a copy.
_here = Path(__file__).parent
shutil.copytree(_here.parent / "experiments" / "notebooks", _here / "notebooks", dirs_exist_ok=True)
nb_custom_formats = {".py": ["jupytext.reads", {"fmt": "py:percent"}]}
nb_execution_mode = "cache"
nb_execution_timeout = 900
nb_execution_raise_on_error = True
nb_execution_in_temp = True
