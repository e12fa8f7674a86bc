"""What unfinished writes have left behind."""

from pathlib import Path


def unfinished_writes(root: Path) -> list[Path]:
    """Return the files in the server's own directory beneath its root."""
    return [path for path in (root / ".objmapper").rglob("*") if not path.is_dir()]
