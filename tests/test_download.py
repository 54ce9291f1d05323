import hashlib
import io
import re
import stat
import threading
import zipfile
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cellseg.core import CellsegError
from cellseg.datasets import download as module
from cellseg.datasets.download import CHUNK, RemoteFile, Source, download, fetch, licence, unpack, verify

CONTENT = bytes(range(256)) * 4000


class Server:
    """Files by path, with switches for what a server may do wrong; `log` holds (path, Range header)."""

    def __init__(self):
        self.files, self.log = {}, []
        self.redirected = {"/a"}
        self.ranges, self.etag, self.cut_after, self.errors, self.redirect = True, '"v1"', [], [], None

    def answer(self, request):
        wanted = request.headers.get("Range")
        self.log.append((request.path, wanted))
        if self.errors:
            return request.send_error(self.errors.pop(0))
        if self.redirect and request.path in self.redirected:
            request.send_response(302)
            request.send_header("Location", self.redirect)
            request.send_header("Content-Length", "0")
            return request.end_headers()
        if request.path not in self.files:
            return request.send_error(404)
        body = self.files[request.path]
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and self.ranges else 0
        if request.headers.get("If-Range", self.etag) != self.etag:
            start, wanted = 0, None
        if start and start >= len(body):
            request.send_response(416)
            request.send_header("Content-Range", f"bytes */{len(body)}")
            request.send_header("Content-Length", "0")
            return request.end_headers()
        partial = bool(wanted) and self.ranges
        request.send_response(206 if partial else 200)
        if partial:
            request.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if self.etag:
            request.send_header("ETag", self.etag)
        request.send_header("Content-Length", str(len(body) - start))
        request.end_headers()
        stop = self.cut_after.pop(0) if self.cut_after else len(body)
        request.wfile.write(body[start : start + stop])
        request.close_connection = True


@contextmanager
def running(server):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server.answer(self)

        def log_message(self, *_):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=lambda: http.serve_forever(poll_interval=0.01), daemon=True)
    thread.start()
    try:
        server.url = f"http://127.0.0.1:{http.server_port}"
        yield server
    finally:
        http.shutdown()
        http.server_close()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(module, "BACKOFF_S", (0.0, 0.0))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with running(Server()) as started:
        yield started


def sha(content):
    return hashlib.sha256(content).hexdigest()


def zipped(entries):
    """A zip of {name: bytes}; a name ending in '@' becomes a symbolic link."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            info = zipfile.ZipInfo(name.rstrip("@"))
            info.compress_type = zipfile.ZIP_DEFLATED
            if name.endswith("@"):
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, content)
    return buffer.getvalue()


@pytest.fixture
def toy(monkeypatch, server):
    """A data set of one plain file without and one zip with a published hash, served at /base."""
    archive = zipped({"images/a.tif": b"A" * 5000, "images/deep/b.tif": b"B"})
    server.files = {"/base/notes/a.json": CONTENT, "/base/images.zip": archive}
    files = (RemoteFile("notes/a.json"), RemoteFile("images.zip", sha(archive)))
    monkeypatch.setitem(module.SOURCES, "toy", Source("Toy", f"{server.url}/base", files, "Public domain", "Nobody"))
    return server


def tree(root):
    return {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}


def test_full_download_unpacks_records_and_is_idempotent(toy, tmp_path):
    assert download("toy", tmp_path, accept_licence=True) == tmp_path
    expected = {"notes/a.json", "notes/a.json.sha256", "images.zip", "images/a.tif", "images/deep/b.tif"}
    assert tree(tmp_path) == expected
    assert (tmp_path / "notes/a.json").read_bytes() == CONTENT
    assert (tmp_path / "images/a.tif").read_bytes() == b"A" * 5000
    record = (tmp_path / "notes/a.json.sha256").read_text()
    assert record == f"# first download: 1024000 bytes\n{sha(CONTENT)}  a.json\n"
    requests, stamp = len(toy.log), (tmp_path / "images/a.tif").stat().st_mtime_ns
    download("toy", tmp_path, accept_licence=True)
    assert len(toy.log) == requests == 2
    assert (tmp_path / "images/a.tif").stat().st_mtime_ns == stamp
    assert tree(tmp_path) == expected


def test_second_run_restores_only_what_is_missing(toy, tmp_path):
    download("toy", tmp_path, accept_licence=True)
    (tmp_path / "images/a.tif").write_bytes(b"half")
    (tmp_path / "notes/a.json").unlink()
    toy.log.clear()
    download("toy", tmp_path, accept_licence=True)
    assert toy.log == [("/base/notes/a.json", None)]
    assert (tmp_path / "images/a.tif").read_bytes() == b"A" * 5000


def test_an_archive_without_a_folder_of_its_own_gets_one(monkeypatch, server, tmp_path):
    """As DSB2018 is published: two archives of samples side by side, which may share names."""
    archives = {name: zipped({"a/images/a.png": name.encode()}) for name in ("stage1_train", "stage1_test")}
    server.files = {f"/{name}.zip": archive for name, archive in archives.items()} | {"/stage1_solution.csv": b"x"}
    download("dsb2018", tmp_path, base_url=server.url, accept_licence=True)
    for name in archives:
        assert (tmp_path / name / "a/images/a.png").read_bytes() == name.encode()
    assert {path for path in tree(tmp_path) if path.endswith(".sha256")} == {
        "stage1_train.zip.sha256", "stage1_test.zip.sha256", "stage1_solution.csv.sha256",
    }  # fmt: skip


def test_nothing_is_asked_before_the_licence_is_accepted(toy, tmp_path):
    with pytest.raises(CellsegError, match=r"(?s)accept the licence.*Public domain"):
        download("toy", tmp_path)
    assert toy.log == []
    assert tree(tmp_path) == set()


def test_a_file_that_changed_since_the_first_download_is_set_aside(toy, tmp_path):
    download("toy", tmp_path, accept_licence=True)
    (tmp_path / "notes/a.json").unlink()
    toy.files["/base/notes/a.json"] = b"other"
    with pytest.raises(CellsegError, match=r"recorded in a\.json\.sha256 is .*moved to a\.json\.bad"):
        download("toy", tmp_path, accept_licence=True)
    assert (tmp_path / "notes/a.json.bad").read_bytes() == b"other"
    assert not (tmp_path / "notes/a.json").exists()


def test_published_hash_that_does_not_match(toy, tmp_path):
    toy.files["/base/images.zip"] = zipped({"images/evil.tif": b"!"})
    with pytest.raises(CellsegError, match=r"SHA-256 is [0-9a-f]{64}, published is"):
        download("toy", tmp_path, accept_licence=True)
    assert (tmp_path / "images.zip.bad").is_file()
    assert not (tmp_path / "images").exists()


def test_interrupted_download_resumes_where_it_stopped(server, tmp_path):
    server.files["/a"] = CONTENT
    path = tmp_path / "a"
    (tmp_path / "a.part").write_bytes(CONTENT[:300_000])
    fetch(f"{server.url}/a", path)
    assert path.read_bytes() == CONTENT
    assert server.log == [("/a", "bytes=300000-")]
    assert tree(tmp_path) == {"a"}


def test_dropped_connections_are_retried_from_the_last_byte(server, tmp_path):
    server.files["/a"] = CONTENT
    server.cut_after = [3 * CHUNK, 2 * CHUNK, CHUNK, CHUNK]  # more drops than pauses: each attempt got further
    fetch(f"{server.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT
    starts = [int(asked[6:-1]) for _, asked in server.log[1:]]
    assert starts == [3 * CHUNK, 5 * CHUNK, 6 * CHUNK, 7 * CHUNK]


def test_partial_file_is_kept_when_the_server_gives_up(server, tmp_path):
    server.files["/a"] = CONTENT
    server.cut_after = [3 * CHUNK, 0, 0, 0]
    with pytest.raises(CellsegError, match="run it again to resume"):
        fetch(f"{server.url}/a", tmp_path / "a")
    assert (tmp_path / "a.part").read_bytes() == CONTENT[: 3 * CHUNK]
    fetch(f"{server.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_file_that_changed_on_the_server_is_not_spliced(server, tmp_path):
    server.files["/a"] = CONTENT
    server.cut_after = [3 * CHUNK, 0, 0, 0]
    with pytest.raises(CellsegError):
        fetch(f"{server.url}/a", tmp_path / "a")
    server.files["/a"], server.etag = CONTENT[::-1], '"v2"'
    fetch(f"{server.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT[::-1]


def test_server_without_ranges_starts_over(server, tmp_path):
    server.files["/a"] = CONTENT
    server.ranges, server.etag = False, None
    (tmp_path / "a.part").write_bytes(b"x" * 300_000)
    fetch(f"{server.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT


@pytest.mark.parametrize(("have", "requests"), [(len(CONTENT), 1), (len(CONTENT) + 9, 2)])
def test_partial_file_that_is_complete_or_too_long(server, tmp_path, have, requests):
    server.files["/a"] = CONTENT
    (tmp_path / "a.part").write_bytes((CONTENT + b"too long!")[:have])
    fetch(f"{server.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert len(server.log) == requests


def test_errors_of_the_server(server, tmp_path):
    with pytest.raises(CellsegError, match="the server says 404"):
        fetch(f"{server.url}/gone", tmp_path / "a")
    assert len(server.log) == 1
    server.files["/a"] = b"fine"
    server.errors = [503, 429]
    fetch(f"{server.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"fine"
    server.errors = [503] * 3
    with pytest.raises(CellsegError, match="failed 3 times in a row"):
        fetch(f"{server.url}/a", tmp_path / "b")


def test_only_tls_or_this_machine(server, tmp_path):
    for url in ("http://example.org/x", "ftp://localhost/x", "file:///etc/passwd", "http://localhost.example.org/x"):
        with pytest.raises(CellsegError, match="wanted an https address"):
            download("livecell", tmp_path, base_url=url, accept_licence=True)
    for name in ("livecell", "neurips", "dsb2018"):
        assert module.SOURCES[name].base_url.startswith("https://")


def test_redirect_away_from_tls_is_refused(server, tmp_path):
    server.redirect = "http://example.org/a"
    with pytest.raises(CellsegError, match=r"http://example\.org/a: wanted an https address"):
        fetch(f"{server.url}/a", tmp_path / "a")
    assert tree(tmp_path) == set()


def test_redirect_on_this_machine_is_followed(server, tmp_path):
    server.files["/b"] = CONTENT
    server.redirect = "/b"
    fetch(f"{server.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_unknown_data_set_is_named(tmp_path):
    with pytest.raises(CellsegError, match="known are livecell, neurips, dsb2018"):
        download("cellpose", tmp_path, accept_licence=True)


def test_licences_name_their_terms():
    assert "CC BY-NC 4.0" in licence("livecell")
    assert "CC BY-NC-ND 4.0" in licence("neurips")
    assert "CC0" in licence("dsb2018")
    assert all(re.fullmatch("[0-9a-f]{64}", f.sha256) for f in module.SOURCES["neurips"].files)


@pytest.mark.parametrize("name", ["../evil.txt", "/evil.txt", "images/../../evil.txt", "..\\evil.txt", "C:/evil.txt"])
def test_zip_that_would_leave_the_folder_is_refused_whole(tmp_path, name):
    archive = tmp_path / "a.zip"
    archive.write_bytes(zipped({"fine.txt": b"1", name: b"2"}))
    with pytest.raises(CellsegError, match="would be written outside"):
        unpack(archive, tmp_path / "root")
    assert tree(tmp_path) == {"a.zip"}


def test_zip_with_a_symbolic_link_is_refused(tmp_path):
    archive = tmp_path / "a.zip"
    archive.write_bytes(zipped({"link@": b"/etc", "link/passwd": b"2"}))
    with pytest.raises(CellsegError, match="symbolic link 'link'"):
        unpack(archive, tmp_path / "root")
    assert tree(tmp_path) == {"a.zip"}


def test_link_already_in_the_folder_is_not_followed_out(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "root/images").symlink_to(tmp_path / "elsewhere")
    archive = tmp_path / "a.zip"
    archive.write_bytes(zipped({"images/a.tif": b"1"}))
    with pytest.raises(CellsegError, match="would be written outside"):
        unpack(archive, tmp_path / "root")
    assert not any((tmp_path / "elsewhere").iterdir())


def test_damaged_zip_is_set_aside_with_its_record(tmp_path):
    content = bytearray(zipped({"a.tif": bytes(range(256)) * 40}))
    content[60] ^= 0xFF
    archive = tmp_path / "a.zip"
    archive.write_bytes(content)
    verify(archive, None)
    with pytest.raises(CellsegError, match="damaged archive"):
        unpack(archive, tmp_path / "root")
    assert tree(tmp_path) == {"a.zip.bad"}


def test_a_zip_whose_directory_points_nowhere_is_set_aside(tmp_path):
    archive = tmp_path / "x.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("a.txt", "content")
    data = archive.read_bytes()
    archive.write_bytes(data[10:])  # offsets now lie before the beginning
    with pytest.raises(CellsegError, match=r"x\.zip: damaged archive"):
        unpack(archive, tmp_path / "out")
    assert not archive.exists() and (tmp_path / "x.zip.bad").exists()


def test_too_small_a_disk_is_said_before_anything_is_written(tmp_path, monkeypatch):
    archive = tmp_path / "a.zip"
    archive.write_bytes(zipped({"a.tif": b"1" * 1000}))
    usage = module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage._replace(free=999))
    with pytest.raises(CellsegError, match="are needed"):
        unpack(archive, tmp_path / "root")
    assert tree(tmp_path) == {"a.zip"}
