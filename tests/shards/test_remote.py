"""Remote shards: every byte checked, fetched once, and again when damaged."""

import functools
import http.server
import pickle
import threading
from pathlib import Path

import fsspec
import pytest
from tiny_shards import write_tiny_shards

from hafm_lightning.errors import RequestError
from hafm_lightning.shards import ShardReader, open_shards, remote


@pytest.fixture
def memory(tmp_path):
    """A root in fsspec's memory; yields its local twin and its address."""
    local = write_tiny_shards(tmp_path / "local")
    filesystem = fsspec.filesystem("memory")
    filesystem.put(str(local), "/bucket/root", recursive=True)
    yield local, "memory://bucket/root"
    filesystem.rm("/bucket", recursive=True)


@pytest.fixture
def web(tmp_path):
    """The same through HTTP; yields local twin, address, and the list of requests that arrived."""
    local = write_tiny_shards(tmp_path / "local")
    requests: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            super().do_GET()

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(local)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield local, f"http://127.0.0.1:{server.server_port}", requests
    server.shutdown()
    server.server_close()
    thread.join()


def assert_same_clips(reader: ShardReader, local: Path, split: str) -> None:
    expected = open_shards(local, split)
    assert reader.clip_ids == expected.clip_ids
    for index in range(len(expected)):
        assert {k: v.tolist() for k, v in reader[index].items()} == {k: v.tolist() for k, v in expected[index].items()}


def test_clips_are_those_of_the_local_shards(memory, tmp_path):
    local, address = memory
    reader = open_shards(address, "train", tmp_path / "cache")
    assert_same_clips(reader, local, "train")
    assert reader.verify() == []
    assert_same_clips(pickle.loads(pickle.dumps(reader)), local, "train")


def test_shards_are_fetched_when_needed_and_once(web, tmp_path):
    local, address, requests = web
    reader = open_shards(address, "train", tmp_path / "cache")
    assert requests == ["/train/manifest.json"]
    reader[0]
    assert requests[1:] == ["/train/shard-00000.safetensors"]
    assert_same_clips(reader, local, "train")
    assert_same_clips(open_shards(address, "train", tmp_path / "cache"), local, "train")
    assert sorted(requests) == sorted(
        ["/train/manifest.json"] * 2 + ["/train/shard-00000.safetensors", "/train/shard-00001.safetensors"]
    )


def test_a_damaged_cache_is_mended(web, tmp_path):
    local, address, requests = web
    open_shards(address, "test", tmp_path / "cache")[0]
    (cached,) = (tmp_path / "cache").rglob("*.safetensors")
    cached.write_bytes(cached.read_bytes()[:-1])
    assert_same_clips(open_shards(address, "test", tmp_path / "cache"), local, "test")
    assert requests.count("/test/shard-00000.safetensors") == 2


def test_wrong_bytes_never_enter_the_cache(memory, tmp_path):
    _, address = memory
    with fsspec.open(f"{address}/train/shard-00000.safetensors", "wb") as file:
        file.write(b"another shard")
    reader = open_shards(address, "train", tmp_path / "cache")
    with pytest.raises(RequestError, match="the 13 bytes received do not have the manifest's sha256"):
        reader[0]
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_what_is_not_there_is_said(memory, tmp_path):
    _, address = memory
    with pytest.raises(RequestError, match=r"bucket/root/dev/manifest\.json does not exist"):
        open_shards(address, "dev", tmp_path)
    with pytest.raises(RequestError, match="cannot be opened"):
        open_shards("nonsense://bucket/root", "train", tmp_path)


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    def url_to_fs(*arguments, **options):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", url_to_fs)
    with pytest.raises(RequestError, match="pip install s3fs"):
        open_shards("s3://bucket/root", "train", tmp_path)


def test_a_broken_connection_is_tried_again(memory, tmp_path, monkeypatch):
    local, address = memory
    monkeypatch.setattr(remote, "_FIRST_PAUSE_S", 0.0)
    original = fsspec.core.url_to_fs
    failures = [OSError("reset"), OSError("reset"), OSError("reset")]

    def url_to_fs(*arguments, **options):
        if failures:
            raise failures.pop()
        return original(*arguments, **options)

    monkeypatch.setattr("fsspec.core.url_to_fs", url_to_fs)
    assert_same_clips(open_shards(address, "train", tmp_path / "cache"), local, "train")
    failures.extend(OSError("reset") for _ in range(remote.ATTEMPTS))
    with pytest.raises(OSError, match="the connection failed 4 times"):
        open_shards(address, "train", tmp_path / "cache")


def test_the_cache_folder_is_chosen_in_order(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("HAFM_CACHE", raising=False)
    assert remote.cache_folder(None) == tmp_path / ".cache" / "hafm_lightning" / "shards"
    monkeypatch.setenv("HAFM_CACHE", str(tmp_path / "big"))
    assert remote.cache_folder(None) == tmp_path / "big" / "shards"
    assert remote.cache_folder("~/other") == tmp_path / "other" / "shards"


def test_a_data_module_reads_remote_shards(memory, tmp_path):
    from hafm_lightning.data_modules import TokenShards

    local, address = memory
    batches = []
    for root in (str(local), address):
        data = TokenShards(root, batch_size=2, cache_dir=str(tmp_path / "cache"))
        data.setup("fit")
        batches.append(list(data.train_dataloader()))
    assert len(batches[0]) == len(batches[1]) > 0
    for one, other in zip(*batches, strict=True):
        assert one.clip_ids == other.clip_ids
        for name, ids in one.streams.items():
            assert ids.equal(other[name])
