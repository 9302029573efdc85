"""A local web page to search one's own pictures in Chinese.

    python -m experiments.chinese_clip.index --weights=ViT-B-16 --folder=PICTURES --output=INDEX
    python -m experiments.chinese_clip.serve --index=INDEX

It opens on this machine alone (http://127.0.0.1:8000/) and works without a network. Click on a
picture, or give one of your own, to find pictures like it.
"""

import logging
import signal
from pathlib import Path

from absl import flags

from experiments.chinese_clip.models import WORKDIR_HELP, load_index_model
from experiments.chinese_clip.web_server import Server, Service
from experiments.common import run
from jaxlab import chinese_clip as clip

_INDEX = flags.DEFINE_string("index", None, "Index of pictures to search.", allow_override=True)
_WEIGHTS = flags.DEFINE_string(
    "weights", None, "File or folder of weights, if they are not where the index was built from.",
    allow_override=True,
)  # fmt: skip
_HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen on.")
_PORT = flags.DEFINE_integer(
    "port", 8000, "Port; 0 takes a free one.", lower_bound=0, upper_bound=65535
)
_ALLOW_HOST = flags.DEFINE_list(
    "allow_host", [], "Names under which the page may be opened, beside localhost and addresses."
)

logger = logging.getLogger(__name__)


def main(workdir: Path | None) -> None:
    """Load the index and its model, and serve until Ctrl-C or SIGTERM."""
    if _INDEX.value is None:
        raise ValueError("--index is missing; give the folder of an index")
    index = clip.load_index(_INDEX.value)
    service = Service(index, load_index_model(index, workdir, _WEIGHTS.value))
    try:
        server = Server(service, _HOST.value, _PORT.value, allowed_hosts=_ALLOW_HOST.value)
    except OSError as error:
        raise OSError(
            f"cannot listen on --host={_HOST.value} --port={_PORT.value}: {error.strerror}; give "
            "another port, or 0 for a free one"
        ) from error
    service.warm_up()
    if not Path(index.info.folder).is_dir():
        logger.warning("the pictures are not in %s any more", index.info.folder)
    serve(server, f"{len(index):,} pictures at {server.url} (Ctrl-C ends it)")


def serve(server: Server, announcement: str) -> None:
    """Answer requests until Ctrl-C or SIGTERM.

    Args:
      server: a bound server, closed at the end.
      announcement: printed once it answers and can be ended.
    """

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    # SIGINT too: a shell that starts the program in the background has it ignored.
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        print(announcement, flush=True)
        server.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        print("Stopped.", flush=True)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        server.server_close()


if __name__ == "__main__":
    run(main, workdir_help=WORKDIR_HELP)
