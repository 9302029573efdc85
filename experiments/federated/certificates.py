"""Certificates of a server: made, read, and tried from the side of those that call it."""

import datetime
import ipaddress
import os
import socket
import ssl
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxlab.federated.deployment.extras import needed_module

CA, CERTIFICATE, KEY = "ca.crt", "server.crt", "server.key"
LOCAL = ("localhost", "127.0.0.1", "::1")
"""Names by which a server is reached from its own machine; every certificate is for them, too."""
SOON_DAYS = 30
SERIALIZATION = "hazmat.primitives.serialization"
CURVES = "hazmat.primitives.asymmetric.ec"

_OTHER_NAME = (62, 64)
_NOT_SIGNED = (2, 7, 18, 19, 20, 21)
_NOT_YET, _EXPIRED = 9, 10
"""What OpenSSL calls why it does not trust a certificate (`X509_V_ERR_*`)."""
_AGAIN = "make_keys makes new certificates with --renew; then give every node the new ca.crt"


class Certificate(NamedTuple):
    """What a server's certificate says.

    Attributes:
      names: names and addresses of the server, in order.
      until: when it ends.
    """

    names: tuple[str, ...]
    until: datetime.datetime


class Trouble(NamedTuple):
    """Why a server cannot be called.

    Attributes:
      text: in words.
      is_final: whether waiting does not help.
    """

    text: str
    is_final: bool = False


def make_certificates(folder: Path, hosts: Sequence[str], days: int) -> None:
    """Writes a certificate authority of its own, and a server's certificate that it signs.

    The authority's key is forgotten: nobody can sign another server with it. Files of the same
    names are replaced.

    Args:
      folder: where to.
      hosts: names and addresses of the server; those on its own machine are added.
      days: that both are good for.
    """
    x509, hashes = cryptography("x509"), cryptography("hazmat.primitives.hashes")
    serialization, ec = (cryptography(name) for name in (SERIALIZATION, CURVES))
    authority, server = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
    known = all_names(hosts)
    names = [x509.SubjectAlternativeName([_subject(host) for host in known])]
    signed = _certificate("jaxlab federation", authority, authority, days, is_authority=True)
    own = _certificate(known[0], server, authority, days, names)
    pem = serialization.Encoding.PEM
    private = server.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for name in (CA, CERTIFICATE, KEY):
        (folder / name).unlink(missing_ok=True)
    write_new(folder / CA, signed.sign(authority, hashes.SHA384()).public_bytes(pem), 0o644)
    write_new(folder / CERTIFICATE, own.sign(authority, hashes.SHA384()).public_bytes(pem), 0o644)
    write_new(folder / KEY, private, 0o600)


def all_names(hosts: Iterable[str]) -> tuple[str, ...]:
    """The names that are asked for and those of the server's own machine, each once."""
    return tuple(dict.fromkeys((*map(_plain, hosts), *LOCAL)))


def read_certificate(path: Path) -> Certificate:
    """What a certificate says.

    Args:
      path: a file in PEM form.

    Raises:
      ValueError: if it holds no certificate.
    """
    x509 = cryptography("x509")
    try:
        found = x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} holds no certificate ({error}); {_AGAIN}") from error
    try:
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        names = ()
    return Certificate(tuple(str(name.value) for name in names), found.not_valid_after_utc)


def missing_names(certificate: Certificate, hosts: Iterable[str]) -> list[str]:
    """The names that a certificate is not for.

    Args:
      certificate: as read.
      hosts: names and addresses.
    """
    known = {_plain(name) for name in certificate.names}

    def is_known(host: str) -> bool:
        _, _, domain = host.partition(".")
        return host in known or f"*.{domain}" in known

    return [host for host in map(_plain, hosts) if not is_known(host)]


def describe_end(certificate: Certificate, now: datetime.datetime | None = None) -> str:
    """Says that a certificate has ended, or ends within `SOON_DAYS`; empty if it does not.

    Args:
      certificate: as read.
      now: the time; None asks the clock.
    """
    left = certificate.until - (now or datetime.datetime.now(datetime.UTC))
    if left <= datetime.timedelta(0):
        return f"has expired on {certificate.until:%Y-%m-%d}"
    days = left.days
    return f"expires in {days} days, on {certificate.until:%Y-%m-%d}" if days < SOON_DAYS else ""


def check_certificate(path: Path, host: str) -> str:
    """Whether a server may show a certificate to those who call it by a name.

    Args:
      path: of the certificate.
      host: the name or address.

    Returns:
      A warning if it ends soon, empty if not.

    Raises:
      ValueError: if it is for other names, or has ended.
    """
    found = read_certificate(path)
    if missing_names(found, [host]):
        raise ValueError(
            f"{path} is for {', '.join(found.names) or 'no name'}, and the server is called by "
            f"{host}, too. {_AGAIN}"
        )
    if (end := describe_end(found)).startswith("has expired"):
        raise ValueError(f"{path} {end}. {_AGAIN}")
    return f"{path} {end}. {_AGAIN}" if end else ""


def find_trouble(host: str, port: int, authority: Path, patience_s: float = 5.0) -> Trouble | None:
    """Why a server cannot be called by those who trust an authority; None if it can.

    Args:
      host: name or address.
      port: of the server.
      authority: file of the authority's certificate.
      patience_s: seconds that it may take.

    Raises:
      ValueError: if the authority's file holds no certificate.
    """
    at = f"{host}:{port}"
    try:
        context = ssl.create_default_context(cafile=str(authority))
    except ssl.SSLError as error:
        raise ValueError(f"{authority} holds no certificate ({error.reason})") from error
    try:
        with socket.create_connection((host, port), patience_s) as plain:
            context.wrap_socket(plain, server_hostname=host).close()
    except ssl.SSLCertVerificationError as error:
        return Trouble(_describe_distrust(error, host, port, authority, patience_s), is_final=True)
    except ssl.SSLError as error:
        return Trouble(f"what answers at {at} does not speak TLS as a SuperLink does: {error}")
    except ConnectionRefusedError:
        return Trouble(f"nothing answers at {at} (connection refused); is deploy running there?")
    except socket.gaierror as error:
        return Trouble(f"this machine knows no {host!r} ({error.strerror})")
    except TimeoutError:
        return Trouble(f"{at} does not answer within {patience_s:g} s; is a firewall between?")
    except OSError as error:
        return Trouble(f"{at} cannot be reached: {error}")
    return None


def _describe_distrust(
    error: ssl.SSLCertVerificationError, host: str, port: int, authority: Path, patience_s: float
) -> str:
    at, why = f"{host}:{port}", f"(CERTIFICATE_VERIFY_FAILED: {error.verify_message})"
    match error.verify_code:
        case code if code in _OTHER_NAME:
            names = ", ".join(_shown_names(host, port, authority, patience_s)) or "no name"
            return (
                f"the certificate of the server at {at} is for {names}, not for {host} {why}. Call "
                f"it by one of these names, or make certificates with --host={host}: {_AGAIN}"
            )
        case code if code in _NOT_SIGNED:
            return (
                f"the certificate of the server at {at} is not signed by {authority} {why}. Copy "
                "ca.crt from the server's folder of keys again"
            )
        case code if code == _EXPIRED:
            return f"a certificate of the server at {at} has expired {why}. {_AGAIN}"
        case code if code == _NOT_YET:
            return f"the certificate of {at} is not valid yet {why}; look at both clocks"
    return f"the certificate of the server at {at} is not trusted {why}"


def _shown_names(host: str, port: int, authority: Path, patience_s: float) -> list[str]:
    """The names in the certificate that a server shows."""
    context = ssl.create_default_context(cafile=str(authority))
    context.check_hostname = False
    try:
        with (
            socket.create_connection((host, port), patience_s) as plain,
            context.wrap_socket(plain) as connection,
        ):
            shown = connection.getpeercert() or {}
    except OSError:
        return []
    return [_plain(str(entry[1])) for entry in shown.get("subjectAltName", ())]


def _certificate(
    name: str, key: Any, authority: Any, days: int, names: Any = (), is_authority: bool = False
) -> Any:
    """A certificate that is ready to be signed by the authority."""
    x509, oid = cryptography("x509"), cryptography("x509.oid")

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


def _plain(host: str) -> str:
    """A name or address in the one form in which they are compared."""
    try:
        return str(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        return host.lower()


def _subject(host: str) -> Any:
    x509 = cryptography("x509")
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def cryptography(module: str) -> Any:
    """A module of the package cryptography, or an error that says how to install it.

    Args:
      module: its name within the package.
    """
    return needed_module(f"cryptography.{module}", "keys need the package cryptography")


def write_new(path: Path, data: bytes, mode: int) -> None:
    """Writes a new file that from the start only those may read who shall.

    Args:
      path: of a file that does not exist.
      data: what it shall hold.
      mode: who may do what with it.
    """
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)
