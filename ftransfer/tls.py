"""TLS 1.3 by the standard library: certificates and their fingerprints, and both sides of the handshake.

Knows sockets and certificates, not who is trusted (`identity` does). Imported only where TLS is spoken: importing `ssl`
takes longer than a small upload.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import ssl

from ftransfer.errors import (
    ConnectionLost,
    FtransferError,
    IdentityUnknown,
    NotFound,
    Refused,
    TimedOut,
    TlsMismatch,
    UsageError,
    from_os,
)
from ftransfer.statedir import StateDir

IDENTITY = "identity.pem"
"""The server's own key and certificate, in the state folder."""
_DAYS = 36_500
_FINGERPRINT = re.compile(r"(?:sha256:)?([0-9a-f]{64})", re.ASCII)
_NO_COMMON = (
    "UNSUPPORTED_PROTOCOL",
    "TLSV1_ALERT_PROTOCOL_VERSION",
    "NO_SHARED_CIPHER",
    "SSLV3_ALERT_HANDSHAKE_FAILURE",
    "NO_PROTOCOLS_AVAILABLE",
)
_NOT_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST")


def fingerprint(der: bytes) -> str:
    """Return the SHA-256 of a certificate, as it is shown."""
    return f"sha256:{hashlib.sha256(der).hexdigest()}"


def parse_fingerprint(text: str) -> str:
    """Return a fingerprint as it is compared; colons and capitals are taken, too. Raises UsageError."""
    match = _FINGERPRINT.fullmatch(text.strip().lower().replace("sha256:", "").replace(":", ""))
    if match is None:
        raise UsageError(
            f"not a fingerprint: {text[:80]!r}", hint="the server shows it when it starts: sha256: and 64 digits"
        )
    return f"sha256:{match[1]}"


# The server.


class ServerIdentity:
    """What a server shows: the context for its handshakes, and the fingerprint of its certificate."""

    def __init__(self, cert: str | os.PathLike[str], key: str | os.PathLike[str] | None = None):
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_3
        self.context.num_tickets = 0  # nothing arrives that is no answer, and nothing is resumed
        try:
            self.context.load_cert_chain(cert, key, password=_no_password)
            with open(cert, encoding="ascii", errors="replace") as file:
                self.fingerprint = fingerprint(ssl.PEM_cert_to_DER_cert(_first_certificate(file.read())))
        except ssl.SSLError as exc:
            why = (exc.reason or "no certificate and key in PEM").lower().replace("_", " ")
            raise UsageError(
                f"{os.fspath(cert)} and its key cannot be used: {why}",
                hint="--cert takes the certificate and those above it, --key its key, both in PEM without a password",
            ) from exc
        except OSError as exc:
            missing = key is not None and os.access(cert, os.R_OK)
            raise from_os(exc, os.fspath(key if missing and key is not None else cert)) from exc

    def wrap(self, sock: socket.socket) -> ssl.SSLSocket:
        """Return a socket of the same connection that speaks TLS once `handshake` is done. Raises OSError."""
        return _wrap(self.context, sock, server_side=True)


def _no_password() -> str:
    raise UsageError("the key is protected by a password", hint="a server cannot ask for it: take the password off")


def _first_certificate(pem: str) -> str:
    match = re.search(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", pem, re.DOTALL)
    if match is None:
        raise UsageError("there is no certificate in the file", hint="--cert takes a certificate in PEM")
    return match[0]


def certified_name(cert: str | os.PathLike[str]) -> str | None:
    """Return a host name that a certificate of an authority is for; None if it has none, or vouches for itself."""
    try:
        from cryptography import x509
    except ImportError:
        return None
    try:
        with open(cert, "rb") as file:
            found = x509.load_pem_x509_certificate(file.read())
        if found.issuer == found.subject:
            return None
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return None  # without names, or stricter than OpenSSL
    return next((str(name) for name in names.get_values_for_type(x509.DNSName) if "*" not in name), None)


def own_identity(state: StateDir) -> ServerIdentity:
    """Return the identity in the state folder; the first time, make one: a key, and a certificate signed by it."""
    with state.lock(IDENTITY):
        if state.read(IDENTITY) is None:
            state.write(IDENTITY, _self_signed())
    return ServerIdentity(state.where(IDENTITY))


def _self_signed() -> bytes:
    """Return a new key and its certificate, in PEM."""
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError as exc:
        raise NotFound(
            "a certificate is needed, and the package that makes one is not installed",
            hint="pip install 'ftransfer-tool[tls]'; or give one: --cert FILE --key FILE",
        ) from exc
    from datetime import UTC, datetime, timedelta

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "ftransfer")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=_DAYS))
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private + certificate.public_bytes(serialization.Encoding.PEM)


# The client.


class Unverified(Exception):
    """The system does not trust the certificate; says why."""


def connect(sock: socket.socket, host: str, seconds: float, *, by_system: bool) -> ssl.SSLSocket:
    """Return the encrypted socket to a server.

    Arguments: `by_system` has the system's certificates decide and raises Unverified if they do not vouch for `host`;
    else the caller looks at the fingerprint before it sends anything. Raises ConnectionLost, TimedOut, TlsMismatch.
    """
    if by_system:
        context = ssl.create_default_context()
    else:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        secured = _wrap(context, sock, host=host)
    except (OSError, ValueError) as exc:
        sock.close()
        raise _translated(exc) from exc
    try:
        handshake(secured, seconds)
    except BaseException:
        secured.close()
        raise
    return secured


def shown_fingerprint(sock: ssl.SSLSocket) -> str:
    """Return the fingerprint of what the server has shown. Raises IdentityUnknown if that was nothing."""
    der = sock.getpeercert(binary_form=True)
    if not der:
        raise IdentityUnknown("the server showed no certificate")
    return fingerprint(der)


def _wrap(
    context: ssl.SSLContext, sock: socket.socket, *, server_side: bool = False, host: str | None = None
) -> ssl.SSLSocket:
    return context.wrap_socket(
        sock,
        server_side=server_side,
        server_hostname=host,
        do_handshake_on_connect=False,
        suppress_ragged_eofs=False,  # a stream that is cut without a goodbye is an error, not an end
    )


def handshake(sock: ssl.SSLSocket, seconds: float) -> None:
    """Agree on keys, within one deadline for all of it. Raises ConnectionLost, TimedOut, TlsMismatch, Unverified."""
    sock.settimeout(seconds)
    try:
        sock.do_handshake()
    except ssl.SSLCertVerificationError as exc:
        raise Unverified(exc.verify_message) from exc
    except (OSError, ValueError) as exc:
        raise _translated(exc) from exc


def _translated(exc: OSError | ValueError) -> FtransferError:
    if isinstance(exc, TimeoutError):
        return TimedOut("the TLS handshake was not finished in time", hint="is that an ftransfer server?")
    if not isinstance(exc, ssl.SSLError):
        return ConnectionLost(f"the TLS handshake failed: {(getattr(exc, 'strerror', None) or str(exc)).lower()}")
    if isinstance(exc, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
        return ConnectionLost("the other side left in the middle of the TLS handshake")
    if exc.reason in _NOT_TLS:
        # No word of how to do without: it may be an attacker who wants just that.
        return TlsMismatch(
            "TLS was asked for, and the server speaks none on this port", hint="check the port with who runs the server"
        )
    why = (exc.reason or "cut").lower().replace("_", " ")
    if exc.reason in _NO_COMMON:
        return Refused(f"the TLS handshake failed: {why}", hint="both ends need TLS 1.3")
    return ConnectionLost(f"the TLS handshake failed: {why} (a bad line, or an attack)")
