"""Sphinx configuration."""

from importlib import metadata

project = "edgekit"
copyright = "the edgekit developers, Apache-2.0"
release = metadata.version("edgekit-core")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_copybutton"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "requirements.txt"]
html_theme = "furo"
html_title = "edgekit"
html_static_path = ["_static"]
html_css_files = ["edgekit.css"]
autodoc_typehints = "description"
autodoc_member_order = "bysource"
# Of console blocks the commands are copied, without what they print.
copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True
copybutton_exclude = ".linenos, .gp, .go"
napoleon_use_ivar = True
# Sphinx looks the names in lists of attributes up as references, and many classes have a `name`.
suppress_warnings = ["ref.python"]
