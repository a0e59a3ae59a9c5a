"""Move files between machines, prove that what arrived is what was sent, and go on where it stopped.

```python
import ftransfer

with ftransfer.connect("ft://localhost") as remote:
    result = remote.upload("report.pdf", "in/")
```

The names below are the public interface; they are imported when they are first used, so that start-up stays quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
SOFTWARE = f"ftransfer/{__version__}"

if TYPE_CHECKING:
    from ftransfer import errors
    from ftransfer.client import Remote
    from ftransfer.connecting import connect
    from ftransfer.digests import Digest
    from ftransfer.downloading import local_partials
    from ftransfer.errors import FtransferError
    from ftransfer.filters import Filter, read_rules
    from ftransfer.host import Limits
    from ftransfer.modes import Modes
    from ftransfer.progress import Progress
    from ftransfer.results import EntryVerdict, FileResult, Totals, TransferResult, TreeVerifyResult, VerifyResult
    from ftransfer.server import Server
    from ftransfer.sources import checksum_file
    from ftransfer.store.base import Entry, Partial

_WHERE = {
    "Digest": "digests",
    "Entry": "store.base",
    "EntryVerdict": "results",
    "Filter": "filters",
    "FileResult": "results",
    "FtransferError": "errors",
    "Limits": "host",
    "Modes": "modes",
    "Partial": "store.base",
    "Progress": "progress",
    "Remote": "client",
    "Server": "server",
    "Totals": "results",
    "TransferResult": "results",
    "TreeVerifyResult": "results",
    "VerifyResult": "results",
    "checksum_file": "sources",
    "connect": "connecting",
    "local_partials": "downloading",
    "read_rules": "filters",
}

__all__ = [
    "Digest",
    "Entry",
    "EntryVerdict",
    "FileResult",
    "Filter",
    "FtransferError",
    "Limits",
    "Modes",
    "Partial",
    "Progress",
    "Remote",
    "Server",
    "Totals",
    "TransferResult",
    "TreeVerifyResult",
    "VerifyResult",
    "__version__",
    "checksum_file",
    "connect",
    "errors",
    "local_partials",
    "read_rules",
]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name == "errors":
        return import_module("ftransfer.errors")
    if name not in _WHERE:
        raise AttributeError(f"module 'ftransfer' has no attribute {name!r}")
    return getattr(import_module(f"ftransfer.{_WHERE[name]}"), name)
