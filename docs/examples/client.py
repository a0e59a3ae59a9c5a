"""A client from docs/protocol.md alone: `client.py HOST PORT put|get FILE PATH`, with the token in FTRANSFER_TOKEN."""

import json
import os
import socket
import sys
from pathlib import Path

from xxhash import xxh3_128_hexdigest as xxh128


def send(stream, body=b"", **header):
    """Send one frame: the length of the header, the header, the body."""
    raw = json.dumps(header | ({"body": len(body)} if body else {})).encode()
    stream.write(len(raw).to_bytes(4, "big") + raw + body)
    stream.flush()


def receive(stream, *expected):
    """Return the next header, which has to be of an expected type, and its body; signs of life are passed over."""
    header = json.loads(stream.read(int.from_bytes(stream.read(4), "big")))
    if header["type"] in expected:
        return header, stream.read(header.get("body", 0))
    words = f"{header['type']}: {header.get('code')}: {header.get('message')}"
    return receive(stream, *expected) if header["type"] == "working" else sys.exit(words)


def put(stream, local, path):
    """Upload a file: send what is wanted and say `end`, until there is a receipt, which is returned."""
    data, ns = local.read_bytes(), local.stat().st_mtime_ns
    send(stream, type="put", t=1, path=path, size=len(data), mtime_ns=ns, fingerprint=f"{len(data)}-{ns}", wait=True)
    while (answer := receive(stream, "want", "receipt")[0])["type"] == "want":
        for start, length in [] if answer.get("more") else answer["ranges"]:
            for at in range(start, start + length, 1 << 20):
                body = data[at : min(at + (1 << 20), start + length)]
                send(stream, body, type="block", t=1, offset=at, hash=xxh128(body))
                receive(stream, "stored")
        if not answer.get("more"):  # what was left out or damaged on the way is wanted again after this
            send(stream, type="end", t=1, path=path, size=len(data), hash=xxh128(data))
    return answer if answer.get("hash") in (None, xxh128(data)) else sys.exit("the server stored something else")


def get(stream, local, path):
    """Download a file, write it when the hash of the whole is right, and return its `end`."""
    send(stream, type="get", t=1, path=path)
    data = bytearray(receive(stream, "file")[0]["size"])
    while (got := receive(stream, "block", "hole", "end"))[0]["type"] != "end":
        at, body = got[0]["offset"], got[1] or bytes(got[0]["length"])
        data[at : at + len(body)] = body
        send(stream, type="stored", t=1, offset=at, ok=got[0].get("hash", "") in ("", xxh128(body)))
    local.write_bytes(data if xxh128(data) == got[0]["hash"] else sys.exit("damaged on the way: run it again"))
    send(stream, type="receipt", t=1, result="stored", path=path, size=len(data), hash=xxh128(data))
    return got[0]


with socket.create_connection((sys.argv[1], int(sys.argv[2])), 60) as sock, sock.makefile("rwb") as stream:
    send(stream, type="hello", versions=[1], software="example", token=os.environ.get("FTRANSFER_TOKEN"))
    receive(stream, "welcome")
    print({"put": put, "get": get}[sys.argv[3]](stream, Path(sys.argv[4]), sys.argv[5]))
