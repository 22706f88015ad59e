"""Shards that lie elsewhere: read through fsspec into a local cache, a shard at a time, checked by sha256.

Any address that fsspec understands serves: ``s3://``, ``gs://``, ``hf://datasets/owner/name``, ``https://``.

Choices:

* A cached file is named by the sha256 that the manifest gives, so that a shard which changed is another file, and two
  roots with the same shard share it. It is hashed when a process first opens it; a damaged one is fetched again.
* A file appears in the cache when its bytes are right. Processes that want the same shard wait for the first one.
* A connection that breaks is tried again a few times. Nothing that fsspec opens lives across a fork.
"""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hafm_lightning.errors import RequestError
from hafm_lightning.files import sha256_of, write_atomic
from hafm_lightning.locks import one_at_a_time
from hafm_lightning.shards.reader import MANIFEST_NAME, Manifest, ShardInfo

CACHE_VARIABLE = "HAFM_CACHE"
"""Environment variable that names the cache folder."""
ATTEMPTS = 4
_FIRST_PAUSE_S = 0.5
_PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub", "az": "adlfs", "abfs": "adlfs"}


def cache_folder(cache_dir: str | Path | None) -> Path:
    """Where shards are kept: the argument, ``$HAFM_CACHE``, or ``~/.cache/hafm_lightning``."""
    chosen = cache_dir or os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "hafm_lightning"
    return Path(chosen).expanduser() / "shards"


@dataclass(frozen=True)
class RemoteSource:
    """A split below a remote root.

    Attributes:
        root: Address of what ``prepare`` wrote.
        split: Name of the split.
        cache_dir: Where shards are kept; see :func:`cache_folder`.
    """

    root: str
    split: str
    cache_dir: str | Path | None = None

    def manifest(self) -> Manifest:
        """The split's manifest, fetched anew, since it names the shards that count."""
        address = self._address(MANIFEST_NAME)
        return Manifest.parse(read_bytes(address), address)

    def path(self, shard: ShardInfo) -> Path:
        """A local file with the shard's bytes, fetched if need be.

        Raises:
            RequestError: The shard is not there, or its bytes are not those that the manifest promises.
            OSError: The connection failed again and again.
        """
        path = cache_folder(self.cache_dir) / shard.sha256[:2] / f"{shard.sha256}.safetensors"
        if path.is_file() and sha256_of(path) == shard.sha256:
            return path
        with one_at_a_time(path.with_suffix(".lock")):
            if path.is_file() and sha256_of(path) == shard.sha256:
                return path
            address = self._address(shard.file)
            content = read_bytes(address)
            if hashlib.sha256(content).hexdigest() != shard.sha256:
                raise RequestError(
                    f"{address}: {len(content)} bytes arrived, but not those of the manifest (sha256)\n"
                    "the shard was changed or cut short: copy it to the remote root again"
                )
            write_atomic(path, content)
        return path

    def _address(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{self.split}/{name}"


def read_bytes(address: str) -> bytes:
    """The whole file at ``address``.

    Raises:
        RequestError: No such file, no such kind of address, or no permission.
        OSError: The connection failed :data:`ATTEMPTS` times.
    """
    from fsspec.core import url_to_fs

    protocol = address.partition("://")[0]
    for attempt in range(ATTEMPTS):
        try:
            filesystem, path = url_to_fs(address, skip_instance_cache=True, **_options(protocol))
            content: bytes = filesystem.cat_file(path)
            return content
        except FileNotFoundError:
            raise RequestError(f"{address} does not exist; check `root` and the split") from None
        except PermissionError as error:
            raise RequestError(f"{address}: no permission ({error}); log in, or check the credentials") from error
        except ImportError as error:
            package = _PACKAGES.get(protocol, f"the package that fsspec needs for {protocol}://")
            raise RequestError(f"{address}: {error}\npip install {package}") from error
        except ValueError as error:
            raise RequestError(f"{address} cannot be opened: {error}; check `root`") from error
        except OSError as error:
            if attempt == ATTEMPTS - 1:
                raise OSError(f"{address}: the connection failed {ATTEMPTS} times: {error}") from error
            time.sleep(_FIRST_PAUSE_S * 2**attempt)
    raise AssertionError("unreachable")


def _options(protocol: str) -> dict[str, Any]:
    """Keep no listings: a shard that is copied to a remote root after a look at it must be seen."""
    return {"use_listings_cache": False} if protocol in ("http", "https", "s3", "gs", "gcs", "hf") else {}
