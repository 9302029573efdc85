"""Taking files out of wheels, source distributions and npm tarballs, safely."""

import gzip
import lzma
import shutil
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

_BROKEN = (
    EOFError,
    gzip.BadGzipFile,
    lzma.LZMAError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)


def extract_member(archive: Path, member: str, target: Path) -> None:
    """Copy one file out of a zip or tar archive.

    Args:
      archive: a wheel or zip, or a tar of any compression.
      member: its path inside, with `/`.
      target: the file to write.

    Raises:
      ValueError: if the archive is broken, or has no such member; names the nearest ones.
    """
    try:
        if archive.suffix in (".whl", ".zip"):
            with zipfile.ZipFile(archive) as packed:
                names = packed.namelist()
                if member in names:
                    with packed.open(member) as source, target.open("wb") as file:
                        return shutil.copyfileobj(source, file)
        else:
            with tarfile.open(archive) as packed:
                names = packed.getnames()
                if member in names and (source := packed.extractfile(member)) is not None:
                    with source, target.open("wb") as file:
                        return shutil.copyfileobj(source, file)
    except _BROKEN as error:
        raise _broken(archive, error) from error
    alike = [name for name in names if PurePosixPath(name).name == PurePosixPath(member).name]
    raise ValueError(
        f"{archive.name} has no file {member!r}; it has {(alike or names)[:5]} among {len(names)} "
        "entries; correct the member or the version"
    )


def extract_tar(archive: Path, target: Path) -> None:
    """Extract the regular files of a tar without its top folder; links are left out.

    Args:
      archive: a tar of any compression, all of it in one folder, as npm makes them.
      target: the directory to fill.

    Raises:
      ValueError: if the archive is broken, or a member would land outside the directory.
    """
    try:
        with tarfile.open(archive) as packed:
            for member in packed:
                parts = PurePosixPath(member.name).parts[1:]
                if not member.isfile() or not parts:
                    continue
                if ".." in parts:
                    raise ValueError(
                        f"{archive.name}: member {member.name!r} leaves the folder; refuse to "
                        "extract it, get the package from a source you trust"
                    )
                path = target.joinpath(*parts)
                path.parent.mkdir(parents=True, exist_ok=True)
                source = packed.extractfile(member)
                assert source is not None  # a regular file
                with source, path.open("wb") as file:
                    shutil.copyfileobj(source, file)
    except _BROKEN as error:
        raise _broken(archive, error) from error


def _broken(archive: Path, error: Exception) -> ValueError:
    """What to say of an archive that cannot be read."""
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return ValueError(
        f"cannot read {archive} ({archive.stat().st_size} bytes): {reason}; "
        "it is truncated or no archive; delete it to fetch it again"
    )
