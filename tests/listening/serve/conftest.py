"""These tests need the extra ``listen``."""

from importlib.util import find_spec

NEEDED = ("starlette", "uvicorn", "httpx2")
collect_ignore_glob = [] if all(map(find_spec, NEEDED)) else ["test_*.py"]
