"""Released models by name: where they are looked for, and how they are fetched and checked."""

import hashlib
import http.server
import logging
import socket
import threading

import numpy as np
import pytest

from jaxlab.chinese_clip import downloads
from jaxlab.chinese_clip.downloads import Released, download, find_checkpoint, find_released
from jaxlab.chinese_clip.model import MODELS, abstract_variables

DATA = np.random.default_rng(0).bytes(100_000)


@pytest.fixture(autouse=True)
def empty_machine(monkeypatch, tmp_path):
    """No caches, no settings, no network."""
    for name in ("HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("JAXLAB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("JAXLAB_OFFLINE", "1")


class Handler(http.server.BaseHTTPRequestHandler):
    """Sends `server.data`; `server.cut` breaks off after that many bytes, once."""

    def do_GET(self):
        server = self.server
        server.requests.append((self.path, self.headers.get("Range")))
        if server.redirect and not self.path.startswith("/blob"):
            self.send_response(302)
            self.send_header("Location", "/blob")
            self.send_header("X-Linked-ETag", f'"{server.checksum}"')
            self.end_headers()
            return
        if self.path.startswith("/absent"):
            self.send_error(404)
            return
        data, start = server.data, 0
        asked = self.headers.get("Range")
        if asked and server.ranges:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(data):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        end = len(data) if server.cut is None else server.cut
        server.cut = None
        self.wfile.write(data[start:end])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made:
        made.data, made.cut, made.ranges, made.redirect, made.requests = DATA, None, True, False, []
        made.checksum = hashlib.sha256(DATA).hexdigest()
        made.url = f"http://127.0.0.1:{made.server_address[1]}"
        thread = threading.Thread(target=made.serve_forever, daemon=True)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def test_the_names_of_the_original_and_of_the_hub_mean_the_same():
    for released in downloads.RELEASED:
        for name in (released.name, released.repository, f"OFA-Sys/{released.repository}"):
            assert find_released(name) is released
    assert find_released("vit-b-16").file == "clip_cn_vit-b-16.pt"
    assert find_released("ViT-L/14@336").file == "clip_cn_vit-l-14-336.pt"
    assert find_released("ViT-B-32") is None  # a config only
    assert downloads.available_models() == ("RN50", *list(MODELS)[2:])


@pytest.mark.parametrize("name", ["RN50", "ViT-B-16"])
def test_the_sizes_are_those_of_the_parameters(name):
    import jax

    params = abstract_variables(MODELS[name])["params"]
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert find_released(name).num_bytes == 4 * count


def test_the_sizes_are_those_that_were_published():
    published = {"RN50": 294, "ViT-B-16": 718, "ViT-L-14": 1.51 * 1024, "ViT-H-14": 3.57 * 1024}
    for name, mib in published.items():
        assert find_released(name).num_bytes / 2**20 == pytest.approx(mib, rel=0.005)


def test_a_path_that_exists_is_taken_as_it_is(tmp_path):
    path = tmp_path / "ViT-B-16"
    path.write_bytes(b"x")
    assert find_checkpoint(path) == path


def sparse(path, num_bytes):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(num_bytes)
    return path


def test_checkpoints_are_found_wherever_they_lie_nearest_first(monkeypatch, tmp_path):
    released = find_released("RN50")
    hub = "models--OFA-Sys--chinese-clip-rn50/snapshots/abc"
    home = tmp_path / "home" / ".cache"
    places = [
        home / "huggingface" / "hub" / hub / released.file,
        home / "clip" / released.file,
        tmp_path / "cache" / "chinese_clip" / released.file,
        tmp_path / "mine" / released.file,
    ]
    for place in places:
        sparse(place, released.num_bytes)
        found = find_checkpoint("RN50", download_root=tmp_path / "mine")
        assert found == place
    for variable, folder in (("HF_HUB_CACHE", ""), ("HF_HOME", "hub")):
        for place in places:
            place.unlink(missing_ok=True)
        place = sparse(tmp_path / variable / folder / hub / released.file, released.num_bytes)
        with monkeypatch.context() as patched:
            patched.setenv(variable, str(tmp_path / variable))
            assert find_checkpoint("chinese-clip-rn50") == place


def test_a_folder_of_the_hub_is_found_where_there_is_no_file_of_the_original(tmp_path):
    snapshot = (
        tmp_path / "home/.cache/huggingface/hub"
        / "models--OFA-Sys--chinese-clip-vit-base-patch16/snapshots/abc"
    )  # fmt: skip
    sparse(snapshot / "pytorch_model.bin", 10)
    with pytest.raises(FileNotFoundError):
        find_checkpoint("ViT-B-16")
    (snapshot / "config.json").write_text("{}")
    assert find_checkpoint("ViT-B-16") == snapshot


def test_a_truncated_copy_is_passed_over_with_a_warning(tmp_path, caplog):
    released = find_released("RN50")
    sparse(tmp_path / "cache" / "chinese_clip" / released.file, released.num_bytes // 2)
    with caplog.at_level(logging.WARNING), pytest.raises(FileNotFoundError):
        find_checkpoint("RN50")
    assert "it is truncated, or another file; passed over" in caplog.text


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("RN50", "JAXLAB_OFFLINE is set; run once with JAXLAB_OFFLINE=0, or put https://"),
        ("ViT-B-17", "neither a path that exists nor a released model; the nearest name is ViT-B"),
        ("folder/file.pt", "give a file or folder of weights, or one of RN50, ViT-B-16"),
    ],
)
def test_what_lies_nowhere_says_what_to_do(name, message):
    with pytest.raises(FileNotFoundError, match=message):
        find_checkpoint(name)


def test_unknown_sources_are_refused():
    with pytest.raises(ValueError, match="source='x' is unknown; use one of huggingface, models"):
        find_checkpoint("RN50", source="x")


def test_a_name_is_fetched_from_the_address_of_the_original_and_kept(server, monkeypatch, tmp_path):
    small = Released("RN50", "chinese-clip-rn50", "clip_cn_rn50.pt", len(DATA) - 100)
    monkeypatch.setattr(downloads, "RELEASED", (small,))
    monkeypatch.setenv("HF_ENDPOINT", server.url + "/")
    with pytest.raises(FileNotFoundError):
        find_checkpoint("RN50")
    monkeypatch.setenv("JAXLAB_OFFLINE", "0")
    found = find_checkpoint("RN50")
    assert found == tmp_path / "cache" / "chinese_clip" / "clip_cn_rn50.pt"
    assert found.read_bytes() == DATA
    address = "/OFA-Sys/chinese-clip-rn50/resolve/main/clip_cn_rn50.pt"
    assert server.requests == [(address, None)]
    assert find_checkpoint("RN50") == found and len(server.requests) == 1
    assert find_checkpoint("RN50", download_root=tmp_path / "mine") == found


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_download_is_continued(server, tmp_path, ranges):
    target, server.cut, server.ranges = tmp_path / "new" / "file", 60_000, ranges
    with pytest.raises(ConnectionError, match="ended after|broke off after"):
        download(server.url, target)
    assert not target.exists()
    partial = target.with_name("file.partial")
    assert partial.read_bytes() == DATA[: partial.stat().st_size] and partial.stat().st_size > 0
    assert download(server.url, target, num_bytes=len(DATA)).read_bytes() == DATA
    assert server.requests[1][1] == "bytes=60000-"
    assert [p.name for p in target.parent.iterdir() if not p.name.startswith(".")] == ["file"]


def test_a_download_that_was_complete_but_not_renamed_is_taken(server, tmp_path):
    (tmp_path / "file.partial").write_bytes(DATA)
    server.redirect = True
    assert download(server.url, tmp_path / "file").read_bytes() == DATA


def test_wrong_sizes_and_checksums_are_refused_and_removed(server, tmp_path):
    target = tmp_path / "file"
    with pytest.raises(ValueError, match="has 100,000 bytes, and the checkpoint has about 5,000"):
        download(server.url, target, num_bytes=5000, tolerance=0.01)
    with pytest.raises(ValueError, match=f"{'0' * 64} was promised"):
        download(server.url, target, sha256="0" * 64)
    server.redirect, server.checksum = True, "1" * 64  # what the hub says of a file
    with pytest.raises(ValueError, match=f"{'1' * 64} was promised"):
        download(server.url, target)
    assert [p for p in tmp_path.iterdir() if p.name.startswith("file")] == []


def test_servers_that_refuse_or_are_not_there_are_told_in_a_sentence(server, tmp_path):
    with pytest.raises(ConnectionError, match="the server answers 404 Not Found; check the addr"):
        download(f"{server.url}/absent", tmp_path / "file")
    server.server_close()
    with pytest.raises(
        ConnectionError, match=r"cannot be reached \(\[Errno \d+\] [^<]*\); check the network"
    ):
        download(server.url, tmp_path / "file")


def test_a_name_without_a_network_says_what_is_fetched_and_what_else_to_do(
    server, monkeypatch, tmp_path, caplog
):
    monkeypatch.setenv("JAXLAB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    server.server_close()
    with pytest.raises(ConnectionError) as caught:
        find_checkpoint("RN50")
    folder, message = tmp_path / "cache" / "chinese_clip", str(caught.value)
    assert message.startswith(f"RN50: {server.url}/OFA-Sys/chinese-clip-rn50/")
    assert f"give its path in place of the name, or put it there as {folder}/clip_cn" in message
    assert caught.value.__suppress_context__ and caught.value.__cause__ is None
    (record,) = caplog.records  # a warning: it shows where no log was set up
    assert record.levelno == logging.WARNING
    assert "RN50 is not on this machine: fetching 0.31 GB from http" in record.getMessage()
    assert record.getMessage().endswith(f" into {folder}")


def test_a_name_that_is_looked_up_for_ever_ends_in_time(monkeypatch, tmp_path):
    released = threading.Event()
    monkeypatch.setattr(downloads, "TIMEOUT_S", 0.1)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **options: released.wait())
    try:
        with pytest.raises(ConnectionError, match=r"cannot be reached \(no answer in 0 s\)"):
            download("http://models.invalid/file", tmp_path / "file")
    finally:
        released.set()
