"""CRC-32C (Castagnoli, RFC 3720) in pure Python: the checksum of UDP datagrams.

The standard library has no CRC-32C, and a table-driven loop takes 200 µs for a kilobyte. But a checksum is a remainder
of polynomials over GF(2), and if a multiple of the generator has few terms, as in

    x^5685 = x^1362 + x^426 + 1    (modulo the generator),

all bits that are 5,685 or more from the end can be folded onto the rest with three shifts of one large integer.
Squaring doubles every exponent, so there is such a fold for every size. For a kilobyte folding takes a seventh of the
loop's time, for 64 KiB a thirtieth. The terms were found by a search; the tests compare every fold with the loop.
"""

_POLYNOMIAL = 0x82F63B78  # 0x1EDC6F41, its bits reversed: the first bit on the wire is the lowest


def _remainder(value: int) -> int:
    for _ in range(8):
        value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
    return value


_TABLE = tuple(map(_remainder, range(256)))

#: (bits, exponents): x^bits is congruent to the sum of x^exponent and 1. Ordered from the most bits (1.4 MB) down.
_FOLDS = (
    *((5685 << power, (1362 << power, 426 << power)) for power in range(11, -1, -1)),
    *((561 << power, tuple(term << power for term in (183, 44, 27, 9))) for power in range(3, -1, -1)),
    (216, (66, 38, 33, 18, 15, 7)),
)


def crc32c(data: bytes | bytearray | memoryview, crc: int = 0) -> int:
    """Computes the checksum of `data`. `crc`: the checksum of the preceding data."""
    register = crc ^ 0xFFFFFFFF
    bits = 8 * len(data)
    if bits <= _FOLDS[-1][0]:
        return _by_table(data, register) ^ 0xFFFFFFFF
    # Little-endian: bit 0 is the first bit on the wire, the coefficient of the highest degree.
    value = int.from_bytes(data, "little") ^ register
    for size, terms in _FOLDS:
        while bits > size:
            over = bits - size
            rest = value >> over
            high = value ^ rest << over
            # The high part times the largest term may still reach beyond the size.
            bits = max(size, over + terms[0])
            value = rest << (bits - size) ^ high << (bits - over)
            for term in terms:
                value ^= high << (bits - over - term)
    # Zeros in front change nothing once the register has been folded in.
    length = (bits + 7) // 8
    return _by_table((value << (8 * length - bits)).to_bytes(length, "little"), 0) ^ 0xFFFFFFFF


def _by_table(data: bytes | bytearray | memoryview, register: int) -> int:
    table = _TABLE
    for byte in data:
        register = table[(register ^ byte) & 0xFF] ^ register >> 8
    return register
