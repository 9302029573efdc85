"""The released checkpoints by name: where they may lie already, and how they are fetched.

A name is the original's (`ViT-B-16`, `RN50`, ...) or the hub's (`chinese-clip-vit-base-patch16`,
with or without `OFA-Sys/`). `find_checkpoint` looks, in this order, in a folder of the user's, in
the library's cache (`JAXLAB_CACHE_DIR`), where the original's `load_from_name` puts its files
(`~/.cache/clip`) and in the hub's own cache; what is nowhere is fetched from the address that
`load_from_name` uses, and kept in the library's cache.

References:
  `cn_clip/clip/utils.py` (`_MODELS`, `_download`) of Chinese-CLIP 1.6.0.
"""

import contextlib
import difflib
import http.client
import logging
import os
import queue
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, NamedTuple

from jaxlab.packages import cache_dir, file_sha256, is_offline

logger = logging.getLogger(__name__)

ORGANISATION = "OFA-Sys"
SIZE_TOLERANCE = 0.01
"""Names, shapes and alignment beside the tensors take far less than this share of a file."""
TIMEOUT_S = 30.0
"""Longest wait for a server: for its answer in all (names, addresses, redirects), for a block."""
SOURCES: Mapping[str, str] = MappingProxyType(
    {
        "huggingface": "{endpoint}/OFA-Sys/{repository}/resolve/main/{file}",
        "modelscope": "https://modelscope.cn/models/AI-ModelScope/{repository}/resolve/master/"
        "{file}",
    }
)
"""Addresses by source; `endpoint` is the variable HF_ENDPOINT, or the hub itself."""
_HUB = "https://huggingface.co"
_BLOCK = 1 << 20  # bytes
_CACHE_FOLDER = "chinese_clip"
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")


class Released(NamedTuple):
    """A released checkpoint.

    Attributes:
      name: the original's name.
      repository: its name on the hub, without the organisation.
      file: its file name.
      num_bytes: what its float32 tensors take; the file is larger by less than `SIZE_TOLERANCE`.
    """

    name: str
    repository: str
    file: str
    num_bytes: int


_FLOAT32 = 4  # bytes
RELEASED: tuple[Released, ...] = (
    Released("RN50", "chinese-clip-rn50", "clip_cn_rn50.pt", 76_989_537 * _FLOAT32),
    Released(
        *("ViT-B-16", "chinese-clip-vit-base-patch16", "clip_cn_vit-b-16.pt"),
        num_bytes=188_262_913 * _FLOAT32,
    ),
    Released(
        *("ViT-L-14", "chinese-clip-vit-large-patch14", "clip_cn_vit-l-14.pt"),
        num_bytes=406_233_089 * _FLOAT32,
    ),
    Released(
        *("ViT-L-14-336", "chinese-clip-vit-large-patch14-336px", "clip_cn_vit-l-14-336.pt"),
        num_bytes=406_560_769 * _FLOAT32,
    ),
    Released(
        *("ViT-H-14", "chinese-clip-vit-huge-patch14", "clip_cn_vit-h-14.pt"),
        num_bytes=957_598_209 * _FLOAT32,
    ),
)
"""The five checkpoints that were released."""


def available_models() -> tuple[str, ...]:
    """The names of the released models, as the original gives them."""
    return tuple(released.name for released in RELEASED)


def find_released(name: str) -> Released | None:
    """The released checkpoint of a name, the original's or the hub's; None if there is none.

    Example:
      >>> find_released("OFA-Sys/chinese-clip-rn50").file
      'clip_cn_rn50.pt'
    """
    plain = name.removeprefix(f"{ORGANISATION}/").lower().replace("@", "-").replace("/", "-")
    for released in RELEASED:
        if plain in (released.name.lower(), released.repository):
            return released
    return None


def find_checkpoint(
    path_or_name: str | os.PathLike[str],
    *,
    download_root: str | os.PathLike[str] | None = None,
    source: str = "huggingface",
) -> Path:
    """The file or folder that a path or a name stands for, fetched if it lies nowhere.

    Args:
      path_or_name: a path that exists, or a name of a released model.
      download_root: folder to look in first and to fetch into; by default the library's cache.
      source: `huggingface` (the variable HF_ENDPOINT gives a mirror) or `modelscope`.

    Returns:
      A `.pt` file, or what the given path or the hub's cache holds.

    Raises:
      FileNotFoundError: if there is no such path and no such name (the nearest is named), or the
        checkpoint lies nowhere and JAXLAB_OFFLINE is set.
      ValueError: if the source is unknown, or what was fetched is not the checkpoint.
      ConnectionError: if it cannot be fetched; what has come is kept and continued.
    """
    if source not in SOURCES:
        raise ValueError(f"source={source!r} is unknown; use one of {', '.join(SOURCES)}")
    text = os.fspath(path_or_name)
    path = Path(text).expanduser()
    if path.exists():
        return path
    released = find_released(text)
    if released is None:
        raise FileNotFoundError(_nothing_there(text))
    root = None if download_root is None else Path(download_root).expanduser()
    if (found := _find_local(released, root)) is not None:
        return found
    return _fetch(released, root or cache_dir() / _CACHE_FOLDER, source)


def download(
    url: str,
    target: Path,
    *,
    num_bytes: int | None = None,
    tolerance: float = 0.0,
    sha256: str | None = None,
) -> Path:
    """Fetches one file, with a progress bar on a terminal; an interrupted one is continued.

    What arrives lies in `<target>.partial` until it is complete and checked, so that nobody ever
    reads half a file. A server that cannot continue sends it again from the start. A checksum that
    the server gives (the hub's `X-Linked-ETag`) is checked too.

    Args:
      url: `http` or `https` address.
      target: the file to write.
      num_bytes: expected size; None checks that what the server promised has come.
      tolerance: share by which the size may differ.
      sha256: expected checksum, hexadecimal.

    Returns:
      `target`.

    Raises:
      ConnectionError: if the server cannot be reached, refuses, or breaks off.
      ValueError: if the file has another size or checksum; it is removed then.
    """
    partial = target.with_name(f"{target.name}.partial")
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target):
        if target.exists():  # another process fetched it while this one waited
            return target
        with _opened(url, partial.stat().st_size if partial.exists() else 0) as answer:
            _check_size(url, answer.total, num_bytes, tolerance)
            _receive(url, answer, partial)
        try:
            _check_size(url, partial.stat().st_size, num_bytes, tolerance)
            _check_sum(url, partial, sha256 or answer.sha256)
        except ValueError:
            partial.unlink()
            raise
        partial.replace(target)
    return target


def _find_local(released: Released, root: Path | None) -> Path | None:
    """Where a checkpoint lies already. A file of another size is passed over with a warning."""
    folders = [] if root is None else [root]
    folders += [cache_dir() / _CACHE_FOLDER, Path.home() / ".cache" / "clip"]
    snapshots = _hub_cache() / f"models--{ORGANISATION}--{released.repository}" / "snapshots"
    folders += [folder / released.repository for folder in folders]
    folders += sorted(snapshots.glob("*"), key=lambda path: path.stat().st_mtime, reverse=True)
    for folder in folders:
        file = folder / released.file
        if file.is_file():
            try:
                _check_size(str(file), file.stat().st_size, released.num_bytes, SIZE_TOLERANCE)
            except ValueError as error:
                logger.warning("%s; passed over", error)
                continue
            return file
    for folder in folders:
        whole = (folder / "config.json").is_file() and any(
            (folder / f).is_file() for f in _HUB_FILES
        )
        if whole and folder.name not in ("clip", _CACHE_FOLDER):
            return folder
    return None


def _hub_cache() -> Path:
    """The folder in which the hub's own client keeps what it fetched."""
    if chosen := os.environ.get("HF_HUB_CACHE"):
        return Path(chosen).expanduser()
    if home := os.environ.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).expanduser() / "huggingface" / "hub"


def _fetch(released: Released, folder: Path, source: str) -> Path:
    endpoint = (os.environ.get("HF_ENDPOINT") or _HUB).rstrip("/")
    url = SOURCES[source].format(
        endpoint=endpoint, repository=released.repository, file=released.file
    )
    target = folder / released.file
    if is_offline():
        raise FileNotFoundError(
            f"{released.name} lies neither in {folder} nor in the hub's cache, and JAXLAB_OFFLINE "
            f"is set; run once with JAXLAB_OFFLINE=0, or put {url} there as {target}"
        )
    # A warning, so that it shows where nobody has set up a log: this takes minutes.
    logger.warning(
        "%s is not on this machine: fetching %.2f GB from %s into %s",
        released.name, released.num_bytes / 1e9, url, target.parent,
    )  # fmt: skip
    try:
        return download(url, target, num_bytes=released.num_bytes, tolerance=SIZE_TOLERANCE)
    except ConnectionError as error:
        raise ConnectionError(
            f"{released.name}: {error}. Else download the file by other means and give its path in "
            f"place of the name, or put it there as {target}; the variable HF_ENDPOINT gives a "
            "mirror, load(..., source='modelscope') another hub"
        ) from None


def _nothing_there(text: str) -> str:
    names = [name for r in RELEASED for name in (r.name, r.repository)]
    close = difflib.get_close_matches(text.removeprefix(f"{ORGANISATION}/"), names, n=1)
    hint = f"; the nearest name is {close[0]}" if close else ""
    return (
        f"{text!r} is neither a path that exists nor a released model{hint}; give a file or folder "
        f"of weights, or one of {', '.join(available_models())}"
    )


class _Answer(NamedTuple):
    """An open answer of a server.

    Attributes:
      stream: what it sends.
      start: the byte that it begins with.
      total: size of the whole file; None if the server does not say.
      sha256: checksum that it gives; None if it gives none.
    """

    stream: IO[bytes]
    start: int
    total: int | None
    sha256: str | None


class _KeepLinkedHeaders(urllib.request.HTTPRedirectHandler):
    """Follows redirects and keeps the checksum and the size that the hub gives in the first."""

    def __init__(self) -> None:
        self.linked: dict[str, str] = {}

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # noqa: D102
        for name in ("X-Linked-ETag", "X-Linked-Size"):
            if headers.get(name):
                self.linked[name] = headers[name]
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@contextlib.contextmanager
def _opened(url: str, have: int) -> Iterator[_Answer]:
    """The server's answer, from the byte `have` on where it can."""
    keep = _KeepLinkedHeaders()
    opener = urllib.request.build_opener(keep)
    headers = {"User-Agent": "jaxlab", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        response = _open_in_time(opener, urllib.request.Request(url, headers=headers))
    except urllib.error.HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and have:
            # All of it is here already, or more than there is: ask from the start.
            with _opened(url, 0) as answer:
                yield answer
            return
        raise ConnectionError(
            f"{url}: the server answers {error.code} {error.reason}; check the address"
        ) from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise ConnectionError(f"{url} cannot be reached ({reason}); check the network") from None
    with response:
        yield _read_headers(response, have, keep.linked)


def _open_in_time(opener: urllib.request.OpenerDirector, request: urllib.request.Request) -> Any:
    """The server's answer within `TIMEOUT_S`.

    The time limit of a socket is that of one attempt: it does not hold for the look-up of a name,
    and a host of many addresses, none of which answers, is tried for minutes.
    """
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(opener.open(request, timeout=TIMEOUT_S))
        except Exception as error:
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=TIMEOUT_S)
    except queue.Empty:
        raise TimeoutError(f"no answer in {TIMEOUT_S:.0f} s") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _read_headers(response: Any, have: int, linked: Mapping[str, str]) -> _Answer:
    length = response.headers.get("Content-Length")
    length = int(length) if length and length.isdigit() else None
    start, total = 0, length
    part = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range") or "")
    if response.status == http.client.PARTIAL_CONTENT and part and int(part[1]) == have:
        start, total = have, None if part[2] == "*" else int(part[2])
    tag = (linked.get("X-Linked-ETag") or response.headers.get("X-Linked-ETag") or "").strip('"')
    return _Answer(response, start, total, tag if re.fullmatch(r"[0-9a-f]{64}", tag) else None)


def _receive(url: str, answer: _Answer, partial: Path) -> None:
    """Writes what comes behind what is there."""
    from tqdm import tqdm

    with (
        partial.open("r+b" if answer.start else "wb") as file,
        tqdm(
            total=answer.total, initial=answer.start, unit="B", unit_scale=True,
            desc=partial.name.removesuffix(".partial"), disable=None,
        ) as bar,
    ):  # fmt: skip
        file.seek(answer.start)
        file.truncate()
        try:
            while block := answer.stream.read(_BLOCK):
                file.write(block)
                bar.update(len(block))
        except (OSError, http.client.HTTPException) as error:
            raise ConnectionError(
                f"{url} broke off after {file.tell():,} bytes ({error}); start again to continue"
            ) from None
        if answer.total is not None and file.tell() != answer.total:
            raise ConnectionError(
                f"{url} ended after {file.tell():,} of {answer.total:,} bytes; start again to "
                "continue"
            )


def _check_size(what: str, size: int | None, wanted: int | None, tolerance: float) -> None:
    if size is None or wanted is None:
        return
    if not wanted * (1 - tolerance) <= size <= wanted * (1 + tolerance):
        raise ValueError(
            f"{what} has {size:,} bytes, and the checkpoint has about {wanted:,}; it is truncated, "
            "or another file"
        )


def _check_sum(url: str, path: Path, sha256: str | None) -> None:
    if sha256 is not None and (got := file_sha256(path)) != sha256.lower():
        raise ValueError(
            f"{url}: the SHA-256 of what came is {got}, and {sha256.lower()} was promised; it was "
            "damaged on the way and is removed: start again"
        )


@contextlib.contextmanager
def _locked(target: Path) -> Iterator[None]:
    """One process at a time fetches a file; the lock goes with the process."""
    try:
        import fcntl
    except ImportError:  # Windows has no flock: two processes may fetch the same file there
        yield
        return
    with target.with_name(f".{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
