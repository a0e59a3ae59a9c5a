"""`NAME:PATH` on the command line becomes the address that a login has kept, before a command sees it."""

from __future__ import annotations

import argparse
import os


def expand_names(options: argparse.Namespace) -> None:
    """Replace each `NAME:PATH` by the address it stands for; what is there as a local file stays that."""
    for attribute in ("words", "names", "url", "target", "where"):
        value = getattr(options, attribute, None)
        if isinstance(value, list):
            setattr(options, attribute, [_expand(word) for word in value])
        elif isinstance(value, str):
            setattr(options, attribute, _expand(value))


def _expand(word: str) -> str:
    if ":" not in word or "://" in word:
        return word
    from ftransfer.known import resolve_name

    return word if os.path.lexists(word) else resolve_name(word)
