"""Variables that launchers of several processes set, and what is left of them in an environment without a launcher.

Lightning and this package read the number of a process from LOCAL_RANK, RANK or SLURM_PROCID. Left over from another
program (a debugger, a container's image, a shell on a cluster), they make the only process a helper of a first one that
does not exist: its messages are hidden and it waits. This module imports nothing of Lightning, which reads them when it
is imported.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, MutableMapping

RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
"""Set by torchrun and Lightning together with MEETING; a number each."""
MEETING = ("MASTER_ADDR", "MASTER_PORT")
"""Where the processes of a launch meet."""
SLURM = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_RESTART_COUNT")
SLURM_JOB = "SLURM_JOB_ID"


def left_over(environment: Mapping[str, str]) -> list[str]:
    """Names of the variables that no launcher has set: without a meeting point or a job, or not a number."""
    meets = all(environment.get(name) for name in MEETING)
    in_job = bool(environment.get(SLURM_JOB))
    names = [name for name in RANKS if name in environment and not meets and not in_job]
    names += [name for name in SLURM if name in environment and not in_job]
    odd = [name for name in (*RANKS, *SLURM) if name in environment and not environment[name].strip().isdecimal()]
    return list(dict.fromkeys(names + odd))


def drop_left_over(environment: MutableMapping[str, str]) -> None:
    """Remove them, with a line on stderr where one would have mattered."""
    names = left_over(environment)
    harmless = {name: ("1" if name.endswith("SIZE") else "0") for name in names}
    misleading = [f"{name}={environment[name]}" for name in names if environment[name] != harmless[name]]
    for name in names:
        del environment[name]
    if misleading:
        print(f"ignoring {', '.join(misleading)}: no launcher started this process", file=sys.stderr)
