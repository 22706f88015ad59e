"""``app``: a web page on which a vocal is uploaded or recorded, and its accompaniment played.

`command` serves the page of `page` until a signal; `performance` makes one take at a time, in a thread; `workplace` is
the private folder of uploads and takes.
"""

from __future__ import annotations

__all__ = ["command", "page", "performance", "workplace"]
