"""ftransfer, curl with nginx, and scp once more: all encrypted, each telling the cipher that it agreed on."""

import re
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.children import BenchError, Children
from bench.lab import Lab
from bench.ours import Ftransfer
from bench.peers import Curl, Scp
from bench.sockets import HOST
from bench.tools import Tool, program

GCM = "aes256-gcm@openssh.com"
NEW_KEY = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """A certificate for this machine's loopback address, signed by itself: two files, and what a client compares."""

    cert: Path
    key: Path
    fingerprint: str


def certificate(lab: Lab) -> Certificate | None:
    """Return a certificate, made once; None, and a word about it, where there is no openssl to make it."""
    if program("openssl") is None:
        lab.report.say("not installed: openssl; nothing is measured over TLS")
        return None
    folder = lab.folder("certificate")
    cert, key = folder / "cert.pem", folder / "key.pem"
    if not cert.exists():
        name = ["-subj", f"/CN={HOST}", "-addext", f"subjectAltName=IP:{HOST}"]
        lab.children.run(["openssl", *NEW_KEY.split(), "-keyout", key, "-out", cert, *name])
    told = lab.children.run(["openssl", "x509", "-in", cert, "-noout", "-fingerprint", "-sha256"]).output
    return Certificate(cert=cert, key=key, fingerprint=told.strip().rpartition("=")[2])


class TlsTool(Tool):
    """A tool that encrypts."""

    @abstractmethod
    def cipher(self) -> str:
        """Return the name of the cipher that its client and its server agree on; the server is running."""


class TlsFtransfer(TlsTool, Ftransfer):
    """ftransfer over TLS, the certificate known by its fingerprint; without waiting for the disk, as its peers."""

    checks = "AES-GCM, xxh128"
    scheme = "ft+tls"

    def __init__(
        self, children: Children, work: Path, served: Path, *, command: Path, shown: Certificate, synced: bool = False
    ) -> None:
        """Use the program `command`; its server shows the certificate `shown`."""
        options = ["--cert", str(shown.cert), "--key", str(shown.key), *([] if synced else ["--no-sync"])]
        super().__init__(children, work, served, command=command, serve_options=options)
        self.client_options: Sequence[str] = ("--fingerprint", shown.fingerprint)

    def cipher(self) -> str:
        """Ask for the facts of a connection."""
        told = self.children.run([self.command, "ping", self.url(""), *self.client_options]).output
        return found(r"encrypted: TLSv1\.3 (\w+)", told, by=self.name)


class TlsCurl(TlsTool, Curl):
    """curl and nginx as they come, over https; curl trusts the certificate. nginx reads what it encrypts."""

    checks = "AES-GCM"
    scheme = "https"

    def __init__(self, children: Children, work: Path, served: Path, *, shown: Certificate) -> None:
        """Show the certificate `shown`."""
        super().__init__(children, work, served)
        self.shown = shown
        self.client_options: Sequence[str | Path] = ("--cacert", shown.cert)

    def listen(self) -> str:
        """Speak TLS 1.3 and nothing else, as ftransfer does."""
        return (
            f"listen {HOST}:{self.port} ssl; ssl_protocols TLSv1.3; "
            f"ssl_certificate {self.shown.cert}; ssl_certificate_key {self.shown.key};"
        )

    def cipher(self) -> str:
        """Have curl say what it does; what it gets is a refusal, which is as well encrypted as a file."""
        log = self.children.log("curl-verbose")
        argv = [*self.client_command("-v", name="nothing")]
        self.children.wait(self.children.start(argv, log=log))
        return found(r"TLSv1\.3 / (\w+)", log.read_text(errors="replace"), by=self.name)


class TlsScp(TlsTool, Scp):
    """scp with the cipher of TLS: AES-256-GCM."""

    def asked_cipher(self) -> str:
        """Ask for this and no other."""
        return GCM

    def cipher(self) -> str:
        """Return what was asked for: it is this or a failure."""
        return GCM


class DefaultScp(TlsTool, Scp):
    """scp with whatever cipher it chooses by itself."""

    name = "scp-default"
    checks = "its cipher"

    def asked_cipher(self) -> None:
        """Ask for none."""

    def cipher(self) -> str:
        """Return what this ssh likes best; its own sshd takes the same."""
        told = self.children.run(["ssh", "-G", "-F", "/dev/null", HOST]).output
        return found(r"(?m)^ciphers ([^,\s]+)", told, by=self.name)


def found(pattern: str, text: str, *, by: str) -> str:
    """Return what the first group of a pattern matches; a BenchError if nothing does."""
    match = re.search(pattern, text)
    if match is None:
        raise BenchError(f"{by} does not say which cipher it uses: {text[-300:]!r}")
    return match[1]
