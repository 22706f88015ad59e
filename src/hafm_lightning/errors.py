"""Errors that are the request's fault: a missing file, a misspelt key, stages that do not belong together.

The commands print a :class:`RequestError` as at most five lines and exit with code 2; any other exception is a failure
of the work and exits with code 1.
"""

from __future__ import annotations

__all__ = ["RequestError"]


class RequestError(ValueError):
    """The request cannot be served as it stands.

    The message says what is wrong, where (file, key, stream), and what to do about it.
    """
