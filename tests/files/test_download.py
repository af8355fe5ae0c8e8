"""Downloads from a local server that stalls, breaks off and states false lengths; hostile archives."""

import gzip
import hashlib
import io
import ssl
import subprocess
import sys
import tarfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from llamaxr.data import iu_xray
from llamaxr.errors import UserError
from llamaxr.files import archive as archive_module
from llamaxr.files import download as module
from llamaxr.files.archive import unpack
from llamaxr.files.download import download

BODY = bytes(range(256)) * 4000  # about a megabyte
FAST = {"timeout": 0.3, "pause": 0.01}


@pytest.fixture
def server():
    """A server whose `behave(handler, start)` answers a request for BODY from byte `start`; it records
    the first byte of each request in `requests`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
            httpd.requests.append(start)
            try:
                httpd.behave(self, start)
            except (BrokenPipeError, ConnectionResetError):
                pass

        def log_message(self, *_):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    httpd.requests, httpd.behave = [], serve
    httpd.url = f"http://127.0.0.1:{httpd.server_address[1]}/file.tgz"
    threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield httpd
    httpd.shutdown()
    httpd.server_close()


def serve(handler, start, send=None, length=None, ranges=True, body=BODY):
    """Answer properly, but for: only `send` bytes, another Content-Length, or no Range."""
    start = start if ranges else 0
    if start >= len(body):
        handler.send_error(416)
        return
    handler.send_response(206 if start else 200)
    if start:
        handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
    handler.send_header("Content-Length", str(len(body) - start if length is None else length))
    handler.end_headers()
    handler.wfile.write(body[start:][:send])


def test_a_file_arrives_complete_with_progress_and_nothing_else_is_left(server, tmp_path):
    calls = []
    path = download(server.url, tmp_path / "new" / "file.tgz", lambda *args: calls.append(args))
    assert path.read_bytes() == BODY and sorted(p.name for p in path.parent.iterdir()) == [
        "file.tgz",
        "file.tgz.sha256",
    ]
    assert calls[-1] == ("file.tgz", len(BODY), len(BODY)) and calls == sorted(calls)


def test_a_file_that_is_there_is_not_requested(server, tmp_path):
    (tmp_path / "f").write_bytes(b"mine")
    assert download(server.url, tmp_path / "f").read_bytes() == b"mine" and not server.requests


def test_after_a_cut_connection_the_download_continues_where_it_stopped(server, tmp_path):
    server.behave = lambda handler, start: serve(handler, start, send=300_000)
    assert download(server.url, tmp_path / "f", **FAST).read_bytes() == BODY
    assert server.requests == [0, 300_000, 600_000, 900_000]


def test_after_a_stall_only_the_rest_is_requested(server, tmp_path):
    def stall(handler, start):
        serve(handler, start, send=None if start else 500_000)
        if not start:
            handler.wfile.flush()
            time.sleep(1)

    server.behave = stall
    assert download(server.url, tmp_path / "f", **FAST).read_bytes() == BODY
    assert len(server.requests) == 2 and 0 < server.requests[1] <= 500_000


def test_a_part_of_an_earlier_run_is_not_fetched_again(server, tmp_path):
    (tmp_path / "f.part").write_bytes(BODY[:1000])
    assert download(server.url, tmp_path / "f").read_bytes() == BODY and server.requests == [1000]


def test_a_server_without_range_sends_all_of_it_and_nothing_is_appended(server, tmp_path):
    (tmp_path / "f.part").write_bytes(b"other" * 100)
    server.behave = lambda handler, start: serve(handler, start, ranges=False)
    assert download(server.url, tmp_path / "f").read_bytes() == BODY


def test_a_part_that_is_all_of_the_file_is_not_fetched_again(server, tmp_path):
    def behave(handler, start):
        handler.send_response(416)
        handler.send_header("Content-Range", f"bytes */{len(BODY)}")
        handler.end_headers()

    (tmp_path / "f.part").write_bytes(BODY)
    server.behave = behave
    assert download(server.url, tmp_path / "f", **FAST).read_bytes() == BODY
    assert server.requests == [len(BODY)]


def test_two_processes_fetch_a_file_once(server, tmp_path):
    def slowly(handler, start):
        serve(handler, start, send=500_000, length=len(BODY) - start)
        time.sleep(0.2)

    server.behave = slowly
    code = "import sys; from pathlib import Path; from llamaxr.files.download import download\n"
    code += "download(sys.argv[1], Path(sys.argv[2]), pause=0.01)"
    argv = [sys.executable, "-c", code, server.url, str(tmp_path / "f")]
    processes = [subprocess.Popen(argv) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert (tmp_path / "f").read_bytes() == BODY and server.requests == [0, 500_000, 1_000_000]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f", "f.sha256"]


def test_a_part_longer_than_the_file_is_dropped(server, tmp_path):
    (tmp_path / "f.part").write_bytes(BODY + b"more")
    assert download(server.url, tmp_path / "f", **FAST).read_bytes() == BODY
    assert server.requests == [len(BODY) + 4, 0]


@pytest.mark.parametrize("place", [7, 2000])
def test_bytes_from_another_place_are_not_appended(server, tmp_path, place):
    def elsewhere(handler, start):
        if len(server.requests) > 1:
            return serve(handler, start)
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes {place}-{len(BODY) - 1}/{len(BODY)}")
        handler.end_headers()
        handler.wfile.write(BODY[place:])

    (tmp_path / "f.part").write_bytes(BODY[:1000])
    server.behave = elsewhere
    assert download(server.url, tmp_path / "f", **FAST).read_bytes() == BODY


def test_a_server_that_states_more_than_it_has_is_given_up_with_the_way_by_hand(server, tmp_path):
    server.behave = lambda handler, start: serve(handler, 0, length=len(BODY) + 500)
    with pytest.raises(UserError, match="ended early.*by hand") as error:
        download(server.url, tmp_path / "f", tries=3, **FAST)
    assert server.url in str(error.value) and str(tmp_path / "f") in str(error.value)
    assert not (tmp_path / "f").exists() and len(server.requests) <= 6


def test_a_server_that_never_ends_fills_no_disk(server, tmp_path, monkeypatch):
    def flood(handler, start):
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{start + 9}/{start + 10}")
        handler.end_headers()
        handler.wfile.write(BODY)

    monkeypatch.setattr(module, "MAX_DOWNLOAD", 10_000)
    (tmp_path / "f.part").write_bytes(b"x")
    server.behave = flood
    with pytest.raises(UserError, match="more than it stated"):
        download(server.url, tmp_path / "f", tries=3, **FAST)
    assert len(server.requests) == 3 and not list(tmp_path.iterdir())
    server.behave = lambda handler, start: serve(handler, start, length=10**15)
    with pytest.raises(UserError, match="too much for such a file"):
        download(server.url, tmp_path / "f", tries=3, **FAST)


def test_a_404_is_reported_at_once_and_a_500_after_some_tries(server, tmp_path):
    server.behave = lambda handler, start: handler.send_error(404)
    with pytest.raises(UserError, match="404.*by hand"):
        download(server.url, tmp_path / "f", **FAST)
    assert len(server.requests) == 1
    server.behave = lambda handler, start: (
        handler.send_error(500) if len(server.requests) < 4 else serve(handler, start)
    )
    assert download(server.url, tmp_path / "f", **FAST).read_bytes() == BODY
    server.behave = lambda handler, start: handler.send_error(503)
    with pytest.raises(UserError, match="503.*by hand"):
        download(server.url, tmp_path / "g", tries=2, **FAST)


def test_an_absent_server_is_reported(tmp_path):
    with pytest.raises(UserError, match="could not download"):
        download("http://127.0.0.1:9/f", tmp_path / "f", tries=2, **FAST)


def test_a_token_is_not_sent_to_where_its_host_redirects(server, tmp_path):
    seen = []

    def redirect(handler, start):
        seen.append((handler.path, handler.headers["Authorization"], handler.headers["Range"]))
        if handler.path == "/file.tgz":
            handler.send_response(302)
            handler.send_header("Location", "/elsewhere")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
        else:
            serve(handler, start)

    server.behave = redirect
    (tmp_path / "f.part").write_bytes(BODY[:1000])
    assert download(server.url, tmp_path / "f", headers={"Authorization": "x"}).read_bytes() == BODY
    assert seen == [("/file.tgz", "x", "bytes=1000-"), ("/elsewhere", None, "bytes=1000-")]


def test_a_broken_tls_connection_is_opened_again(server, tmp_path, monkeypatch):
    real, n = module._OPENER.open, []

    def urlopen(*args, **kwargs):
        n.append(0)
        if len(n) == 1:
            raise ssl.SSLError(1, "record layer failure")  # as a read raises it, without URLError around it
        return real(*args, **kwargs)

    monkeypatch.setattr(module._OPENER, "open", urlopen)
    assert download(server.url, tmp_path / "f", **FAST).read_bytes() == BODY


def test_a_local_file_is_no_address(tmp_path):
    with pytest.raises(UserError, match="not an https"):
        download("file:///etc/hostname", tmp_path / "f")


@pytest.mark.parametrize("url", ["http://example.org/f", "ftp://127.0.0.1/f", "https.example/f", "f"])
def test_only_https_is_spoken(tmp_path, url):
    with pytest.raises(UserError, match="not an https"):
        download(url, tmp_path / "f")


@pytest.mark.parametrize("to", ["http://example.org/f", "ftp://127.0.0.1/f", "file:///etc/hostname"])
def test_a_redirect_to_anything_but_https_is_not_followed(server, tmp_path, to):
    def redirect(handler, start):
        handler.send_response(302)
        handler.send_header("Location", to)
        handler.end_headers()

    server.behave = redirect
    with pytest.raises(UserError, match="not https: not followed|302"):
        download(server.url, tmp_path / "f", **FAST)


def test_https_never_leads_to_http_on_this_machine():
    assert module._is_safe("https://b.org/f", "https://a.org/f")
    assert not module._is_safe("http://127.0.0.1/f", "https://a.org/f")
    assert not module._is_safe("http://localhost.a.org/f", "http://localhost/f")


def test_the_first_downloads_hash_is_kept_and_told_and_a_change_refused(server, tmp_path):
    told, digest = [], hashlib.sha256(BODY).hexdigest()
    path = download(server.url, tmp_path / "f", warn=told.append)
    assert len(told) == 1 and digest in told[0]
    assert (tmp_path / "f.sha256").read_text() == f"{digest}  f\n"  # in sha256sum's form
    path.unlink()
    assert download(server.url, path, warn=told.append).read_bytes() == BODY and len(told) == 1
    path.unlink()
    server.behave = lambda handler, start: serve(handler, start, body=BODY[:-1] + b"x")
    with pytest.raises(UserError, match="not the file that is expected.*f.sha256"):
        download(server.url, path)
    assert [p.name for p in tmp_path.iterdir()] == ["f.sha256"]


@pytest.mark.parametrize("n_digits", [8, 64])
def test_a_known_hash_is_held_against_what_comes_and_what_is_there(server, tmp_path, n_digits):
    digest = hashlib.sha256(BODY).hexdigest()[:n_digits]
    path = download(server.url, tmp_path / "f", sha256=digest)
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
    with pytest.raises(UserError, match="not the file that is expected.*; run the same command again$"):
        download(server.url, tmp_path / "g", sha256="0" * n_digits)
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
    path.write_bytes(b"mine")
    with pytest.raises(UserError, match="not the file that is expected.*; delete it and run"):
        download(server.url, path, sha256=digest)
    assert path.read_bytes() == b"mine"  # what the user has put there is not deleted


def test_a_disk_without_enough_space_is_reported_before_it_is_full(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: type("Disk", (), {"free": 1000}))
    with pytest.raises(UserError, match="free some space"):
        download(server.url, tmp_path / "f")


# Archives


def archive(path, *members, cut=None):
    """members: (name, content) or a TarInfo."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    path.write_bytes(gzip.compress(raw.getvalue())[:cut])
    return path


def link(name, to, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, to
    return info


def folder(name):
    info = tarfile.TarInfo(name)
    info.type = tarfile.DIRTYPE
    return info


def test_files_of_the_suffix_come_out_side_by_side(tmp_path):
    path = archive(
        tmp_path / "a.tgz", folder("in"), ("in/1.xml", b"<a/>"), ("2.xml", b"<b/>"), ("readme", b"x")
    )
    out = unpack(path, tmp_path / "out", ".xml")
    assert {p.name: p.read_bytes() for p in out.iterdir()} == {"1.xml": b"<a/>", "2.xml": b"<b/>"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tgz", "out"]


@pytest.mark.parametrize(
    "member",
    [
        ("../1.xml", b"x"),
        ("in/../../1.xml", b"x"),
        link("1.xml", "/etc/passwd"),
        link("1.xml", "2.xml", tarfile.LNKTYPE),
        link("pipe.xml", "", tarfile.FIFOTYPE),
        ("2.xml", b"twice"),
        (".hidden.xml", b"x"),
        ("n" * 300 + ".xml", b"x"),
        ("a b.xml", b"x"),
        ("\x1b[2J.xml", b"x"),
    ],
)
def test_an_archive_with_a_hostile_member_is_refused(tmp_path, member):
    path = archive(tmp_path / "a.tgz", ("2.xml", b"<b/>"), member)
    with pytest.raises(UserError, match="damaged or not what it should be"):
        unpack(path, tmp_path / "out", ".xml")
    assert list(tmp_path.iterdir()) == []  # the archive is gone too, to be fetched again


def test_an_absolute_path_is_not_followed(tmp_path):
    target = tmp_path / "elsewhere" / "1.xml"
    path = archive(tmp_path / "a.tgz", (str(target), b"x"), ("2.xml", b"y"))
    unpack(path, tmp_path / "out", ".xml")
    assert not target.exists() and (tmp_path / "out" / "1.xml").is_file()


@pytest.mark.parametrize("cut", [10, 200, -4, -12])
def test_an_archive_that_breaks_off_is_refused_however_late(tmp_path, cut):
    path = archive(
        tmp_path / "a.tgz", *((f"{n}.xml", bytes(str(n), "ascii") * 500) for n in range(50)), cut=cut
    )
    with pytest.raises(UserError, match="run the same command again"):
        unpack(path, tmp_path / "out", ".xml")
    assert not (tmp_path / "out").exists()


def test_a_flipped_bit_is_noticed_by_the_checksum(tmp_path):
    path = archive(tmp_path / "a.tgz", ("1.xml", b"<a/>"))
    raw = bytearray(path.read_bytes())
    raw[-8] ^= 1  # the CRC itself
    path.write_bytes(raw)
    with pytest.raises(UserError, match="damaged"):
        unpack(path, tmp_path / "out", ".xml")


def test_an_archive_without_bounds_is_refused(tmp_path, monkeypatch):
    for bound, value in (("MAX_FILES", 0), ("MAX_FILE", 3), ("MAX_TOTAL", 600)):
        path = archive(tmp_path / "a.tgz", ("1.xml", b"<a/>"), ("2.xml", b"<b/>"))
        with monkeypatch.context() as patch, pytest.raises(UserError, match="bounds"):
            patch.setattr(archive_module, bound, value)
            unpack(path, tmp_path / "out", ".xml")


def test_macos_own_files_beside_the_real_ones_are_passed_over(tmp_path):
    path = archive(tmp_path / "a.tgz", ("in/._1.xml", b"attributes"), ("in/1.xml", b"<a/>"))
    assert [p.name for p in unpack(path, tmp_path / "out", ".xml").iterdir()] == ["1.xml"]


def test_folders_and_notes_count_too(tmp_path, monkeypatch):
    monkeypatch.setattr(archive_module, "MAX_FILES", 10)
    for members in (
        [folder("in")] * 11,
        [("n" * 120 + f"{i}.txt", b"") for i in range(6)],
    ):  # two headers each
        with pytest.raises(UserError, match="bounds"):
            unpack(archive(tmp_path / "a.tgz", *members, ("1.xml", b"")), tmp_path / "out", ".xml")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
@pytest.mark.parametrize("size", [400_000, 7 * 10**9])
def test_a_header_that_is_no_name_but_an_attack_is_refused_unread(tmp_path, kind, size):
    note = tarfile.TarInfo("note")
    note.type, note.size = kind, size
    raw = note.tobuf(tarfile.GNU_FORMAT) + b"9" * 400_000
    (tmp_path / "a.tgz").write_bytes(gzip.compress(raw))
    start = time.perf_counter()
    with pytest.raises(UserError, match="too long names"):
        unpack(tmp_path / "a.tgz", tmp_path / "out", ".xml")
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize(
    "behind", [b"", bytes(1024)]
)  # inside a member that is passed over, and after the end
def test_zeros_that_unpack_without_end_are_given_up(tmp_path, monkeypatch, behind):
    monkeypatch.setattr(archive_module, "LEAST_TOTAL", 2**20)
    filler = tarfile.TarInfo("filler.bin")
    filler.size = 0 if behind else 2**26
    (tmp_path / "a.tgz").write_bytes(gzip.compress(filler.tobuf() + behind + bytes(2**26)))
    with pytest.raises(UserError, match="unpacks to far more"):
        unpack(tmp_path / "a.tgz", tmp_path / "out", ".xml")


def test_an_archive_that_is_not_packed_is_read_too(tmp_path):
    path = archive(tmp_path / "a.tgz", ("1.xml", b"<a/>"))
    path.write_bytes(gzip.decompress(path.read_bytes()))  # as some browsers do on their own
    assert (unpack(path, tmp_path / "out", ".xml") / "1.xml").read_bytes() == b"<a/>"


def test_the_hash_of_a_broken_archive_is_not_held_against_the_next(tmp_path):
    path = tmp_path / "a.tgz"
    path.write_bytes(b"<html>log in first</html>")
    (tmp_path / "a.tgz.sha256").write_text("0" * 64)
    with pytest.raises(UserError, match="was deleted"):
        unpack(path, tmp_path / "out", ".xml")
    assert list(tmp_path.iterdir()) == []


def test_an_archive_of_something_else_is_refused(tmp_path):
    with pytest.raises(UserError, match="no .xml file in it"):
        unpack(archive(tmp_path / "a.tgz", ("1.txt", b"x")), tmp_path / "out", ".xml")


def test_an_interrupted_unpacking_leaves_no_folder_and_is_done_again(tmp_path):
    path = archive(tmp_path / "a.tgz", ("1.xml", b"<a/>"), ("2.xml", b"<b/>"))

    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unpack(path, tmp_path / "out", ".xml", interrupt)
    assert not (tmp_path / "out").exists() and path.is_file()
    (tmp_path / "out.unpacking").mkdir()  # what kill -9 leaves
    (tmp_path / "out.unpacking" / "1.xml").write_bytes(b"half")
    assert (unpack(path, tmp_path / "out", ".xml") / "1.xml").read_bytes() == b"<a/>"


def test_iu_xray_without_a_root_is_fetched_once_from_both_archives(server, tmp_path, monkeypatch):
    xml = b"""<eCitation><uId id="CXR999999"/><AbstractText Label="FINDINGS">A.</AbstractText>
              <parentImage id="i"/></eCitation>"""
    files = {
        "/NLMCXR_reports.tgz": archive(tmp_path / "r.tgz", ("ecgen-radiology/9.xml", xml)).read_bytes(),
        "/NLMCXR_png.tgz": archive(tmp_path / "p.tgz", ("i.png", b"not opened here")).read_bytes(),
    }
    server.behave = lambda handler, start: serve(handler, start, body=files[handler.path])
    monkeypatch.setattr(iu_xray, "OPENI", server.url.removesuffix("/file.tgz"))
    names = set()
    for _ in range(2):
        root = iu_xray.fetch(tmp_path / "cache", lambda what, done, total: names.add(what))
    assert len(server.requests) == 2 and "NLMCXR_png.tgz" in names
    (study,) = iu_xray.load_studies(root, pytest.fail, split_by="patient")
    assert study.id == "CXR999999" and study.frontal == root / "NLMCXR_png" / "i.png"
