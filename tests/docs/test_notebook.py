"""The notebook runs from its first cell to its last, in a kernel, on a few songs and steps."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import soundfile
from shown import DOCS, ROOT

NOTEBOOK = DOCS / "notebooks" / "vocal_to_mix.ipynb"


def test_the_notebook_is_stored_without_output() -> None:
    nbformat = pytest.importorskip("nbformat", reason="needs the extra docs")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    for cell in code:
        compile(cell.source, str(NOTEBOOK), "exec")


@pytest.mark.slow
def test_the_notebook_leads_from_a_vocal_to_a_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat", reason="needs the extra docs")
    nbclient = pytest.importorskip("nbclient", reason="needs the extra docs")
    pytest.importorskip("ipykernel", reason="needs the extra docs")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    monkeypatch.setenv("HAFM_QUIET", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (parameters,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    parameters.source = re.sub(r"SONGS = \d+", "SONGS = 6", re.sub(r"STEPS = \d+", "STEPS = 10", parameters.source))
    assert "SONGS = 6" in parameters.source
    assert "STEPS = 10" in parameters.source
    nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(output.get("text", "") for output in outputs)
    scores = {name: float(score) for name, score in re.findall(r"^(.*\S) +(\d\.\d{3})$", printed, re.MULTILINE)}
    assert scores["the true band"] > scores["another song's band"]
    assert 0 <= scores["this take"] <= 1
    assert sum("<audio" in output.get("data", {}).get("text/html", "") for output in outputs) == 4
    (song, _) = sorted((tmp_path / "songs" / "test").iterdir())
    lengths = [soundfile.info(file).duration for file in (tmp_path / "take" / "mix.wav", song / "vocals.wav")]
    assert lengths[0] == pytest.approx(lengths[1], abs=0.001)
