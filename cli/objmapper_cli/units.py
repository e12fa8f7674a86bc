"""Figures as people read them."""


def micros(value: float) -> str:
    """Return a time in the unit that suits it."""
    if value < 1000:
        return f"{value:.1f} µs"
    return f"{value / 1000:.1f} ms" if value < 1e6 else f"{value / 1e6:.2f} s"


def amount(value: float) -> str:
    """Return a number of bytes in the unit that suits it."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def number(value: float) -> str:
    """Return a count, whole from ten on."""
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"
