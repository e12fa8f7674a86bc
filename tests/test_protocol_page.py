"""docs/protocol.md says what the codec does: its examples are the codec's bytes, its tables the codec's numbers."""

import re
from pathlib import Path

from objmapper_client import Mode, ObjmapperError, Status, errors
from objmapper_client.protocol import hello, v1
from objmapper_client.protocol import v2_requests as v2
from objmapper_client.protocol import v2_responses as responses
from objmapper_client.protocol.hello import Capability
from objmapper_client.protocol.v2_requests import Operation, Parameters

PAGE = (Path(__file__).parent.parent / "docs" / "protocol.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BYTES = re.compile(r" *((?:[0-9a-f]{2} )*[0-9a-f]{2})(?: |$)")


def examples() -> list[bytes]:
    """The bytes of the blocks that begin with some, a message each; an indented line goes on with the one before."""
    found: list[bytes] = []
    for block in BLOCK.findall(PAGE):
        lines = block.splitlines()
        if not BYTES.match(lines[0]):
            continue
        for line in lines:
            match = BYTES.match(line)
            assert match, line
            raw = bytes.fromhex(match[1])
            if line.startswith(" ") or (found and re.search(r"bytes of them$", line)):
                found[-1] += raw
            else:
                found.append(raw)
    return found


def table(heading: str) -> list[list[str]]:
    """The rows of the table that has this head."""
    lines = PAGE[PAGE.index(heading) :].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[: lines.index("")]]
    assert rows
    return rows


def test_the_examples_are_what_the_codec_makes() -> None:
    both = Capability.OUT_OF_ORDER | Capability.PIPELINING
    assert examples() == [
        v1.encode_request(Mode.FDPASS, "/a"),
        b"\0",
        # Cut off on the page, after ten letters.
        b"\1" + len(b"no such object").to_bytes(2) + b"no such ob",
        hello.encode_hello(both, 16),
        hello.encode_hello_ack(both, 16, 8),
        v2.encode_request(7, Operation.FDPASS, "/a"),
        responses.encode_response(7, Status.OK),
        b"\x58",
        v2.encode_request(8, Operation.COPY, "/a", parameters=Parameters(offset=5, length=10)),
    ]


def test_the_statuses_match_the_codec_and_raise_the_named_errors() -> None:
    rows = table("| status | name |")
    assert [(int(number, 16), name) for number, name, *_ in rows] == [(each.value, each.name) for each in Status]
    for number, _, _, raises in rows[1:]:
        assert type(errors.error_for(int(number, 16), "", "/a")) is getattr(errors, raises.strip("`"))
        assert issubclass(getattr(errors, raises.strip("`")), ObjmapperError)


def test_the_capabilities_and_operations_are_the_codecs() -> None:
    assert [int(row[0], 16) for row in table("| capability | name |")] == [each.value for each in Capability]
    named = {row[0]: int(row[0].split("(")[1].rstrip(")"), 16) for row in table("| byte | operation |")}
    assert {int(row[0].split("(")[1].rstrip(")"), 16) for row in table("| mode | name |")} == {m.value for m in Mode}
    assert {*named.values()} == {each.value for each in Operation} - {mode.value for mode in Mode}
    assert all(text.startswith(f"`'{chr(number)}'`") for text, number in named.items())


def test_the_parameters_are_those_that_are_sent() -> None:
    everything = Parameters(1, 2, 3, 4, "a", 5, b"b", "c", make_parents=True, form=1)
    frame = v2.encode_request(1, Operation.PUT, "/a", parameters=everything)
    head = len(v2.encode_request(1, Operation.COPY, "/a")) + 2
    sent, rest = {}, frame[head:]
    while rest:
        length = int.from_bytes(rest[1:3])
        sent[rest[0]], rest = length, rest[3 + length :]
    rows = [(int(row[0], 16), row[2]) for row in table("| type | | data |\n|---|---|---|\n| 81")]
    assert {kind for kind, _ in rows} == set(sent)
    for kind, words in rows:
        if size := re.match(r"(\d) bytes", words):
            assert sent[kind] == int(size[1])
        if words.startswith("no data"):
            assert sent[kind] == 0
