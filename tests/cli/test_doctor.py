"""`doctor`: what it finds on a healthy machine, and that it names each lack with its fix."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hafm_lightning.cli import doctor


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages that this process and its children find."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder


def test_imports_are_tried_in_another_process(site: Path) -> None:
    (site / "sound_fine_pkg.py").write_text("X = 1\n")
    (site / "sound_broken_pkg.py").write_text("raise OSError('libcudart.so.13: cannot open shared object file')\n")
    (site / "sound_dying_pkg.py").write_text("import os; os._exit(7)\n")
    outcomes = doctor.try_imports(["sound_fine_pkg", "sound_broken_pkg", "sound_dying_pkg", "sound_absent_pkg"])
    assert outcomes == {
        "sound_fine_pkg": "",
        "sound_broken_pkg": "OSError: libcudart.so.13: cannot open shared object file",
        "sound_dying_pkg": "the import ended with exit code 7",
        "sound_absent_pkg": "not installed",
    }


def test_a_busy_machine_breaks_no_package(monkeypatch: pytest.MonkeyPatch, site: Path) -> None:
    (site / "sound_slow_pkg.py").write_text("import time; time.sleep(60)\n")
    monkeypatch.setattr(doctor, "IMPORT_LIMIT_S", 0.5)
    (problem,) = doctor.try_imports(["sound_slow_pkg"]).values()
    finding = package("torch").finding(problem)
    assert finding.state == "note"
    assert "not finished in time" in finding.detail
    assert "install" not in finding.fix


@pytest.mark.parametrize("netrc", [None, "", "/nowhere/netrc"])
def test_a_user_without_a_home_is_examined(netrc: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    if netrc is None:
        monkeypatch.delenv("NETRC", raising=False)
    else:
        monkeypatch.setenv("NETRC", netrc)
    assert doctor.wandb_finding().state == "note"


def package(name: str) -> doctor.Package:
    return next(package for package in doctor.PACKAGES if package.name == name)


def test_a_torchaudio_that_does_not_fit_pytorch_is_broken_and_its_absence_is_not() -> None:
    broken = package("torchaudio").finding("OSError: libcudart.so.13")
    assert broken.state == "broken"
    assert broken.fix == "pip uninstall -y torchaudio"
    assert "libcudart" in broken.detail
    assert package("torchaudio").finding("not installed").state == "ok"


def test_a_missing_required_package_is_broken_and_an_extra_is_a_note() -> None:
    assert package("faiss-cpu").finding("not installed").state == "broken"
    extra = package("gradio").finding("not installed")
    assert extra.state == "note"
    assert ".[app]" in extra.fix


@pytest.mark.parametrize(("problem", "code"), [("", 0), ("not installed", 1)])
def test_exit_code_and_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], problem: str, code: int
) -> None:
    monkeypatch.setattr(doctor, "try_imports", lambda modules: {m: problem if m == "faiss" else "" for m in modules})
    assert doctor.main(["--json"]) == code
    findings = json.loads(capsys.readouterr().out)["findings"]
    faiss = next(finding for finding in findings if finding["what"] == "faiss-cpu")
    assert faiss["state"] == ("broken" if problem else "ok")
    for finding in findings:
        assert finding["detail"]
        assert finding["state"] != "broken" or finding["fix"]
        assert finding["state"] in ("ok", "note", "broken")


def test_the_table_shows_each_fix_below_its_finding() -> None:
    findings = [doctor.Finding("one", "ok", "here"), doctor.Finding("two", "broken", "gone", "fetch two")]
    lines = list(doctor.table(findings))
    assert lines[2].strip() == "-> fetch two"
    assert lines[-1].startswith("1 broken")


def test_ffmpeg_and_weights_are_looked_up_where_they_would_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = "facebook/encodec_24khz"
    assert doctor.weights_finding(repository, "codec").state == "note"
    snapshot = tmp_path / "models--facebook--encodec_24khz" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(b"0")
    assert doctor.weights_finding(repository, "codec").state == "ok"

    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.ffmpeg_finding().state == "note"
    program = tmp_path / "ffmpeg"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert doctor.ffmpeg_finding().state == "ok"


def test_a_wandb_login_is_found_in_the_environment_or_in_netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(netrc))
    assert doctor.wandb_finding().state == "note"
    netrc.write_text("machine api.wandb.ai login user password secret\n")
    assert doctor.wandb_finding().state == "ok"
    netrc.unlink()
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert doctor.wandb_finding().state == "ok"
