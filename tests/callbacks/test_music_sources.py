"""What a music evaluation takes from elsewhere: checkpoints beside a run, embeddings, the paper's values."""

import pytest

from hafm_lightning.callbacks import music_sources
from hafm_lightning.callbacks.music_sources import available, checkpoints_beside, paper_fad
from hafm_lightning.errors import RequestError
from hafm_lightning.evaluation.embeddings import EmbeddingSource, load_embedding

PAPER = {"semantic": {"kind": "hubert"}, "acoustic": {"kind": "encodec"}}


def put(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def test_the_newest_run_beside_a_semantic_one_gives_its_best_checkpoint(tmp_path):
    run = tmp_path / "aligned-semantic" / "run-003"
    assert checkpoints_beside(run) == {}
    fine, coarse = tmp_path / "aligned-fine", tmp_path / "aligned-coarse"
    put(fine / "run-000" / "checkpoints" / "best.ckpt", tmp_path / "coarse" / "run-000" / "checkpoints" / "best.ckpt")
    assert checkpoints_beside(run) == {}, "a fine stage alone gives no sound, and another model's is not taken"
    put(*(coarse / f"run-00{n}" / "checkpoints" / "best.ckpt" for n in (1, 2)))
    put(
        coarse / "run-010" / "checkpoints" / "step-00000900.ckpt",
        coarse / "run-010" / "checkpoints" / "step-00001000.ckpt",
    )
    (coarse / "run-011").mkdir()  # has not saved anything yet
    assert checkpoints_beside(run) == {
        "coarse": str(coarse / "run-010" / "checkpoints" / "step-00001000.ckpt"),
        "fine": str(fine / "run-000" / "checkpoints" / "best.ckpt"),
    }
    assert checkpoints_beside(tmp_path / "mine" / "run-000") == {}


def without_network(source):
    if source.name == "vggish":
        raise RequestError("vggish: the weights cannot be downloaded (no network)\nname a file")
    return load_embedding(source)


def test_where_published_weights_cannot_be_had_logmel_takes_their_place_with_one_line(monkeypatch, caplog):
    monkeypatch.setattr(music_sources, "load_embedding", without_network)
    with caplog.at_level("INFO"):
        found = available([EmbeddingSource("vggish"), EmbeddingSource("logmel")])
    assert found == [EmbeddingSource("logmel")]
    (line,) = [record.getMessage() for record in caplog.records if "MusicEvaluation" in record.getMessage()]
    assert "logmel in the place of vggish" in line
    assert "no network" in line


def test_a_file_that_the_configuration_names_has_no_substitute(monkeypatch, tmp_path):
    with pytest.raises(RequestError):
        available([EmbeddingSource("vggish", weights=str(tmp_path / "absent.safetensors"))])


@pytest.mark.parametrize(
    ("embedding", "codebooks", "clips", "duration_s", "identities", "value"),
    [
        ("vggish", 4, 33, 3.0, PAPER, 2.10),
        ("vggish", 8, 33, 3.0, PAPER, 1.71),
        ("logmel", 8, 33, 3.0, PAPER, None),
        ("vggish", 8, 50, 3.0, PAPER, None),
        ("vggish", 8, 33, 10.0, PAPER, None),
        ("vggish", 0, 33, 3.0, PAPER, None),
        ("vggish", 8, 33, 3.0, {"semantic": {"kind": "offline-semantic"}, "acoustic": {"kind": "encodec"}}, None),
    ],
)
def test_the_papers_value_only_in_its_protocol(embedding, codebooks, clips, duration_s, identities, value):
    assert paper_fad(embedding, codebooks, clips, duration_s, identities) == value
