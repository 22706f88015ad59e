"""``push``: a model folder to the Hugging Face Hub, where ``--model owner/name`` and ``from_pretrained`` find it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hafm_lightning.accompanist.model_folder import HUB_PATTERNS, read_config, read_model_folder
from hafm_lightning.cli.parser import Parser
from hafm_lightning.errors import RequestError


def main(argv: Sequence[str]) -> int:
    """Run the command; 0 when the folder is on the Hub."""
    parser = Parser("push", "Upload a model folder to the Hugging Face Hub.")
    parser.add_argument("--model", required=True, metavar="DIR", help="a model folder made by `export`")
    parser.add_argument("--to", required=True, metavar="OWNER/NAME", help="repository on the Hub; created if missing")
    parser.add_argument("--private", action="store_true", help="create the repository as a private one")
    parser.add_argument("--message", default="Upload a hafm_lightning model", help="commit message")
    arguments = parser.parse_args(list(argv))
    folder = Path(arguments.model)
    if not folder.is_dir():
        raise RequestError(f"--model {folder}: no such folder; make one with `export`")
    if arguments.to.count("/") != 1 or not all(arguments.to.split("/")):
        raise RequestError(f"--to {arguments.to}: a repository is named OWNER/NAME")
    # a folder that does not load is refused before anything is uploaded
    read_model_folder(folder, stages=3 if "fine" in read_config(folder)["stages"] else 2)
    print(upload(folder, arguments.to, private=arguments.private, message=arguments.message))
    return 0


def upload(folder: Path, repository: str, *, private: bool, message: str) -> str:
    """Upload the data files of a model folder; the address of the commit. RequestError if the Hub refuses it."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message=message, allow_patterns=list(HUB_PATTERNS)
        )
    except (LocalTokenNotFoundError, HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RequestError(
            f"{repository}: the Hub refused the upload or cannot be reached ({reason})\n"
            "log in with `hf auth login`, and check the name and your rights"
        ) from error
    return str(commit.commit_url)
