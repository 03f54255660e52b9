"""What MkDocs does besides: docstrings name things as Sphinx does, :class:`X`, of which pages show `X`."""

import re
from typing import Any

_ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):(?=<code>)")


def on_page_content(html: str, **about: Any) -> str:
    """A page without the roles."""
    return _ROLE.sub("", html)
