"""Make the certificates of a server and the keys of its nodes.

    python -m experiments.federated.make_keys --workdir=keys --clients=3 --host=fl.example.org

The folder gets `ca.crt` (who is trusted), `server.crt` and `server.key` (TLS), and for every client
`client_1` (what its node proves who it is with) and `client_1.pub` (what the server knows of it).
Give every node `ca.crt` and its own key, and nobody else the keys: they are the identity of the
server and of the nodes.
"""

import datetime
import importlib
import ipaddress
import os
from pathlib import Path
from typing import Any

from absl import flags

from experiments.common import run
from jaxlab.training.workdir import open_workdir

_CLIENTS = flags.DEFINE_integer("clients", None, "Clients to make keys for.", 1)
_HOST = flags.DEFINE_list(
    "host", ["localhost", "127.0.0.1"], "Names and addresses that nodes call the server by."
)
_DAYS = flags.DEFINE_integer("days", 365, "Days that the certificates are good for.", 1, 36_500)

CA, CERTIFICATE, KEY = "ca.crt", "server.crt", "server.key"
_SERIALIZATION = "hazmat.primitives.serialization"
_CURVES = "hazmat.primitives.asymmetric.ec"


def main(workdir: Path) -> None:
    """Make what is missing; what is there stays, so that clients can be added."""
    if not _CLIENTS.value:
        raise ValueError("--clients is missing; give the number of clients, such as 3")
    if wrong := [host for host in _HOST.value or [""] if not host.isascii() or not host.strip()]:
        raise ValueError(
            f"--host={','.join(_HOST.value)}: {wrong[0]!r} is no name or address of the server; "
            "wanted such as localhost,fl.example.org (names with other letters in xn-- form)"
        )
    workdir = open_workdir(workdir)
    there = [name for name in (CA, CERTIFICATE, KEY) if (workdir / name).exists()]
    if not there:
        make_certificates(workdir, _HOST.value, _DAYS.value)
    elif len(there) < 3:
        raise FileNotFoundError(
            f"{workdir} has only {' and '.join(there)} of {CA}, {CERTIFICATE} and {KEY}; they are "
            "made together: restore the others, or name a new folder"
        )
    made = [n for n in range(1, _CLIENTS.value + 1) if make_node_key(workdir, n)]
    print(f"{workdir}: {CA}, {CERTIFICATE}, {KEY}, and keys of {_CLIENTS.value} clients")
    print(f"new: {len(made)} keys. Give a node {CA} and client_N, and nobody else the keys")


def key_file(folder: Path, client: int) -> Path:
    """The private key of a client's node."""
    return folder / f"client_{client}"


def make_certificates(folder: Path, hosts: list[str], days: int) -> None:
    """Writes a certificate authority of its own, and a server's certificate that it signs.

    The authority's key is forgotten: nobody can sign another server with it.

    Args:
      folder: where to.
      hosts: names and addresses of the server.
      days: that both are good for.
    """
    x509, hashes = _cryptography("x509"), _cryptography("hazmat.primitives.hashes")
    serialization, ec = (_cryptography(name) for name in (_SERIALIZATION, _CURVES))
    authority, server = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
    names = [x509.SubjectAlternativeName([_subject(host) for host in hosts])]
    signed = _certificate("jaxlab federation", authority, authority, days, is_authority=True)
    own = _certificate(hosts[0], server, authority, days, names)
    pem = serialization.Encoding.PEM
    _write(folder / CA, signed.sign(authority, hashes.SHA384()).public_bytes(pem), 0o644)
    _write(folder / CERTIFICATE, own.sign(authority, hashes.SHA384()).public_bytes(pem), 0o644)
    private = server.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _write(folder / KEY, private, 0o600)


def make_node_key(folder: Path, client: int) -> bool:
    """Writes the two keys of a client's node, unless they are there; gives whether it did.

    Args:
      folder: where to.
      client: id of the client.
    """
    serialization, ec = (_cryptography(name) for name in (_SERIALIZATION, _CURVES))
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
    _write(path, private, 0o600)
    _write(path.with_suffix(".pub"), public + b"\n", 0o644)
    return True


def _certificate(
    name: str, key: Any, authority: Any, days: int, names: Any = (), is_authority: bool = False
) -> Any:
    """A certificate that is ready to be signed by the authority."""
    x509, oid = _cryptography("x509"), _cryptography("x509.oid")

    def entitle(text: str) -> Any:
        return x509.Name([x509.NameAttribute(oid.NameOID.COMMON_NAME, text[:64])])

    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(entitle(name))
        .issuer_name(entitle("jaxlab federation"))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=10))  # clocks differ
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(is_authority, 0 if is_authority else None), True)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), False
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
    )
    signs = {"key_cert_sign": is_authority, "crl_sign": is_authority}
    others = (
        "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
        "encipher_only", "decipher_only",
    )  # fmt: skip
    usage = x509.KeyUsage(digital_signature=True, **signs, **dict.fromkeys(others, False))
    builder = builder.add_extension(usage, True)
    for extension in names:
        builder = builder.add_extension(extension, False)
    if is_authority:
        return builder
    serves = x509.ExtendedKeyUsage([oid.ExtendedKeyUsageOID.SERVER_AUTH])
    return builder.add_extension(serves, False)


def _subject(host: str) -> Any:
    x509 = _cryptography("x509")
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _cryptography(module: str) -> Any:
    """A module of the package cryptography, which comes with Flower.

    Raises:
      ModuleNotFoundError: saying how to install it.
    """
    try:
        return importlib.import_module(f"cryptography.{module}")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'keys need the package cryptography ({error}): pip install "jaxlab[flower]"'
        ) from error


def _write(path: Path, data: bytes, mode: int) -> None:
    """Writes a file that from the start only those may read who shall."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)


if __name__ == "__main__":
    run(main)
