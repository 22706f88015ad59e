"""Takes that are written to one folder at the same time do not mix."""

import hashlib
import json
import threading

import numpy as np

from hafm_lightning.accompanist.take import INSTRUMENTAL_FILE, MIX_FILE, RECORD_FILE, Take
from hafm_lightning.audio import Audio, write_audio


def take_of(number: int) -> Take:
    sound = Audio(np.full((1, 2400), number / 100, np.float32), 24000)
    return Take(sound, sound, sound, {}, 1.0, {"number": number})


def test_takes_that_are_saved_at_once_leave_all_files_of_one(tmp_path, monkeypatch):
    barrier = threading.Barrier(6)

    def save(number: int) -> None:
        barrier.wait(30)
        take_of(number).save(tmp_path / "out")

    threads = [threading.Thread(target=save, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    record = json.loads((tmp_path / "out" / RECORD_FILE).read_text())
    write_audio(tmp_path / "expected.wav", take_of(record["number"]).mix)
    expected = hashlib.sha256((tmp_path / "expected.wav").read_bytes()).hexdigest()
    for name in (INSTRUMENTAL_FILE, MIX_FILE):
        content = (tmp_path / "out" / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == expected == record["outputs"][name]["sha256"]
    assert len(list((tmp_path / "out").iterdir())) == 3
