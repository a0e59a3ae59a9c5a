"""Sphinx's settings: the pages are Markdown (MyST), and every warning is an error (see the Makefile)."""

from importlib.metadata import version as installed_version

project = "ftransfer"
copyright = "The ftransfer maintainers"
author = "The ftransfer maintainers"
release = version = installed_version("ftransfer-tool")

extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
nitpicky = True

html_theme = "furo"
html_title = f"ftransfer {release}"
