"""JSON that a terminal shows as it is: control characters beyond ASCII are escaped, too."""

import json


def as_plain_json(document: bytes) -> bytes:
    """Return the same JSON document without characters that would control a terminal."""
    text = document.decode()
    if text.isprintable():
        return document
    return "".join(each if each.isprintable() else json.dumps(each)[1:-1] for each in text).encode()
