"""How Sphinx builds these pages: `nox -s docs`, or `sphinx-build -W -n docs build/docs` with the extra `docs`.

Links to the documentation of Python and Django need their inventories from the network. POOLSAVE_DOCS_LINKS=online
turns them on. Without it the build needs no network, and what is not poolsave's stays plain text.
"""

import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.lint_settings")  # models are imported for the reference

import django

django.setup()

from docutils import nodes
from sphinx import addnodes
from sphinx.addnodes import desc_addname
from sphinx.ext.napoleon.docstring import GoogleDocstring
from sphinx.transforms import SphinxTransform

import poolsave
from poolsave import executors

project = "poolsave"
copyright = "the poolsave developers"  # noqa: A001  Sphinx names it
html_title = "poolsave"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["build"]
html_theme = "furo"
html_static_path = ["_static"]
html_js_files = ["messages.js"]
html_css_files = ["tables.css"]
myst_enable_extensions = ["deflist", "colon_fence"]
myst_heading_anchors = 3
copybutton_exclude = ".linenos, .gp, .go"

default_role = "code"  # our docstrings have single backticks around code
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_rtype = False

OUTSIDE = r"(?!poolsave\.).*"
"""Names that are not poolsave's: Python's, Django's, and type variables."""

if os.environ.get("POOLSAVE_DOCS_LINKS") == "online":
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "django": ("https://docs.djangoproject.com/en/stable", "https://docs.djangoproject.com/en/stable/_objects/"),
    }
nitpick_ignore_regex = [
    ("py:.*", OUTSIDE),
    ("py:class", r"poolsave\.\w+\.[A-Z]"),  # type variables
    ("py:class", r"poolsave\._.*|poolsave\.(operations\.ExpandingOperation|pipelines\.Step|streams\.PipelineStream)"),
]


def whole_text(docstring):
    """Take no part of an attribute's docstring for its type: ours have annotations, and colons as in any sentence."""
    return "", GoogleDocstring(docstring._dedent(docstring._consume_to_end()), docstring._config).lines()


GoogleDocstring._consume_inline_attribute = whole_text


class MessageIndex(SphinxTransform):
    """Enters the messages on the pages about errors into the index, which the search weighs most.

    A hit leads to the row or the item, which gets an anchor, and shows its text.
    """

    default_priority = 840  # before Sphinx collects index entries

    def apply(self):
        messages = MESSAGES.get(self.env.docname)
        found = list(messages(self.document)) if messages else []  # before the document is changed
        for number, (place, inside, text) in enumerate(found):
            anchor = f"message-{number}"
            place["ids"].append(anchor)
            inside.insert(0, addnodes.index(entries=[("single", text, anchor, "main", None)]))


AS_TYPED = str.maketrans({"\N{LEFT DOUBLE QUOTATION MARK}": '"', "\N{RIGHT DOUBLE QUOTATION MARK}": '"'})
AS_TYPED |= str.maketrans({"\N{RIGHT SINGLE QUOTATION MARK}": "'", "\n": " "})
"""Messages are searched for as they are printed, without typographic quotes."""


def quoted_in_tables(document):
    """The first cell of each row, which is a message in single backticks, with "..." for values."""
    for row in document.findall(nodes.row):
        cell = row[0]
        for literal in cell.findall(nodes.literal):
            yield row, cell, literal.astext().translate(AS_TYPED)


def quoted_in_items(document):
    """What stands in double quotes in an item before its dash: the symptoms."""
    for item in document.findall(nodes.list_item):
        symptoms = item.astext().translate(AS_TYPED).partition(" — ")[0]
        for text in re.findall(r'"([^"]* [^"]*)"', symptoms):
            yield item, item, text


MESSAGES = {"troubleshooting": quoted_in_tables, "pitfalls": quoted_in_items}


def setup(app):
    app.add_transform(MessageIndex)
    app.connect("missing-reference", find_public_name)
    app.connect("object-description-transform", hide_private_module)


def hide_private_module(app, domain, objtype, contentnode):
    """Show no module for a class that cannot be imported, since it is private: people are given its instances."""
    for module in list(contentnode.parent.findall(desc_addname)):
        if module.astext().startswith("poolsave._"):
            module.parent.remove(module)


def find_public_name(app, env, node, text):
    """Lead `poolsave.reports.Report`, where it is defined, to `poolsave.Report`, where it is documented."""
    if node.get("refdomain") != "py":
        return None
    name = node["reftarget"].rpartition(".")[2]
    for module in (poolsave, executors):
        if name in module.__all__ and node["reftarget"] != f"{module.__name__}.{name}":
            target = f"{module.__name__}.{name}"
            domain = env.get_domain("py")
            return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", target, node, text)
    return None
