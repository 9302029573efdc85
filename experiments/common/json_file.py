"""The flag `--json` of the programs that write their numbers to a file."""

import json
from pathlib import Path
from typing import Any

from absl import flags

_JSON = flags.DEFINE_string("json", None, "File to write the numbers to.")


def json_target() -> Path | None:
    """Where to write, checked before the work begins; None if nothing is wanted.

    Raises:
      ValueError: if the file cannot be written.
    """
    path = _JSON.value
    if path is None:
        return None
    target = Path(path).expanduser()
    if not target.parent.is_dir() or target.is_dir():
        raise ValueError(f"--json={path} cannot be written; give a file in a folder that exists")
    return target


def write_json(target: Path, content: Any) -> None:
    """Write numbers and say so.

    Args:
      target: the file.
      content: what JSON can hold.
    """
    target.write_text(json.dumps(content, indent=1))
    print(f"Written: {target}")
