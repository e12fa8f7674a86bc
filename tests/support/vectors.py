"""Reads `tests/vectors/*.txt`, which hold both codecs to the same bytes; the form is described at their heads."""

from pathlib import Path

DIRECTORY = Path(__file__).parents[1] / "vectors"


def unhex(text: str) -> bytes:
    """Bytes from ``31 0002 2f61*5``: hex, where ``xx*N`` repeats the last byte."""
    out = b""
    for word in text.split():
        digits, star, count = word.partition("*")
        raw = bytes.fromhex(digits)
        out += raw[:-1] + raw[-1:] * int(count) if star else raw
    return out


def load(name: str) -> list[list[str]]:
    """The columns of each vector."""
    lines = (DIRECTORY / name).read_text(encoding="ascii").splitlines()
    rows = [[column.strip() for column in line.split("|")] for line in lines if line and not line.startswith("#")]
    return [[*row, ""] if row[-1:] == [] else row for row in rows]


def expanded(outcome: str) -> list[str]:
    """The outcomes of a vector of version 2, with their bytes written out and without ``more``."""

    def expand(word: str) -> str:
        name, equals, value = word.rpartition("=")
        return f"{name}{equals}{unhex(value).hex()}" if "*" in value else word

    outcomes = [" ".join(map(expand, part.split())) for part in outcome.split(",")]
    return [each for each in outcomes if each != "more"]
