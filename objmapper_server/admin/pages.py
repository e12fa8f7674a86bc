"""The HTML pages of the admin endpoint: self-contained files, with a content security policy that allows no others."""

import base64
import hashlib
import re
from dataclasses import dataclass
from importlib import resources
from typing import Final, Self

INLINE: Final = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Page:
    """A page and its HTTP headers."""

    content: bytes
    headers: dict[str, str]

    @classmethod
    def load(cls, name: str) -> Self:
        """Read a page of this package.

        The policy allows its scripts and styles by their hashes, so that injected ones do not run.
        """
        text = resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
        allowed: dict[str, list[str]] = {"script": [], "style": []}
        for kind, source in INLINE.findall(text):
            digest = hashlib.sha256(source.encode()).digest()
            allowed[kind].append(f"'sha256-{base64.b64encode(digest).decode()}'")
        policy = "; ".join(
            (
                "default-src 'none'",
                f"script-src {' '.join(allowed['script'])}",
                f"style-src {' '.join(allowed['style'])}",
                "connect-src 'self'",
                "img-src data:",
                "base-uri 'none'",
                "form-action 'none'",
                "frame-ancestors 'none'",
            )
        )
        return cls(text.encode(), {"Content-Security-Policy": policy, "Cross-Origin-Opener-Policy": "same-origin"})
