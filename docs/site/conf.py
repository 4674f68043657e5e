"""How Sphinx builds the site from the pages that `pages.py` lays out. Nothing is executed and nothing is fetched, now or by a reader."""

from importlib.metadata import distribution

import distillery

project, author, copyright = "distillery", "the distillery authors", "2026, the distillery authors"
version = release = distillery.__version__
extensions = ["myst_nb", "sphinx_design", "sphinx_copybutton", "sphinx.ext.viewcode"]
viewcode_follow_imported_members = False  # their source would lead back to another page
maximum_signature_line_length = 110

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"
nb_render_markdown_format = "myst"
nb_merge_streams = True
suppress_warnings = ["mystnb.unknown_mime_type"]

# one script with all that mathematics needs, its glyphs included
mathjax = "tex-svg.js"
mathjax_path = mathjax
html_static_path = ["static", str(distribution("sphinx-mathjax-offline").locate_file(f"sphinx-mathjax-offline/static/mathjax/{mathjax}"))]

smartquotes = False  # quotes are those of Python

html_theme = "pydata_sphinx_theme"
html_title = "distillery"
html_css_files, html_js_files = ["site.css"], ["sort.js"]
html_copy_source = html_show_sphinx = False
html_context = {"default_mode": "auto"}
html_show_search_summary = False  # would fetch pages, which browsers refuse to those that come from files
html_sidebars = {"index": [], "board": [], "search": [], "genindex": []}
html_theme_options = {
    "logo": {"text": "distillery"},
    "navbar_align": "left",
    "secondary_sidebar_items": {"**": ["page-toc"], "index": [], "board": []},
    "show_prev_next": False,
    "show_nav_level": 1,
    "navigation_with_keys": False,
    "footer_start": ["copyright"],
    "footer_end": [],
    "back_to_top_button": False,
}
