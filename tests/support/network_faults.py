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
    detour: float = 0.002

    def sequence(self, seed: int) -> "FaultSequence":
        """These faults for one datagram after the other."""
        return FaultSequence(self, random.Random(seed))


#: Nothing is lost, and nothing late.
FAIR = NetworkFaults()


class FaultSequence:
    """Decides over one datagram after the other."""

    def __init__(self, weather: NetworkFaults, generator: random.Random) -> None:
        self._weather = weather
        self._random = generator

    def fate(self, datagram: bytes) -> list[tuple[float, bytes]]:
        """When it arrives, counted from now, and what arrives then; nothing where it is lost."""
        weather, chance = self._weather, self._random.random
        if chance() < weather.loss:
            return []
        arrivals = []
        for _ in range(2 if chance() < weather.duplicates else 1):
            late = weather.detour * (0.5 + chance()) if chance() < weather.reordering else 0.0
            arrives = self._damage(datagram) if chance() < weather.corruption else datagram
            arrivals.append((weather.delay + late, arrives))
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
