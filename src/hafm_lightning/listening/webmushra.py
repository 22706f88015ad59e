"""A study for webMUSHRA (https://github.com/audiolabs/webMUSHRA): its sounds and one configuration, blind as here.

Choices:

* A trial is a page ``paired_comparison`` for each criterion. webMUSHRA means it as "which one is the reference", so one
  side takes the part of the reference: the button that plays it openly and the question are hidden by a style, and the
  vocal and the question of the study stand above.
* webMUSHRA shuffles the trials and the two sides anew for each listener. Its results say ``correct`` where side A of
  the study was chosen, ``incorrect`` for side B, ``undecided`` for a tie (:data:`CHOICES`).
* A page has the id of its trial and its criterion. Names of files, sounds and order are those of the study, which tell
  nothing; the key stays where it is.
"""

from __future__ import annotations

import html
import json
import shutil
from pathlib import Path
from typing import Any

from hafm_lightning.errors import RequestError
from hafm_lightning.files import write_atomic
from hafm_lightning.listening.study import Study, Trial
from hafm_lightning.listening.vote import Choice

CHOICES: dict[str, Choice] = {"correct": "A", "incorrect": "B", "undecided": "tie"}
"""Column ``choice_answer`` of webMUSHRA's ``paired_comparison.csv`` -> choice in the sides of the study."""
LISTENER = "listener"
"""Name of the field, and so of the column, in which listeners name themselves."""
CONFIGS, RESOURCES = "configs", "configs/resources"
BUFFER_SAMPLES = 2048

_STYLE = "<style>#table_ab td:first-child:not([colspan]), #table_ab tr:nth-child(3) {display: none}</style>"
"""Hides the column of the open reference and webMUSHRA's own question."""
_CONSENT = (
    "You will hear a singer, and then the singer with two accompaniments. Your answers are stored together with the "
    "name that you give at the end; choose any, it need not be yours. You may stop at any time."
)
_VOLUME = "Set the volume so that the singer is comfortable to hear, and leave it there."


def export_webmushra(study: Study, folder: str | Path) -> Path:
    """Write the sounds and the configuration below a folder that has, or becomes a part of, webMUSHRA's layout.

    Returns:
        The configuration; webMUSHRA shows it under ``?config=<its name>``.

    Raises:
        RequestError: The folder cannot be written.
    """
    folder = Path(folder)
    config = folder / CONFIGS / f"{study.study_id}.yaml"
    try:
        for trial in study.trials:
            for name in trial.files:
                target = folder / _resource(study, name)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(study.folder / name, target)  # with its time, which is the same for all
        write_atomic(config, as_yaml(webmushra_config(study)).encode())
    except OSError as error:
        raise RequestError(f"{folder}: cannot be written ({error.strerror}); choose another folder") from error
    return config


def webmushra_config(study: Study) -> dict[str, Any]:
    """The content of the configuration."""
    vocal = _resource(study, study.trials[0].vocal)
    questionnaire = [{"type": "text", "label": "A name that tells your answers from others'", "name": LISTENER}]
    return {
        "testname": study.title,
        "testId": study.study_id,
        "bufferSize": BUFFER_SAMPLES,
        "stopOnErrors": True,
        "showButtonPreviousPage": False,
        "remoteService": "service/write.php",
        "pages": [
            {"type": "consent", "id": "consent", "name": "Consent", "mustConsent": True, "content": _CONSENT},
            {
                "type": "volume",
                "id": "volume",
                "name": "Volume",
                "content": _VOLUME,
                "stimulus": vocal,
                "defaultVolume": 0.5,
            },
            ["random", *([_page(study, trial, criterion) for criterion in study.criteria] for trial in study.trials)],
            {
                "type": "finish",
                "name": "Thank you",
                "content": "Please send your answers.",
                "popupContent": "Your answers were sent. Thank you!",
                "showResults": False,
                "writeResults": True,
                "questionnaire": questionnaire,
            },
        ],
    }


def as_yaml(content: Any, indent: int = 0) -> str:
    """Mappings and lists as YAML that webMUSHRA reads: its parser takes ``- - x`` and folded lines for plain text.

    So a list in a list begins on a line of its own, and every other value is JSON on one line.
    """
    entries = (
        [(f"{name}:", v) for name, v in content.items()] if isinstance(content, dict) else [("-", v) for v in content]
    )
    lines = []
    for start, value in entries:
        if isinstance(value, dict | list) and value:
            lines.append(f"{' ' * indent}{start}\n{as_yaml(value, indent + 4)}")
        else:
            lines.append(f"{' ' * indent}{start} {json.dumps(value, ensure_ascii=False)}\n")
    return "".join(lines)


def page_id(trial: str, criterion: str) -> str:
    """Id of a page, which is the column ``trial_id`` of the results."""
    return f"{trial}-{criterion}"


def _page(study: Study, trial: Trial, criterion: str) -> dict[str, Any]:
    vocal = html.escape(_resource(study, trial.vocal))
    question = html.escape(study.question)
    return {
        "type": "paired_comparison",
        "id": page_id(trial.id, criterion),
        "name": criterion.capitalize(),
        "unforced": "No preference",
        "content": f'{_STYLE}<p>The vocal:</p><audio controls src="{vocal}"></audio>'
        f"<p>Then play A and B. {question} ({html.escape(criterion)})</p>",
        "showWaveform": False,
        "enableLooping": False,
        "reference": _resource(study, trial.a),
        "stimuli": {"B": _resource(study, trial.b)},
    }


def _resource(study: Study, name: str) -> str:
    """Path of a sound below webMUSHRA's folder."""
    return f"{RESOURCES}/{study.study_id}/{name}"
