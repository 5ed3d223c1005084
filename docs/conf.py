"""Sphinx configuration: API pages come from the docstrings."""

import importlib.metadata

project = "jaxkd"
author = "The jaxkd authors"
version = release = importlib.metadata.version("jaxkd-distillation")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
html_theme = "furo"
html_title = "jaxkd"
exclude_patterns = ["_build"]
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
