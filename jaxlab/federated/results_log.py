"""Results of a course as lines of a file: written as JSON, read also as the original writes them.

References:
  `federatedscope/core/monitors/monitor.py` (`save_formatted_results`) of FederatedScope 0.3.0,
  which writes `str(dict)`; nothing of a line is run here.
"""

import ast
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxlab.federated.strategy import ConfigError

_logger = logging.getLogger(__name__)


def append_row(path: str | os.PathLike[str], row: Mapping[str, Any]) -> None:
    """Adds a line; after a broken last line, which a killed run leaves, it begins a new one.

    Args:
      path: of the file.
      row: names and what JSON can hold; numbers that are not finite are written as `NaN` and
        `Infinity`, as Python reads them.
    """
    file = Path(path)
    ends = not file.exists() or file.read_bytes()[-1:] in (b"", b"\n")
    with file.open("a", encoding="utf-8") as lines:
        lines.write(("" if ends else "\n") + json.dumps(dict(row)) + "\n")


def read_rows(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rows of a file, of lines in JSON or as the original writes them.

    Lines that are cut off, as where a run was killed, are left out and counted in the log.

    Args:
      path: of the file.

    Raises:
      ConfigError: (a ValueError) if there is no such file, or no line of it is a row.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"{file} is no file; wanted the results of a course, a line each")
    lines = [line for line in file.read_text("utf-8", "replace").splitlines() if line.strip()]
    rows = [_parse(line) for line in lines]
    found = [row for row in rows if row is not None]
    if lines and not found:
        raise ConfigError(
            f"{file}: none of {len(lines)} lines is a row; wanted JSON, or a dictionary as Python "
            f"writes it; the first is {lines[0][:60]!r}"
        )
    if len(found) < len(lines):
        _logger.warning("%s: %d broken lines are left out", file, len(lines) - len(found))
    return found


def _parse(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        row = _parse_literal(line)
    return row if isinstance(row, dict) else None


def _parse_literal(line: str) -> Any:
    try:
        tree = _Numbers().visit(ast.parse(line.strip(), mode="eval"))
        return ast.literal_eval(tree)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None


class _Numbers(ast.NodeTransformer):
    """Makes constants of `nan`, `inf` and `np.float64(0.5)`, which are no literals."""

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Constant(float(node.id)) if node.id in ("nan", "inf") else node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        is_number = isinstance(node.func, ast.Attribute) and node.func.attr.startswith(
            ("float", "int")
        )
        return self.visit(node.args[0]) if is_number and len(node.args) == 1 else node
