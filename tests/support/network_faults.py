"""Faults of a network, by a seed: datagrams that are lost, duplicated, reordered, delayed and damaged."""

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class NetworkFaults:
    """Probabilities from 0 to 1, for each datagram, in both directions. Delays are in seconds."""

    loss: float = 0.0
    duplicates: float = 0.0
    reordering: float = 0.0
    corruption: float = 0.0
    delay: float = 0.0
    #: How much later a datagram comes that others are to overtake.
    reorder_delay: float = 0.002

    def sequence(self, seed: int) -> "FaultSequence":
        """These faults for one datagram after the other."""
        return FaultSequence(self, random.Random(seed))


#: Nothing is lost, and nothing late.
NO_FAULTS = NetworkFaults()


class FaultSequence:
    """Decides over one datagram after the other."""

    def __init__(self, faults: NetworkFaults, generator: random.Random) -> None:
        self._faults = faults
        self._random = generator

    def apply(self, datagram: bytes) -> list[tuple[float, bytes]]:
        """When it arrives, counted from now, and what arrives then; nothing where it is lost."""
        faults, draw = self._faults, self._random.random
        if draw() < faults.loss:
            return []
        arrivals = []
        for _ in range(2 if draw() < faults.duplicates else 1):
            reordering_delay = faults.reorder_delay * (0.5 + draw()) if draw() < faults.reordering else 0.0
            received = self._damage(datagram) if draw() < faults.corruption else datagram
            arrivals.append((faults.delay + reordering_delay, received))
        return arrivals

    def _damage(self, datagram: bytes) -> bytes:
        """One to three wrong bytes, or a piece less at the end."""
        damaged = bytearray(datagram)
        if self._random.random() < 0.2:
            return bytes(damaged[: self._random.randrange(len(damaged) + 1)])
        for _ in range(self._random.randint(1, 3)):
            if damaged:
                damaged[self._random.randrange(len(damaged))] ^= self._random.randint(1, 255)
        return bytes(damaged)
