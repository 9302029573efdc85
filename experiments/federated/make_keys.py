"""Make the certificates of a server and the keys of its nodes.

    python -m experiments.federated.make_keys --workdir=keys --clients=3 --host=fl.example.org

The folder gets `ca.crt` (who is trusted), `server.crt` and `server.key` (TLS), and for every client
`client_1` (what its node proves who it is with) and `client_1.pub` (what the server knows of it).
Give every node `ca.crt` and its own key, and nobody else the keys: they are the identity of the
server and of the nodes. Run again, it adds clients; `--renew` makes new certificates and keeps the
keys of the nodes.
"""

from pathlib import Path

from absl import flags

from experiments.common import run
from experiments.federated.certificates import (
    CA,
    CERTIFICATE,
    CURVES,
    KEY,
    SERIALIZATION,
    cryptography,
    describe_end,
    make_certificates,
    missing_names,
    read_certificate,
    write_new,
)
from jaxlab.training.workdir import open_workdir

_CLIENTS = flags.DEFINE_integer("clients", None, "Clients to make keys for.", 1)
_HOST = flags.DEFINE_list(
    "host",
    None,
    "Names and addresses that nodes call the server by, beside localhost, 127.0.0.1 and ::1.",
)
_DAYS = flags.DEFINE_integer("days", 365, "Days that the certificates are good for.", 1, 36_500)
_RENEW = flags.DEFINE_boolean(
    "renew", False, "Make new certificates; every node needs the new ca.crt then."
)


def main(workdir: Path) -> None:
    """Make what is missing; what is there stays, so that clients can be added."""
    if not _CLIENTS.value:
        raise ValueError("--clients is missing; give the number of clients, such as 3")
    asked = None if _HOST.value is None else _HOST.value or [""]
    if wrong := [host for host in asked or () if not host.isascii() or not host.strip()]:
        raise ValueError(
            f"--host={','.join(asked or ())}: {wrong[0]!r} is no name or address of the server; "
            "wanted such as localhost,fl.example.org (names with other letters in xn-- form)"
        )
    workdir = open_workdir(workdir)
    there = [name for name in (CA, CERTIFICATE, KEY) if (workdir / name).exists()]
    if not there or _RENEW.value:
        make_certificates(workdir, asked or _names_of(workdir), _DAYS.value)
    elif len(there) < 3:
        raise FileNotFoundError(
            f"{workdir} has only {' and '.join(there)} of {CA}, {CERTIFICATE} and {KEY}; they are "
            "made together: restore the others, make new ones with --renew, or name a new folder"
        )
    else:
        check_asked(workdir, asked or [])
    made = [n for n in range(1, _CLIENTS.value + 1) if make_node_key(workdir, n)]
    certificate = read_certificate(workdir / CERTIFICATE)
    print(f"{workdir}: {CA}, {CERTIFICATE}, {KEY}, and keys of {_CLIENTS.value} clients")
    print(f"The server is {', '.join(certificate.names)}, until {certificate.until:%Y-%m-%d}")
    if end := describe_end(certificate):
        print(f"WARNING: {CERTIFICATE} {end}; make new certificates with --renew")
    print(f"new: {len(made)} keys. Give a node {CA} and client_N, and nobody else the keys")
    if _RENEW.value and there:
        print(f"The certificates are new: start deploy again, and give every node the new {CA}")


def check_asked(folder: Path, hosts: list[str]) -> None:
    """Whether the certificate that is there is what is asked for.

    Args:
      folder: of keys.
      hosts: names and addresses that are asked for.

    Raises:
      ValueError: if it is for other names or has ended, saying what to do.
    """
    found = read_certificate(folder / CERTIFICATE)
    if missing := missing_names(found, hosts):
        raise ValueError(
            f"{folder / CERTIFICATE} is for {', '.join(found.names)} and not for "
            f"{', '.join(missing)}. Make new certificates with --renew --host={','.join(hosts)}, "
            f"and give every node the new {CA} (keys of nodes stay); or leave --host out"
        )
    if (end := describe_end(found)).startswith("has expired"):
        raise ValueError(
            f"{folder / CERTIFICATE} {end}. Make new certificates with --renew, and give every "
            f"node the new {CA}; keys of nodes stay"
        )


def _names_of(folder: Path) -> tuple[str, ...]:
    """The names of the certificate in a folder, none if there is none."""
    path = folder / CERTIFICATE
    return read_certificate(path).names if path.exists() else ()


def key_file(folder: Path, client: int) -> Path:
    """The private key of a client's node."""
    return folder / f"client_{client}"


def make_node_key(folder: Path, client: int) -> bool:
    """Writes the two keys of a client's node, unless they are there; gives whether it did.

    Args:
      folder: where to.
      client: id of the client.
    """
    serialization, ec = (cryptography(name) for name in (SERIALIZATION, CURVES))
    path = key_file(folder, client)
    if path.exists():
        return False
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    write_new(path, private, 0o600)
    write_new(path.with_suffix(".pub"), public + b"\n", 0o644)
    return True


if __name__ == "__main__":
    run(main)
