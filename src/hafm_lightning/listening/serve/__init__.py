"""A listening study as a web page: listeners hear, answer, come back, withdraw; nobody sees more than their own.

``server.py`` (address, port, start and end) runs ``routes.py`` (pages for listeners) and ``admin.py`` (counts and votes
for whoever runs the study) behind ``guard.py`` (limits and headers of every request). ``desk.py`` decides what a
listener may do; ``listeners.py`` keeps who takes part, beside the votes. ``static/`` holds the pages.
"""

from __future__ import annotations

__all__ = ["admin", "connections", "desk", "guard", "level", "listeners", "rates", "routes", "server", "settings"]
