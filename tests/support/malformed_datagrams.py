"""Malformed and hostile datagrams."""

import random

from objmapper_client.protocol.udp import Pull, encode_pull
from tests.support.raw_client import COPY, FDPASS, request


def junk(generator: random.Random) -> bytes:
    """A datagram that means no good: cut, too long, forged, repeated, or just bytes."""
    pull = encode_pull(
        Pull(
            generator.getrandbits(32),
            generator.choice([0, 1, 10**6, 2**64 - 1]),
            generator.choice([0, 1, 5000, 2**32 - 1]),
            generator.choice([0, 1, 1152, 65535]),
            generator.choice([b"", generator.randbytes(16)]),
            generator.choice(["/a", "/none", "/../a", "/directory", "/" + "n" * 4000]),
        )
    )
    kind = generator.randrange(6)
    if kind == 0:
        return pull[: generator.randrange(len(pull))]
    if kind == 1:
        return pull + bytes(generator.randrange(5000))
    if kind == 2:
        return generator.randbytes(generator.randrange(300))
    if kind == 3:
        return b"U\x01" + generator.randbytes(generator.randrange(100))
    if kind == 4:
        return request(generator.choice([COPY, FDPASS]), "/a")[: generator.randrange(6)] + generator.randbytes(3)
    place = generator.randrange(len(pull))
    return pull[:place] + generator.randbytes(1) + pull[place + 1 :]
