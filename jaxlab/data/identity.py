"""What stored results were made from, kept beside them and compared before they are used."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxlab.data.pairs.records import replaced_file


def check_identity(
    found: Mapping[str, Any], wanted: Mapping[str, Any], folder: str | Path, what: str
) -> None:
    """Refuse results that were made from something else.

    Args:
      found: what the results in the folder were made from.
      wanted: what they would be made from now; values as JSON has them.
      folder: where they lie.
      what: their plural, such as "features".

    Raises:
      ValueError: naming every difference.
    """
    different = [
        f"{name}: {found.get(name, 'absent')} there, {wanted.get(name, 'absent')} here"
        for name in sorted(wanted.keys() | found.keys())
        if wanted.get(name) != found.get(name)
    ]
    if different:
        raise ValueError(
            f"{folder} holds {what} of something else: {'; '.join(different)}. Remove the "
            "folder to compute them again, or give another one"
        )


def read_json(path: Path, default: Any) -> Any:
    """What a JSON file holds, or the default if there is none.

    Args:
      path: the file.
      default: used where it does not exist.
    """
    return json.loads(path.read_text("utf-8")) if path.exists() else default


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file, which appears when it is complete.

    Args:
      path: the file.
      value: of dicts, lists, texts and numbers.
    """
    with replaced_file(path) as file:
        file.write(json.dumps(value, indent=2).encode("utf-8") + b"\n")
