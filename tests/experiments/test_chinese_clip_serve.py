"""The local page: what it answers over HTTP and what it refuses, and the page in a browser."""

import http.client
import importlib.util
import io
import json
import runpy
import shlex
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from experiments.chinese_clip import web_server
from experiments.chinese_clip.web_server import Server, Service
from jaxlab import chinese_clip as clip

CHECKOUT = Path(__file__).resolve().parents[2]
helpers = SimpleNamespace(
    **runpy.run_path(str(CHECKOUT / "tests" / "chinese_clip" / "tiny_model.py"))
)
encoded, picture = helpers.encoded, helpers.picture
EVIL = '<img src=x onerror="document.title=1">.png'
NUM_PICTURES = 30


def load_chromium():
    spec = importlib.util.spec_from_file_location(
        "chromium", Path(__file__).with_name("chromium.py")
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "海边").mkdir()
    for i in range(NUM_PICTURES - 1):
        (folder / "海边" / f"图{i:02d}.png").write_bytes(encoded(picture(i)))
    exif = Image.Exif()
    exif[0x010E] = "a secret place"
    (folder / EVIL).write_bytes(encoded(picture(99, size=(700, 350)), "PNG", exif=exif))
    (folder.parent / "secret.png").write_bytes(encoded(picture(7)))
    return folder


@pytest.fixture(scope="module")
def model():
    calibration = clip.fit_calibration(np.array([0.5, 0.6, 0.7]), np.array([0.1, 0.2, 0.3]))
    return helpers.tiny_model().with_calibration(calibration)


@pytest.fixture(scope="module")
def index(folder, model, tmp_path_factory):
    where = tmp_path_factory.mktemp("index") / "index"
    return clip.update_index(where, folder, model, int8=True)[0]


@pytest.fixture(scope="module")
def server(index, model):
    with Server(Service(index, model), "127.0.0.1", 0, allowed_hosts=["my-machine"]) as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def ask(server, method, path, body=None, headers=None, host=None):
    """`(status, headers, body)` of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=30)
    headers = dict(headers or {})
    if host is not None:
        headers["Host"] = host
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    return answer.status, answer.headers, data


def search(server, asked, **headers):
    body = asked if isinstance(asked, bytes) else json.dumps(asked).encode()
    status, _, data = ask(
        server, "POST", "/api/search", body, {"Content-Type": "application/json", **headers}
    )
    return status, json.loads(data)


def send_picture(server, data, kind="image/png", query=""):
    status, _, body = ask(server, "POST", f"/api/search/image{query}", data, {"Content-Type": kind})
    return status, json.loads(body)


GUIDE = (CHECKOUT / "jaxlab" / "chinese_clip" / "README.md").read_text("utf-8")


def guide_requests():
    """The requests that the guide makes with curl: `(method, path, headers, body)`."""
    lines = GUIDE.replace("\\\n", " ").splitlines()
    for line in (line for line in lines if line.startswith("    curl ")):
        method, path, headers, body = "GET", "", {}, None
        words = iter(shlex.split(line)[1:])
        for word in words:
            if word == "-H":
                name, _, value = next(words).partition(": ")
                headers[name] = value
            elif word in ("-d", "--data-binary"):
                method, body = "POST", next(words)
            else:
                path = word.removeprefix("http://127.0.0.1:8000")
        yield method, path, headers, body


def test_the_requests_of_the_guide_are_answered_with_the_fields_that_it_names(server, index):
    described = GUIDE.partition("Programs ask the same server")[2].partition("\n## ")[0]
    answers = {}
    for method, path, headers, body in guide_requests():
        data = encoded(picture(3), "JPEG") if body == "@query.jpg" else body and body.encode()
        status, _, answer = ask(server, method, path, data, headers)
        assert status == 200, answer
        answers[path.partition("?")[0]] = json.loads(answer)
    assert list(answers) == ["/api/info", "/api/search", "/api/search/image"]
    assert answers["/api/info"]["num_pictures"] == NUM_PICTURES
    for name in ("/api/search", "/api/search/image"):
        assert len(answers[name]["results"]) == 3 and answers[name]["total"] == NUM_PICTURES
    for fields in (*answers.values(), answers["/api/search"]["results"][0]):
        for field in fields:
            assert f"`{field}`" in described, field
    for limit in (
        f"at most {web_server.MAX_UPLOAD_BYTES >> 20} MiB",
        f"{web_server.MAX_PIXELS // 10**6} megapixels",
        f"at most {web_server.MAX_JSON_BYTES >> 10} KiB",
        f"at most {web_server.MAX_QUERY_CHARACTERS} characters",
        f"1 to {web_server.MAX_RESULTS}",
        f"at most {web_server.THUMBNAIL} or {web_server.LARGE} pixels",
    ):
        assert limit in described


def test_a_text_finds_what_the_index_finds(server, index, model):
    status, answer = search(server, {"text": " 猫 ", "offset": 3, "limit": 5})
    assert status == 200 and answer["total"] == NUM_PICTURES and answer["offset"] == 3
    hits = index.find(model, text="猫", k=5, offset=3)
    assert [r["row"] for r in answer["results"]] == [hit.row for hit in hits]
    for result, hit in zip(answer["results"], hits, strict=True):
        assert result["cosine"] == pytest.approx(hit.cosine, abs=1e-6)
        assert result["probability"] == pytest.approx(hit.probability, rel=1e-4)
        assert result["path"] == hit.path and result["name"] == hit.path.rsplit("/", 1)[-1]
        item = index.items[hit.row]
        assert (result["width"], result["height"]) == (item.width, item.height)


def test_a_picture_finds_itself_by_number_and_by_upload(server, index, folder):
    row = next(i for i, item in enumerate(index.items) if item.path == "海边/图04.png")
    status, answer = search(server, {"row": row})
    assert status == 200 and answer["name"] == "图04.png"
    assert answer["results"][0]["row"] == row and answer["results"][0]["probability"] is None
    assert answer["results"][0]["cosine"] == pytest.approx(1, abs=1e-5)
    status, uploaded = send_picture(server, (folder / "海边" / "图04.png").read_bytes())
    assert status == 200
    same = [[r["row"] for r in one["results"]] for one in (answer, uploaded)]
    assert same[0] == same[1] and len(same[0]) == 24
    _, page = send_picture(server, (folder / "海边" / "图04.png").read_bytes(), query="?offset=24")
    assert len(page["results"]) == 6 and not {r["row"] for r in page["results"]} & set(same[0])


def test_without_a_query_all_pictures_come_in_their_order(server):
    _, first = search(server, {})
    _, second = search(server, {"offset": 24})
    _, third = search(server, {"offset": 48})
    rows = [r["row"] for r in first["results"] + second["results"]]
    assert rows == list(range(NUM_PICTURES)) and third["results"] == []
    assert first["results"][0]["cosine"] is None and third["total"] == NUM_PICTURES


def test_pictures_come_small_and_without_the_metadata_of_their_files(server, index):
    row = next(i for i, item in enumerate(index.items) if item.path == EVIL)
    for name, width in (("thumb", 320), ("picture", 700)):
        status, headers, data = ask(server, "GET", f"/{name}/{row}?v=1")
        assert status == 200 and headers["Content-Type"] == "image/jpeg"
        assert "immutable" in headers["Cache-Control"] and b"secret" not in data
        with Image.open(io.BytesIO(data)) as image:
            assert image.size == (width, width // 2) and not image.getexif()


def test_the_page_is_whole_and_asks_for_nothing_from_elsewhere(server):
    for path, kind in (
        ("/", "text/html"), ("/?q=x&page=2", "text/html"), ("/style.css", "text/css"),
        ("/app.js", "text/javascript"), ("/icon.svg", "image/svg+xml"),
    ):  # fmt: skip
        status, headers, data = ask(server, "GET", path)
        assert status == 200 and headers.get_content_type() == kind and data
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        if path != "/icon.svg":
            assert b"http://" not in data and b"https://" not in data
        assert b"innerHTML" not in data and b"<script>" not in data
    status, headers, data = ask(server, "HEAD", "/")
    assert status == 200 and data == b"" and int(headers["Content-Length"]) > 500
    _, _, info = ask(server, "GET", "/api/info")
    assert json.loads(info)["num_pictures"] == NUM_PICTURES


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.png", "/thumb/../../secret.png", "/thumb/..%2f..%2fsecret.png", "/thumb/-1",
        "/thumb/99", "/thumb/9999999999999999999999", "/thumb/1/../2", "/thumb/", "/thumb/x",
        "/picture/%31", "/thumb/%D9%A1", "/web_server.py", "/style.css/",
        "//etc/passwd", "/etc/passwd", "/api/other",
    ],
)  # fmt: skip
def test_nothing_but_the_page_and_numbered_pictures_can_be_read(server, path):
    status, _, data = ask(server, "GET", path)
    assert status == 404 and json.loads(data)["error"]


def test_a_picture_that_has_gone_or_leads_out_is_not_found(index, model, folder):
    items = [
        index.items[0]._replace(path="../secret.png"),
        index.items[1]._replace(path="gone.png"),
    ]
    moved = clip.make_index(index.info, items, index.vectors[:2])
    service = Service(moved, model)
    for row in (0, 1):
        with pytest.raises(web_server.Refusal, match="not there any more"):
            service.thumbnail(row)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/", "GET, HEAD"), ("DELETE", "/thumb/1", "GET, HEAD"), ("POST", "/", "GET, HEAD"),
        ("OPTIONS", "/api/search", "POST"), ("GET", "/api/search", "POST"),
        ("PATCH", "/api/search/image", "POST"),
    ],
)  # fmt: skip
def test_wrong_methods_are_refused(server, method, path, allowed):
    status, headers, _ = ask(server, method, path)
    assert status == 405 and headers["Allow"] == allowed


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "bad_request"), (b"", "bad_request"), (b"[1]", "bad_request"),
        (b"\xff\xfe", "bad_request"), (b"[" * 60_000, "bad_request"),
        ({"text": 3}, "bad_request"), ({"text": None}, "bad_request"),
        ({"texts": "x"}, "bad_request"),
        ({"text": "x", "row": 1}, "bad_request"), ({"row": "x"}, "bad_request"),
        ({"row": True}, "bad_request"), ({"row": -1}, "bad_request"), ({"row": 1.5}, "bad_request"),
        ({"text": "x", "limit": 0}, "bad_request"), ({"text": "x", "limit": 101}, "bad_request"),
        ({"text": "x", "offset": -1}, "bad_request"), ({"text": "  "}, "empty_query"),
        ({"text": "x" * 501}, "query_too_long"),
    ],
)  # fmt: skip
def test_bad_searches_are_refused_with_a_reason(server, body, code):
    status, answer = search(server, body)
    assert status == 400 and answer["code"] == code and answer["error"]


@pytest.mark.parametrize("query", ["?limt=3", "?limit=0", "?limit=x", "?offset=-1"])
def test_a_picture_with_fields_that_are_wrong_is_refused(server, query):
    status, answer = send_picture(server, encoded(picture(1)), query=query)
    assert status == 400 and answer["code"] == "bad_request"


def test_unknown_numbers_are_not_found(server):
    status, answer = search(server, {"row": 10**9})
    assert status == 404 and "has 0 to 29" in answer["error"]


def test_what_is_no_picture_is_refused(server, monkeypatch):
    status, answer = send_picture(server, b"GIF89a no picture at all")
    assert (status, answer["code"]) == (400, "not_an_image")
    status, answer = send_picture(server, b"", "image/png")
    assert (status, answer["code"]) == (400, "not_an_image")
    status, answer = send_picture(server, encoded(picture(1))[:150])
    assert (status, answer["code"]) == (400, "not_an_image")
    page = io.BytesIO()
    picture(1).save(page, "EPS")
    status, answer = send_picture(server, page.getvalue(), "image/eps")
    assert (status, answer["code"]) == (400, "not_an_image")
    for kind in ("text/html", "application/json", "multipart/form-data"):
        status, answer = send_picture(server, encoded(picture(1)), kind)
        assert (status, answer["code"]) == (415, "unsupported_type")
    status, answer = search(server, {"text": "x"}, **{"Content-Type": "text/plain"})
    assert (status, answer["code"]) == (415, "unsupported_type")
    monkeypatch.setattr(web_server, "MAX_PIXELS", 100)
    status, answer = send_picture(server, encoded(picture(1)))
    assert (status, answer["code"]) == (400, "too_many_pixels")


def test_a_decompression_bomb_is_refused_by_its_header(server):
    # 30,000 x 30,000 pixels in the header of a file of a few bytes.
    data = bytearray(encoded(Image.new("L", (4, 4))))
    data[16:24] = (30_000).to_bytes(4, "big") * 2
    import zlib

    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    status, answer = send_picture(server, bytes(data))
    assert (status, answer["code"]) == (400, "too_many_pixels")


def raw(server, text):
    """The status line of a request that is written byte by byte."""
    with socket.create_connection(("127.0.0.1", server.server_address[1]), 30) as connection:
        connection.sendall(text.encode())
        return connection.makefile("rb").readline().decode()


def test_uploads_above_the_limit_are_refused_before_they_are_read(server):
    head = "POST {} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {}\r\n"
    image = head.format("/api/search/image", "image/png")
    assert " 413 " in raw(server, f"{image}Content-Length: {(20 << 20) + 1}\r\n\r\n")
    assert " 413 " in raw(server, f"{image}Content-Length: {'9' * 40}\r\n\r\n")
    assert " 411 " in raw(server, f"{image}\r\n")
    assert " 411 " in raw(server, f"{image}Content-Length: -5\r\n\r\n")
    assert " 411 " in raw(server, f"{image}Transfer-Encoding: chunked\r\n\r\n")
    text = head.format("/api/search", "application/json")
    assert " 413 " in raw(server, f"{text}Content-Length: 70000\r\n\r\n")
    assert " 414 " in raw(server, f"GET /{'x' * 70_000} HTTP/1.1\r\nHost: localhost\r\n\r\n")


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("127.0.0.1:{port}", True), ("localhost:{port}", True), ("LOCALHOST", True),
        ("[::1]:{port}", True), ("192.168.1.5:{port}", True), ("my-machine:{port}", True),
        ("evil.example:{port}", False), ("localhost.evil.example", False), ("", False),
        ("127.0.0.1.evil.example", False),
    ],
)  # fmt: skip
def test_requests_to_other_names_are_refused(server, host, allowed):
    filled = host.format(port=server.server_address[1])
    for path in ("/", "/thumb/0", "/api/info"):
        status, _, _ = ask(server, "GET", path, host=filled)
        assert status == (200 if allowed else 403)


def test_requests_of_other_pages_are_refused(server):
    own = f"127.0.0.1:{server.server_address[1]}"
    for origin, wanted in (
        (f"http://{own}", 200), ("http://evil.example", 403), ("null", 403),
        ("http://127.0.0.1:1", 403),
    ):  # fmt: skip
        status, _ = search(server, {"text": "x"}, Origin=origin, Host=own)
        assert status == wanted


def test_an_index_of_another_model_is_not_served(index):
    with pytest.raises(ValueError, match="has other weights"):
        Service(index, helpers.tiny_model(seed=1))


def test_a_model_without_texts_says_so(index):
    service = Service(index, helpers.tiny_model(towers="image"))
    with pytest.raises(web_server.Refusal, match="no text tower"):
        service.by_text("猫", 0, 5)
    assert service.by_row(0, 0, 5)["results"]


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_the_server_ends_on_signals(stop):
    program = (
        "from experiments.chinese_clip import serve, web_server\n"
        "server = web_server.Server(None, '127.0.0.1', 0)\n"
        "serve.serve(server, server.url)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline().startswith("http://127.0.0.1:")
    process.send_signal(stop)
    assert process.communicate(timeout=30)[0] == "Stopped.\n" and process.returncode == 0


# In a browser; `CHROMIUM` names another program.

chromium = load_chromium()
needs_browser = pytest.mark.skipif(
    chromium.find_chromium() is None, reason="no Chromium; Debian has the package `chromium`"
)
SHOWN = (
    "!document.querySelector('#results').classList.contains('busy') && "
    "[...document.querySelectorAll('.pick img')].filter(i => "
    "i.getBoundingClientRect().top < innerHeight).every(i => i.complete)"
)


@pytest.fixture(scope="module")
def browser(server, tmp_path_factory):
    program, profile = chromium.find_chromium(), tmp_path_factory.mktemp("profile")
    with chromium.Chromium(program, profile) as opened:
        yield opened


def results(browser):
    return browser.evaluate("[...document.querySelectorAll('.pick')].map(p => p.result.row)")


def wait_for(browser, status):
    words = json.dumps(status)
    browser.wait(f"document.querySelector('#status').textContent.includes({words}) && {SHOWN}")


@needs_browser
@pytest.mark.timeout(180)
def test_the_page_in_a_browser(server, index, model, folder, browser, tmp_path):
    browser.open(server.url)
    wait_for(browser, f"全部 {NUM_PICTURES} 张图片")
    assert results(browser) == list(range(24))
    assert browser.evaluate("document.activeElement.id") == "query"
    assert browser.evaluate("document.documentElement.lang") == "zh-CN"
    # A file whose name is markup is text, in the caption and in the alternative text.
    assert browser.evaluate("document.querySelector('.name').textContent") == EVIL
    assert browser.evaluate("document.querySelector('.pick img').alt") == EVIL
    assert browser.evaluate("document.querySelectorAll('.caption img').length") == 0
    loaded = (
        "[...document.querySelectorAll('.pick img')].slice(0, 6).every(i => i.naturalWidth > 0)"
    )
    browser.wait(loaded)

    # A text by keyboard; the same rows as the index, scores in the captions, the address kept.
    browser.type("<b>海边</b>的猫")
    browser.press("Enter")
    wait_for(browser, "“<b>海边</b>的猫”")
    hits = index.find(model, text="<b>海边</b>的猫", k=24)
    assert results(browser) == [hit.row for hit in hits]
    assert f"余弦 {hits[0].cosine:.3f}" in browser.evaluate(
        "document.querySelector('.score').textContent"
    )
    assert browser.evaluate("document.querySelectorAll('#status b').length") == 0
    browser.wait("document.querySelector('#page').textContent === '第 1 / 2 页'")

    # The next page, and back.
    browser.evaluate("document.querySelector('#next').click()")
    browser.wait(f"document.querySelectorAll('.card').length === {NUM_PICTURES - 24} && {SHOWN}")
    assert browser.evaluate("document.querySelector('#next').disabled") is True
    browser.evaluate("history.back()")
    browser.wait(f"document.querySelectorAll('.card').length === 24 && {SHOWN}")
    assert browser.evaluate("document.querySelector('#query').value") == "<b>海边</b>的猫"

    # Arrows move over the pictures, Enter looks for pictures like one.
    browser.evaluate("document.querySelector('#query').focus()")
    browser.press("ArrowDown")
    browser.press("ArrowRight")
    assert browser.evaluate("document.activeElement.result.row") == hits[1].row
    browser.press("Enter")
    wait_for(browser, "相似的图片")
    assert results(browser) == [hit.row for hit in index.find(model, row=hits[1].row, k=24)]
    browser.press("o")
    browser.wait("document.querySelector('#viewer').open")
    browser.wait("document.querySelector('#viewer-picture').naturalWidth > 0")
    browser.evaluate("document.querySelector('#viewer-close').click()")

    # A picture of one's own.
    browser.upload("#file", folder / "海边" / "图03.png")
    wait_for(browser, "图03.png")
    row = next(i for i, item in enumerate(index.items) if item.path == "海边/图03.png")
    assert results(browser)[0] == row
    (tmp_path / "notes.png").write_text("no picture")
    browser.upload("#file", tmp_path / "notes.png")
    browser.wait("document.querySelector('#notice').textContent === '这不是能读取的图片'")
    browser.evaluate("document.querySelector('#query').value = ' '")
    browser.evaluate("document.querySelector('#search').requestSubmit()")
    browser.wait("document.querySelector('#notice').textContent === '请输入要找的内容'")

    # Nothing from elsewhere, and no error but the one refusal above.
    assert all(url.startswith((server.url, "blob:", "data:")) for url in browser.requests)
    assert [text for text in browser.console if "400" not in str(text)] == []
    assert browser.evaluate("document.title") == "图片搜索"
    nameless = (
        "[...document.images].filter(i => i.src && !i.alt && i.id !== 'about-picture').length"
    )
    assert browser.evaluate(nameless) == 0
    buttons = "[...document.querySelectorAll('button')]"
    assert browser.evaluate(f"{buttons}.every(b => b.ariaLabel || b.textContent.trim())") is True
