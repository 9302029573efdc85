"""The local web page over an index: what it answers, and what it refuses.

Plain `http.server`: one page, its script and style, pictures by their number in the index (never by
a path), and searches as JSON. It is made for one person's machine: it listens on the loopback
address, answers only requests that were sent to such a name (a web page whose name was rebound to
this machine is refused) and from its own page, takes no upload above a limit, and sends a policy
under which the browser runs no script but `app.js`.
"""

import functools
import http.server
import io
import ipaddress
import json
import logging
import secrets
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from PIL import Image

from jaxlab import chinese_clip as clip
from jaxlab.chinese_clip.indexing import open_formats
from jaxlab.data.images import decode_image

logger = logging.getLogger(__name__)

MAX_UPLOAD_BYTES = 20 << 20
MAX_JSON_BYTES = 64 << 10
MAX_QUERY_CHARACTERS = 500
MAX_PIXELS = 64_000_000
MAX_RESULTS = 100  # of one answer
THUMBNAIL, LARGE = 320, 1600  # pixels
CACHED_THUMBNAILS = 2048
TIMEOUT_S = 30.0  # of a client that says nothing

_WEB = Path(__file__).parent / "web"
_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class Refusal(Exception):
    """A request that is answered with an error.

    Attributes:
      status: of the answer.
      code: a word that the page has a sentence for.
      headers: to add.
    """

    def __init__(self, status: HTTPStatus, code: str, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.code, self.headers = status, code, headers


class Reply(NamedTuple):
    """A successful answer: body, its type, and whether the browser may keep it."""

    body: bytes
    kind: str
    keep: bool = False


class Service:
    """Searches in one index; what the page asks for, without HTTP.

    Attributes:
      index: the pictures.
      model: the model that made it.
      version: changes with every start, so that no browser shows a picture of another index.
    """

    def __init__(self, index: clip.PictureIndex, model: clip.LoadedModel) -> None:
        """Take an index and its model.

        Args:
          index: the pictures.
          model: the model that made it; at least one tower.

        Raises:
          ValueError: if it is another model.
        """
        index.check_model(model)
        self.index, self.model = index, model
        self.version = secrets.token_hex(8)
        self._encoding = threading.Lock()  # one program at a time on the device
        self.thumbnail = functools.lru_cache(CACHED_THUMBNAILS)(self._thumbnail)

    def warm_up(self) -> None:
        """Compile both towers for one query, so that the first person does not wait for it."""
        if self.model.has_text_tower:
            self.model.encode_text("图")
        if self.model.has_image_tower:
            self.model.encode_image([Image.new("RGB", (8, 8))])

    def info(self) -> dict[str, Any]:
        """What the page shows of the index."""
        return {
            "num_pictures": len(self.index),
            "model": "/".join(Path(self.index.info.model).parts[-2:]),
            "calibrated": self.index.info.calibration is not None,
            "max_upload": MAX_UPLOAD_BYTES,
            "version": self.version,
        }

    def by_text(self, text: str, offset: int, limit: int) -> dict[str, Any]:
        """The pictures that fit a text."""
        text = text.strip()
        if not text:
            raise Refusal(HTTPStatus.BAD_REQUEST, "empty_query", "the query is empty")
        if len(text) > MAX_QUERY_CHARACTERS:
            raise Refusal(
                HTTPStatus.BAD_REQUEST, "query_too_long",
                f"the query has {len(text)} characters; at most {MAX_QUERY_CHARACTERS} are taken",
            )  # fmt: skip
        if not self.model.has_text_tower:
            raise Refusal(HTTPStatus.BAD_REQUEST, "no_text_tower", "the model has no text tower")
        with self._encoding:
            features = self.model.encode_text(text)
        hits = self.index.to_hits(self.index.search(features, limit, offset=offset), of_text=True)
        return self._answer(hits[0], offset)

    def by_row(self, row: int, offset: int, limit: int) -> dict[str, Any]:
        """The pictures most like one of the index."""
        self._check_row(row)
        hits = self.index.find(self.model, row=row, k=limit, offset=offset)
        return {**self._answer(hits, offset), "name": Path(self.index.items[row].path).name}

    def by_picture(self, data: bytes, offset: int, limit: int) -> dict[str, Any]:
        """The pictures most like one that was sent."""
        _check_picture(data)
        try:
            with self._encoding:
                features = self.model.encode_image([data])
        except ValueError as error:
            raise Refusal(
                HTTPStatus.BAD_REQUEST, "not_an_image", "the picture is damaged"
            ) from error
        hits = self.index.to_hits(self.index.search(features, limit, offset=offset))
        return self._answer(hits[0], offset)

    def browse(self, offset: int, limit: int) -> dict[str, Any]:
        """All pictures in their order."""
        rows = range(offset, min(offset + limit, len(self.index)))
        results = [self._describe(row, None, None, None) for row in rows]
        return {"total": len(self.index), "offset": offset, "results": results}

    def picture(self, row: int, size: int) -> bytes:
        """A picture of the index as JPEG without the metadata of its file.

        Args:
          row: its number.
          size: most pixels of a side.
        """
        self._check_row(row)
        try:
            data = self.index.to_path(row).read_bytes()
            _check_picture(data)
            image = decode_image(data, apply_exif=self.index.info.apply_exif)
        except (OSError, ValueError, Refusal) as error:
            raise Refusal(
                HTTPStatus.NOT_FOUND, "gone", "the picture is not there any more"
            ) from error
        image.thumbnail((size, size))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=88)
        return buffer.getvalue()

    def _thumbnail(self, row: int) -> bytes:
        return self.picture(row, THUMBNAIL)

    def _check_row(self, row: int) -> None:
        if not 0 <= row < len(self.index):
            raise Refusal(
                HTTPStatus.NOT_FOUND, "no_such_picture", f"there is no picture {row}; the index "
                f"has 0 to {len(self.index) - 1}",
            )  # fmt: skip

    def _answer(self, hits: Sequence[clip.Hit], offset: int) -> dict[str, Any]:
        results = [
            self._describe(hit.row, hit.cosine, hit.percentile, hit.probability) for hit in hits
        ]
        return {"total": len(self.index), "offset": offset, "results": results}

    def _describe(
        self, row: int, cosine: float | None, percentile: float | None, probability: float | None
    ) -> dict[str, Any]:
        item = self.index.items[row]
        return {
            "row": row,
            "name": item.path.rsplit("/", 1)[-1],
            "path": item.path,
            "width": item.width,
            "height": item.height,
            "cosine": cosine,
            "percentile": percentile,
            "probability": probability,
        }


class Server(http.server.ThreadingHTTPServer):
    """The page's server; a thread a request, none of which keeps the program alive."""

    daemon_threads = True

    def __init__(
        self, service: Service, host: str, port: int, *, allowed_hosts: Sequence[str] = ()
    ) -> None:
        """Bind to an address.

        Args:
          service: what is asked.
          host: address to listen on.
          port: port; 0 takes a free one.
          allowed_hosts: names, beside `localhost` and addresses, that requests may be sent to.

        Raises:
          OSError: if the address is taken or is not this machine's.
        """
        self.service = service
        self.allowed_hosts = frozenset(name.lower() for name in ("localhost", *allowed_hosts))
        if ":" in host:
            self.address_family = socket.AF_INET6
        super().__init__((host, port), Handler)

    @property
    def url(self) -> str:
        """Where the page is."""
        host, port = str(self.server_address[0]), self.server_address[1]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error of ours."""
        logger.debug("a request of %s ended early", client_address, exc_info=True)


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server_version = "jaxlab"
    sys_version = ""
    timeout = TIMEOUT_S

    @property
    def own_server(self) -> Server:
        """The server, with what it serves."""
        assert isinstance(self.server, Server)
        return self.server

    def do_GET(self) -> None:
        """Answer a GET."""
        self._answer(self._get)

    def do_HEAD(self) -> None:
        """Answer as a GET, without the body."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """Answer a POST."""
        self._answer(self._post)

    def refuse_method(self) -> None:
        """Answer any other method."""
        self._answer(self._refuse)

    do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_TRACE = do_CONNECT = refuse_method

    def _answer(self, make: Callable[[], Reply]) -> None:
        """Send what `make` gives, or what it refuses."""
        try:
            self._check_sender()
            reply, status, headers = make(), HTTPStatus.OK, {}
        except Refusal as refusal:
            body = json.dumps({"error": str(refusal), "code": refusal.code}).encode()
            reply, status, headers = (
                Reply(body, "application/json"),
                refusal.status,
                refusal.headers,
            )
            self.close_connection = True  # the body of the request may not have been read
        except (TimeoutError, ConnectionError):
            raise  # the client is silent or gone: the connection ends
        except Exception:
            logger.exception("a request failed")
            body = json.dumps({"error": "the server failed", "code": "other"}).encode()
            reply, status, headers = (
                Reply(body, "application/json"), HTTPStatus.INTERNAL_SERVER_ERROR, {}
            )  # fmt: skip
            self.close_connection = True
        self.send_response(status)
        for name, value in {**_HEADERS, **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Type", reply.kind)
        self.send_header("Content-Length", str(len(reply.body)))
        kept = "private, max-age=86400, immutable" if reply.keep else "no-store"
        self.send_header("Cache-Control", kept)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    def _check_sender(self) -> None:
        """Refuse requests to a name that is not this machine's, or from another page."""
        host = _host_name(self.headers.get("Host", ""))
        if host not in self.own_server.allowed_hosts and not _is_address(host):
            raise Refusal(
                HTTPStatus.FORBIDDEN, "wrong_host",
                f"this page is not {host!r}; open {self.own_server.url}, or start it with "
                "--allow_host=NAME",
            )  # fmt: skip
        origin = self.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != self.headers.get("Host"):
            raise Refusal(HTTPStatus.FORBIDDEN, "wrong_origin", "another page asks; open this one")

    def _get(self) -> Reply:
        path = urlsplit(self.path).path
        service = self.own_server.service
        if path in _FILES:
            name, kind = _FILES[path]
            return Reply((_WEB / name).read_bytes(), kind)
        if path == "/api/info":
            return _json(service.info())
        folder, _, number = path.lstrip("/").partition("/")
        if folder in ("thumb", "picture") and number.isascii() and number.isdigit():
            row = int(number[:12])
            body = service.thumbnail(row) if folder == "thumb" else service.picture(row, LARGE)
            return Reply(body, "image/jpeg", keep="v=" in urlsplit(self.path).query)
        if path.startswith("/api/search"):
            return self._refuse()
        raise Refusal(HTTPStatus.NOT_FOUND, "not_found", "there is nothing of that name")

    def _post(self) -> Reply:
        address = urlsplit(self.path)
        kind = self.headers.get_content_type()
        service = self.own_server.service
        if address.path == "/api/search":
            if kind != "application/json":
                raise _wrong_type(kind, "application/json")
            return _json(_search(service, _parse(self._body(MAX_JSON_BYTES))))
        if address.path == "/api/search/image":
            if not kind.startswith("image/"):
                raise _wrong_type(kind, "image/...")
            asked = {name: values[-1] for name, values in parse_qs(address.query).items()}
            _check_fields(asked, ("offset", "limit"))
            offset, limit = _page(asked)
            return _json(service.by_picture(self._body(MAX_UPLOAD_BYTES), offset, limit))
        if address.path in _FILES or address.path == "/api/info":
            return self._refuse()
        raise Refusal(HTTPStatus.NOT_FOUND, "not_found", "there is nothing of that name")

    def _refuse(self) -> Reply:
        allowed = "POST" if urlsplit(self.path).path.startswith("/api/search") else "GET, HEAD"
        raise Refusal(
            HTTPStatus.METHOD_NOT_ALLOWED, "wrong_method",
            f"{self.command} is not for this address; it takes {allowed}", Allow=allowed,
        )  # fmt: skip

    def _body(self, limit: int) -> bytes:
        """The body of the request, read only if it is short enough."""
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()) or self.headers.get("Transfer-Encoding"):
            raise Refusal(
                HTTPStatus.LENGTH_REQUIRED, "no_length", "the request does not say its length"
            )
        if int(length[:18]) > limit:
            raise Refusal(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too_large",
                f"{length} bytes were announced; at most {limit} are taken",
            )  # fmt: skip
        body = self.rfile.read(int(length))
        if len(body) != int(length):
            raise Refusal(HTTPStatus.BAD_REQUEST, "cut_off", "the request ended early")
        return body

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are said only to those who debug."""
        logger.debug("%s %r", self.address_string(), format % args)


def _search(service: Service, asked: Mapping[str, Any]) -> dict[str, Any]:
    """A search as the page asks for it: a text, a row, or neither."""
    _check_fields(asked, ("text", "row", "offset", "limit"))
    offset, limit = _page(asked)
    if "text" in asked and "row" in asked:
        raise _bad_request("give text or row, not both")
    if "text" in asked:
        if not isinstance(asked["text"], str):
            raise _bad_request("text must be a string")
        return service.by_text(asked["text"], offset, limit)
    if "row" in asked:
        return service.by_row(_number("row", asked["row"]), offset, limit)
    return service.browse(offset, limit)


def _check_fields(asked: Mapping[str, Any], known: Sequence[str]) -> None:
    if unknown := sorted(set(asked) - set(known)):
        raise _bad_request(f"unknown fields {unknown}; there are {', '.join(known)}")


def _page(asked: Mapping[str, Any]) -> tuple[int, int]:
    offset, limit = (_number(n, asked.get(n, d)) for n, d in (("offset", 0), ("limit", 24)))
    if not 1 <= limit <= MAX_RESULTS:
        raise _bad_request(f"limit={limit} is not between 1 and {MAX_RESULTS}")
    return offset, limit


def _number(name: str, value: Any) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value[:12])
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 10**12:
        raise _bad_request(f"{name} must be a whole number from 0 on")
    return value


def _parse(body: bytes) -> Mapping[str, Any]:
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _bad_request("the body is not JSON") from error
    if not isinstance(asked, dict):
        raise _bad_request("the body must be a JSON object")
    return asked


def _check_picture(data: bytes) -> None:
    """Refuse what is no picture, and pictures too large to decode, by the header alone."""
    try:
        with Image.open(io.BytesIO(data), formats=open_formats()) as header:
            width, height = header.size
    except Image.DecompressionBombError as error:
        raise _too_many_pixels() from error
    except Exception as error:  # the decoders of Pillow raise a dozen unrelated kinds
        raise Refusal(
            HTTPStatus.BAD_REQUEST, "not_an_image", "this is no picture that can be read"
        ) from error
    if width * height > MAX_PIXELS:
        raise _too_many_pixels()


def _too_many_pixels() -> Refusal:
    return Refusal(
        HTTPStatus.BAD_REQUEST, "too_many_pixels", f"at most {MAX_PIXELS:,} pixels are taken"
    )


def _bad_request(message: str) -> Refusal:
    return Refusal(HTTPStatus.BAD_REQUEST, "bad_request", message)


def _wrong_type(kind: str, wanted: str) -> Refusal:
    return Refusal(
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unsupported_type",
        f"the body is {kind}; wanted {wanted}",
    )  # fmt: skip


def _json(value: Any) -> Reply:
    return Reply(json.dumps(value, allow_nan=False).encode(), "application/json")


def _host_name(host: str) -> str:
    """The name in a Host header, without the port, in lower case."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


def _is_address(host: str) -> bool:
    """Whether it is an address: only names can be rebound."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
