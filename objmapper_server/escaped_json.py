"""JSON without control characters: those beyond ASCII are escaped too."""

import json


def escape_control_characters(document: bytes) -> bytes:
    """Return the same JSON document with all control characters escaped."""
    text = document.decode()
    if text.isprintable():
        return document
    return "".join(letter if letter.isprintable() else json.dumps(letter)[1:-1] for letter in text).encode()
