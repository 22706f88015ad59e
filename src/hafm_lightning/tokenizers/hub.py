"""Where pretrained models come from: a local folder, or an id ``owner/name`` on the Hugging Face Hub.

The Hub's own cache keeps the files, so that a model that was fetched once loads without a connection. Only data is
fetched: callers name the files that they read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from hafm_lightning.errors import RequestError

# Other ids follow their main branch unless a revision is given.
PINNED_REVISIONS: Mapping[str, str] = {
    "facebook/hubert-base-ls960": "dba3bb02fda4248b6e082697eee756de8fe8aa8a",
    "facebook/hubert-large-ll60k": "ff022d095678a2995f3c49bab18a96a9e553f782",
    "facebook/encodec_24khz": "c1dbe2ae3f1de713481a3b3e7c47f357092ee040",
}
HUB_SCHEME = "hf://"


class UnreachableWeightsError(RequestError):
    """A model is not at its source: no such folder, or no connection to it."""


def resolve_source(source: str | Path, revision: str | None, what: str = "weights") -> tuple[str, str | None]:
    """Folder or Hub id to load from, and its revision: the one given, else the pinned one; None for a folder.

    RequestError for a revision of a folder; UnreachableWeightsError if ``source`` looks like a path and no such folder
    exists. ``what`` names the content in messages.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        if revision is not None:
            raise RequestError(f"{path} is a local folder; a revision ({revision!r}) is for Hub ids: leave it out")
        return str(path), None
    name = str(source)
    if isinstance(source, Path) or name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UnreachableWeightsError(
            f"no {what} at {source}: the folder does not exist; name a folder, or a Hub id owner/name"
        )
    return name, revision or PINNED_REVISIONS.get(name)


def fetch_folder(source: str | Path, patterns: Sequence[str], *, revision: str | None, what: str) -> Path:
    """The local folder of a model: ``source`` itself, or the files of a Hub id that match ``patterns``, in its cache.

    ``revision`` is for Hub ids, None is the main branch; UnreachableWeightsError if there is no such folder and the Hub
    cannot provide it.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    name, _ = resolve_source(source, revision, what)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise UnreachableWeightsError(
            f"{name}: no such folder, and the Hub cannot provide it ({_reason(error)}); check the name and the "
            "connection, or name a local folder"
        ) from error


def fetch_file(address: str) -> Path:
    """One file of the Hub: ``hf://OWNER/NAME/PATH`` or ``hf://OWNER/NAME@REVISION/PATH``; RequestError if it fails."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    owner, _, rest = address.removeprefix(HUB_SCHEME).partition("/")
    name, _, file = rest.partition("/")
    name, _, revision = name.partition("@")
    if not (owner and name and file):
        raise RequestError(
            f"{address}: a file on the Hub is named {HUB_SCHEME}OWNER/NAME/PATH or ...NAME@REVISION/PATH"
        )
    try:
        return Path(hf_hub_download(f"{owner}/{name}", file, revision=revision or None))
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UnreachableWeightsError(
            f"cannot get {address} ({_reason(error)}); check the address, or name a local file"
        ) from error


def _reason(error: Exception) -> str:
    """First line of an error's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
