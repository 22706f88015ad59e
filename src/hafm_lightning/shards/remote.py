"""Remote shards: fetched through fsspec into a local cache, one shard at a time, and checked by sha256.

Any address that fsspec understands works: ``s3://``, ``gs://``, ``hf://datasets/owner/name``, ``https://``.

Choices:

* A cached file is named by the sha256 in the manifest, so that a changed shard is another file. It is hashed unless it
  is unchanged since that was done before; a damaged file is fetched again.
* A file enters the cache only if its bytes are right. Processes that need the same shard wait for the first one.
* A broken connection is retried a few times. fsspec's file systems are not kept, since they do not work after a fork.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path

from hafm_lightning import files
from hafm_lightning.errors import RequestError
from hafm_lightning.files import expanded, write_atomic
from hafm_lightning.processes.locks import one_at_a_time
from hafm_lightning.shards.manifest import MANIFEST_NAME, Manifest, ShardInfo
from hafm_lightning.shards.verified import has_sha256
from hafm_lightning.untrusted import child

ATTEMPTS = 4
_FIRST_PAUSE_S = 0.5
_PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub", "az": "adlfs", "abfs": "adlfs"}


def cache_folder(cache_dir: str | Path | None) -> Path:
    """The cache: the argument, or :func:`hafm_lightning.files.cache_folder`."""
    return (expanded(cache_dir) if cache_dir else files.cache_folder()) / "shards"


@dataclass(frozen=True)
class RemoteSource:
    """A split below a remote root."""

    root: str  # address of the output of `prepare`
    split: str
    cache_dir: str | Path | None = None  # see `cache_folder`

    def manifest(self) -> Manifest:
        """The split's manifest, fetched each time, since it names the current shards."""
        address = self._address(MANIFEST_NAME)
        return Manifest.parse(read_bytes(address), address)

    def path(self, shard: ShardInfo) -> Path:
        """A local file with the shard's bytes, fetched if necessary; RequestError if its sha256 is wrong."""
        folder = child(cache_folder(self.cache_dir), shard.sha256[:2], "a shard's sha256")
        path = child(folder, f"{shard.sha256}.safetensors", "a shard's sha256")
        if path.is_file() and has_sha256(path, shard.sha256):
            return path
        with one_at_a_time(path.with_suffix(".lock")):
            if path.is_file() and has_sha256(path, shard.sha256):
                return path
            address = self._address(shard.file)
            content = read_bytes(address)
            if hashlib.sha256(content).hexdigest() != shard.sha256:
                raise RequestError(
                    f"{address}: the {len(content)} bytes received do not have the manifest's sha256\n"
                    "the shard was changed or cut short: copy it to the remote root again"
                )
            write_atomic(path, content)
        return path

    def _address(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{child(self.split, name, 'a file of the split').as_posix()}"


def read_bytes(address: str) -> bytes:
    """The file at ``address``; RequestError if it cannot be opened, OSError after several broken connections."""
    from fsspec.core import url_to_fs

    protocol = address.partition("://")[0]
    # A cached listing would hide a shard that was copied to the remote root later.
    options = {"use_listings_cache": False} if protocol in ("http", "https", "s3", "gs", "gcs", "hf") else {}
    for attempt in range(ATTEMPTS):
        try:
            filesystem, path = url_to_fs(address, skip_instance_cache=True, **options)
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
