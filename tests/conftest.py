"""Fixtures that every test may ask for."""

import atexit
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from sshd import Sshd, There
from support import Peer

import ftransfer

# Short and the same in every run: what hypothesis finds beyond it becomes a vector or a test of its own.
settings.register_profile(
    "fixed", max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
settings.load_profile("fixed")


# Nothing is read from, or left in, the state folder of whoever runs the tests.
_STATE = tempfile.mkdtemp(prefix="ftransfer-state-")
atexit.register(shutil.rmtree, _STATE, ignore_errors=True)
os.environ["FTRANSFER_STATE"] = _STATE
for _name in ("FTRANSFER_TOKEN", "FTRANSFER_TOKEN_FILE", "FTRANSFER_FINGERPRINT", "FTRANSFER_SSH"):
    os.environ.pop(_name, None)

# A shell that runs the tests in the background has them ignore SIGINT, and so would the commands that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty folder that a server may serve."""
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


@pytest.fixture
def server(root: Path) -> Iterator[ftransfer.Server]:
    """A real server of `root` on a free port, in this process."""
    with ftransfer.Server(root, durable=False) as running:
        yield running


@pytest.fixture
def peer(server: ftransfer.Server) -> Iterator[Peer]:
    """A greeted connection to `server` that speaks frames by hand."""
    with Peer.dial(server.urls[0]) as made:
        yield made


@pytest.fixture
def remote(server: ftransfer.Server) -> Iterator[ftransfer.Remote]:
    """A real client of `server`, without retries."""
    with ftransfer.connect(server.urls[0], timeout=20, retry_for=0) as made:
        yield made


@pytest.fixture
def data_file(tmp_path: Path) -> Path:
    """A local file of 3 MiB and a bit, of random bytes."""
    path = tmp_path / "data.bin"
    path.write_bytes(os.urandom((3 << 20) + 12345))
    return path


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """An sshd with keys of its own."""
    with Sshd(tmp_path_factory.mktemp("sshd")) as made:
        yield made


@pytest.fixture
def there(sshd: Sshd, tmp_path: Path) -> Iterator[There]:
    """An account on the other machine, with an empty home."""
    with sshd.account(tmp_path / "there") as made:
        yield made


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with one small file."""
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "a.txt").write_bytes(b"hello\n")
    return folder
