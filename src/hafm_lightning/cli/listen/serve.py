"""``listen serve``: a study as a web page, until Ctrl-C."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hafm_lightning.cli.parser import Parser, whole
from hafm_lightning.errors import RequestError
from hafm_lightning.listening.study import Key, Study

VOTES_FILE = "votes.sqlite"
INSTALL = "the page needs starlette and uvicorn: pip install -c constraints.txt -e '.[listen]'"
DESCRIPTION = (
    "Serve a study as a web page and collect votes. Listeners agree, set their volume, and answer trial after trial in "
    "an order of their own; they can stop and come back, on another day too. Votes are on the disk before a listener "
    "sees the next trial. Another address, printed at the start, shows how many votes there are."
)


def main(argv: Sequence[str]) -> int:
    """Serve until a signal.

    Raises:
        RequestError: Study, key, database or options are wrong, or the port cannot be used.
    """
    parser = Parser("listen serve", DESCRIPTION)
    parser.add_argument("study", type=Path, metavar="STUDY", help="folder of the study")
    parser.add_argument(
        "--votes", type=Path, metavar="FILE", help=f"database of the votes (default: STUDY/{VOTES_FILE})"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=whole(0, 65535), default=8000, help="port to listen on (default: 8000)")
    parser.add_argument(
        "--public",
        default="",
        metavar="URL",
        help="https://name under which a proxy on this machine passes requests on",
    )
    parser.add_argument("--consent", type=Path, metavar="FILE", help="text that listeners agree to, instead of ours")
    parser.add_argument(
        "--invitations", type=Path, metavar="FILE", help="codes, one a line: only who has one may take part, each once"
    )
    parser.add_argument("--key", type=Path, metavar="FILE", help="the key: counts failed controls for the admin")
    parser.add_argument(
        "--admin-token-file", type=Path, metavar="FILE", help="token of the admin page (default: a new one, printed)"
    )
    arguments = parser.parse_args(argv)
    try:
        from hafm_lightning.listening.serve.server import bound, opened, run
    except ImportError as error:
        raise RequestError(INSTALL) from error
    from hafm_lightning.listening.serve import settings as files

    chosen: dict[str, Any] = {
        "consent": arguments.consent and files.read_consent(arguments.consent),
        "invitations": arguments.invitations and files.read_invitations(arguments.invitations),
        "admin_token": arguments.admin_token_file and files.read_admin_token(arguments.admin_token_file),
    }
    settings = files.ServeSettings(
        host=arguments.host,
        port=arguments.port,
        public=arguments.public,
        **{name: value for name, value in chosen.items() if value is not None},
    )
    study = Study.load(arguments.study)
    key = None if arguments.key is None else Key.load(arguments.key, study)
    votes = arguments.votes or arguments.study / VOTES_FILE
    with bound(settings) as server_socket, opened(study, votes, settings, key) as app:
        if not settings.is_loopback:
            print(
                f"warning: {settings.host} can be reached from other machines, and without TLS all can be read on the "
                "way\nfor more than a local network, leave --host out and put a proxy with TLS before it: "
                "docs/listening_serving.md",
                file=sys.stderr,
            )
        print(f"{study.title}: {len(study.trials)} trials, votes go to {votes}")
        print(f"listeners: {settings.address}/")
        print(f"admin:     {settings.address}/admin#{settings.admin_token}", flush=True)
        run(app, settings, server_socket)
    return 0
