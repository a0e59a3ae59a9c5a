"""Where XXH3 comes from: the module `xxhash`, else the system's libxxhash, else plain Python (`xxh3`).

The only place that knows. `digests` and the store use what it exports, which is what the module would be: `xxh3_128`,
a hasher with update, hexdigest and copy; `xxh3_128_hexdigest` and `xxh3_64_intdigest`, of data and seed. `SOURCE` says
which of the three it is. A copy of this package that was put on another machine finds there what it finds.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from ctypes import CDLL
    from typing import Any, Protocol, Self

    Data = bytes | bytearray | memoryview

    class Hasher(Protocol):
        """What makes XXH3-128 of bytes that come in pieces."""

        def update(self, data: Data, /) -> None: ...
        def hexdigest(self) -> str: ...
        def copy(self) -> Self: ...


__all__ = ["SOURCE", "xxh3_64_intdigest", "xxh3_128", "xxh3_128_hexdigest"]

OLDEST = 800
"""Version of libxxhash since which XXH3 is what it is: 0.8.0."""


def _load() -> CDLL:
    """Return the system's libxxhash. Raises OSError where there is none, AttributeError for what is not one."""
    from ctypes import CDLL

    names = ["libxxhash.so.0"]
    if sys.platform == "darwin":  # whole paths, since a bare name is also looked for in the working folder
        names = [f"{folder}/lib/libxxhash.0.dylib" for folder in ("/opt/homebrew", "/usr/local", "/opt/local")]
    for name in names:
        try:
            library = CDLL(name)
        except OSError:
            continue
        if library.XXH_versionNumber() >= OLDEST:
            return library
    raise OSError("no libxxhash of version 0.8 or later")


def _reader() -> Callable[..., Any]:
    """Return a function that calls one of the library with the address and length of an object's bytes.

    Bytearrays and memoryviews, also those that cannot be written to, are not copied; they hold still for the call.
    """
    import ctypes
    from ctypes import c_int, c_ssize_t, c_void_p

    class View(ctypes.Structure):
        """`Py_buffer`, as the stable ABI has it since Python 3.11."""

        _fields_ = (
            *(("buf", c_void_p), ("obj", c_void_p), ("len", c_ssize_t), ("itemsize", c_ssize_t), ("readonly", c_int)),
            *(("ndim", c_int), ("format", c_void_p), ("shape", c_void_p), ("strides", c_void_p)),
            *(("suboffsets", c_void_p), ("internal", c_void_p)),
        )

    where = ctypes.POINTER(View)
    hold = ctypes.PYFUNCTYPE(c_int, ctypes.py_object, where, c_int)(("PyObject_GetBuffer", ctypes.pythonapi))
    let_go = ctypes.PYFUNCTYPE(None, where)(("PyBuffer_Release", ctypes.pythonapi))

    def read(function: Callable[..., Any], before: tuple[Any, ...], data: Data, *after: int) -> Any:
        if type(data) is bytes:
            return function(*before, data, len(data), *after)
        view = View()
        hold(data, view, 0)
        try:
            return function(*before, view.buf, view.len, *after)
        finally:
            let_go(view)

    return read


def _of_the_system() -> tuple[Callable[..., Hasher], Callable[..., str], Callable[..., int]]:
    """Return the three that this module exports, out of libxxhash.

    Raises ImportError, OSError or AttributeError where it cannot be used. A hasher is for one thread at a time.
    """
    from ctypes import Structure, c_int, c_size_t, c_uint64, c_void_p

    library, read = _load(), _reader()

    class Pair(Structure):
        _fields_ = (("low", c_uint64), ("high", c_uint64))

    class State(c_void_p):
        def __del__(self) -> None:
            free(self)

    def function(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
        found = library[name]
        found.restype, found.argtypes = result, arguments
        return found

    free = function("XXH3_freeState", c_int, c_void_p)
    create = function("XXH3_createState", State)
    reset = function("XXH3_128bits_reset_withSeed", c_int, State, c_uint64)
    feed = function("XXH3_128bits_update", c_int, State, c_void_p, c_size_t)
    digest = function("XXH3_128bits_digest", Pair, State)
    copy_state = function("XXH3_copyState", None, State, State)
    whole = function("XXH3_128bits_withSeed", Pair, c_void_p, c_size_t, c_uint64)
    whole_64 = function("XXH3_64bits_withSeed", c_uint64, c_void_p, c_size_t, c_uint64)

    class Xxh3:
        def __init__(self, data: Data = b"", seed: int = 0):
            self.state = create()
            if not self.state:
                raise MemoryError
            reset(self.state, seed)
            self.update(data)

        def update(self, data: Data, /) -> None:
            read(feed, (self.state,), data)

        def hexdigest(self) -> str:
            pair = digest(self.state)
            return f"{pair.high:016x}{pair.low:016x}"

        def copy(self) -> Self:
            made = type(self)()
            copy_state(made.state, self.state)
            return made

    def xxh3_128_hexdigest(data: Data, seed: int = 0) -> str:
        pair = read(whole, (), data, seed)
        return f"{pair.high:016x}{pair.low:016x}"

    def xxh3_64_intdigest(data: Data, seed: int = 0) -> int:
        found: int = read(whole_64, (), data, seed)
        return found

    return Xxh3, xxh3_128_hexdigest, xxh3_64_intdigest


SOURCE: str
xxh3_128: Callable[..., Hasher]
xxh3_128_hexdigest: Callable[..., str]
xxh3_64_intdigest: Callable[..., int]
try:
    from xxhash import xxh3_64_intdigest, xxh3_128, xxh3_128_hexdigest

    SOURCE = "xxhash"
except ImportError:
    try:
        xxh3_128, xxh3_128_hexdigest, xxh3_64_intdigest = _of_the_system()
        SOURCE = "libxxhash"
    except (ImportError, OSError, AttributeError):
        from ftransfer.xxh3 import Xxh3 as xxh3_128  # noqa: N813 - the name that the module has
        from ftransfer.xxh3 import xxh3_64_intdigest, xxh3_128_hexdigest

        SOURCE = "python"
