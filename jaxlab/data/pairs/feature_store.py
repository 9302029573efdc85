"""Features as array files that are mapped into memory, written in pieces and resumed after a kill.

`{name}.npy` has the rows (float32), `{name}.ids.npy` their ids (int64) and `{name}.json` what they
were made from. While they are being made the rows lie in `{name}.npy.part`, and `{name}.json` says
how many of them are final.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int64

from jaxlab.data.pairs.records import replaced_file, require_file

COPIED_ROWS = 65536


class FeatureWriter:
    """Rows of features written in order. Rows that were written before a kill are kept.

    Args:
      path: ends in `.npy`.
      ids: the id of every row, distinct.
      dim: length of a row.
      source: what the rows are made from: weights, type of the computation, input file. Rows of
        another source, or other ids, are not continued.

    Attributes:
      rows_done: how many rows are final; the next one to write.
      is_complete: whether the files are finished.

    Raises:
      ValueError: for another ending, or if the files hold features of another source.
    """

    def __init__(self, path: str | Path, ids: Int64[np.ndarray, " rows"], dim: int, source: str):
        self.path = Path(path)
        if self.path.suffix != ".npy":
            raise ValueError(f"{path} ends in {self.path.suffix!r}; expected '.npy'")
        self._part, self._state = self.path.with_name(self.path.name + ".part"), state_file(path)
        self._ids = ids
        self._made_from = {
            "source": source,
            "ids_sha256": hashlib.sha256(ids.astype("<i8").tobytes()).hexdigest(),
            "rows": len(ids),
            "dim": dim,
        }
        self.rows_done, self._skipped = self._find_rows()
        self.is_complete = self.path.exists() and self.rows_done == len(ids)
        if self.is_complete:
            return
        if not self.rows_done:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            np.lib.format.open_memmap(self._part, "w+", np.float32, (len(ids), dim)).flush()
            self._note_rows()
        self._rows = np.lib.format.open_memmap(self._part, "r+")

    def write(
        self, rows: Float[np.ndarray, "rows dim"], skipped: Int64[np.ndarray, " skipped"]
    ) -> None:
        """Appends rows; when it returns they outlast a kill.

        Args:
          rows: features of the next ids.
          skipped: positions among them that have none; they are left out at the end.
        """
        self._rows[self.rows_done : self.rows_done + len(rows)] = rows
        self._rows.flush()
        self._skipped += (self.rows_done + skipped).tolist()
        self.rows_done += len(rows)
        self._note_rows()

    def finish(self) -> int:
        """Gives the files their names.

        Returns:
          The number of rows, without those skipped.

        Raises:
          ValueError: if rows are missing, or all were skipped.
        """
        kept = np.setdiff1d(np.arange(len(self._ids)), np.array(self._skipped, np.int64))
        if self.is_complete:
            return len(kept)
        if self.rows_done < len(self._ids) or not len(kept):
            raise ValueError(
                f"{self.path}: {self.rows_done} of {len(self._ids)} rows are written and "
                f"{len(self._skipped)} of them were skipped; expected all, and at least one kept"
            )
        with replaced_file(ids_file(self.path)) as file:
            np.save(file, self._ids[kept])
        if self._skipped:
            self._copy_kept(kept)
        else:
            os.replace(self._part, self.path)
        self._part.unlink(missing_ok=True)
        self.is_complete = True
        return len(kept)

    def _copy_kept(self, kept: Int64[np.ndarray, " kept"]) -> None:
        compact = self._part.with_suffix(".kept")
        shape = (len(kept), self._made_from["dim"])
        rows = np.lib.format.open_memmap(compact, "w+", np.float32, shape)
        for start in range(0, len(kept), COPIED_ROWS):
            chosen = kept[start : start + COPIED_ROWS]
            rows[start : start + len(chosen)] = self._rows[chosen]
        rows.flush()
        os.replace(compact, self.path)

    def _find_rows(self) -> tuple[int, list[int]]:
        """What an earlier run has left: final rows and those skipped."""
        if not self._state.exists():
            if self.path.exists():
                raise ValueError(
                    f"{self.path} exists, and {self._state.name} beside it, which says what it was "
                    "made from, does not; move it away, or write elsewhere"
                )
            return 0, []
        state = read_state(self._state)
        differ = [name for name, value in self._made_from.items() if state.get(name) != value]
        if differ:
            name = differ[0]
            raise ValueError(
                f"{self.path} holds features of another run: {name} is {state.get(name)!r} there "
                f"and {self._made_from[name]!r} here; delete {self._state.name} and "
                f"{self.path.name} to make them anew, or write elsewhere"
            )
        present = self.path.exists() or self._part.exists()
        return (int(state["rows_done"]), list(state["skipped"])) if present else (0, [])

    def _note_rows(self) -> None:
        state = {**self._made_from, "rows_done": self.rows_done, "skipped": self._skipped}
        with replaced_file(self._state) as file:
            file.write(json.dumps(state).encode() + b"\n")


def write_feature_arrays(
    path: str | Path, ids: Int64[np.ndarray, " rows"], rows: Float[np.ndarray, "rows dim"]
) -> None:
    """Writes features that are in memory, replacing what is there.

    Args:
      path: ends in `.npy`; the ids go beside it.
      ids: the id of every row.
      rows: features.
    """
    state_file(path).unlink(missing_ok=True)
    for name, array in ((ids_file(path), ids), (Path(path), rows.astype(np.float32))):
        with replaced_file(name) as file:
            np.save(file, array)


def read_feature_arrays(
    path: str | Path,
) -> tuple[Int64[np.ndarray, " rows"], Float32[np.ndarray, "rows dim"]]:
    """Ids, and features mapped into memory: they are read where they are looked at.

    Args:
      path: the `.npy` file; its ids lie beside it.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: if the files do not belong together.
    """
    path = Path(path)
    if not path.exists() and path.with_name(path.name + ".part").exists():
        raise FileNotFoundError(
            f"{path} is not finished ({path.name}.part is there); run the command that makes it "
            "again, it goes on where it stopped"
        )
    rows = _load(require_file(path, "an array of features"), "r")
    ids = _load(require_file(ids_file(path), f"the ids of {path.name}"), None)
    if rows.ndim != 2 or ids.shape != rows.shape[:1] or ids.dtype.kind != "i":
        raise ValueError(
            f"{path} has shape {rows.shape} and {ids_file(path).name} {ids.shape} of {ids.dtype}; "
            "expected rows of numbers, and one integer id a row"
        )
    if rows.dtype != np.float32:
        rows = rows.astype(np.float32)
    return ids.astype(np.int64), rows


def ids_file(path: str | Path) -> Path:
    """The file of the ids of a `.npy` file of features."""
    return Path(path).with_suffix(".ids.npy")


def state_file(path: str | Path) -> Path:
    """The file that says what features were made from, and how many rows are final."""
    return Path(path).with_suffix(".json")


def read_state(path: Path) -> dict[str, Any]:
    """What a state file holds.

    Raises:
      ValueError: if it is damaged.
    """
    try:
        state = json.loads(path.read_bytes())
        if not isinstance(state, dict) or not {"rows_done", "skipped"} <= state.keys():
            raise ValueError("it lacks rows_done and skipped")
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}); delete it and the arrays beside it to make them anew"
        ) from error
    return state


def _load(path: Path, mmap_mode: Any) -> np.ndarray:
    try:
        return np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is no array file ({error}), or was cut short") from error
