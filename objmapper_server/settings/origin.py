"""One origin: the store behind a prefix of the URIs, and how its objects are kept on this machine."""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from objmapper_server.errors import did_you_mean
from objmapper_server.settings.setting_info import Seconds, SecondsOrZero

#: The schemes of URLs, by kind of store.
SCHEMES: Final = {
    "s3": "S3",
    "s3a": "S3",
    "gs": "Google Cloud Storage",
    "az": "Azure Blob",
    "adl": "Azure Blob",
    "azure": "Azure Blob",
    "abfs": "Azure Blob",
    "abfss": "Azure Blob",
    "http": "HTTP",
    "https": "HTTP",
}


class Origin(BaseModel):
    """A store whose objects are served below a prefix.

    `options` go to the store by the names of the crate ``object_store``; the fields above them are those that most
    stores need. Values of `options` are secrets: neither ``repr`` nor ``/config`` shows them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    prefix: str  #: of the URIs, with a leading slash and without a trailing one
    url: str  #: ``s3://bucket/prefix``, ``gs://…``, ``az://…``, ``https://host/path/``
    endpoint: str | None = None  #: the URL of a store that is not the cloud's own
    region: str | None = None
    path_style: bool | None = None  #: whether the bucket is in the path of S3's URLs; the default
    allow_http: bool = False  #: whether `endpoint` may be ``http://``
    anonymous: bool = False  #: whether requests go unsigned
    options: Mapping[str, str] = Field(default_factory=dict, repr=False)
    revalidate: Literal["never", "always"] | Seconds = 60.0  #: seconds until the store is asked whether it changed
    stale_if_error: SecondsOrZero = (
        86400.0  #: seconds for which an object is served that a failing store cannot confirm
    )
    negative_ttl: SecondsOrZero = 5.0  #: seconds for which an object that does not exist is not asked for again
    stall_timeout: Seconds = 10.0  #: seconds without a byte after which the rest of a download is asked for again

    @field_validator("url", "endpoint")
    @classmethod
    def _no_secret(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.username is not None or parts.password is not None:
            # The message must not repeat it.
            raise ValueError("a URL with a user or a password in it: give them as options, or in the environment")
        if not parts.scheme or not parts.netloc:
            raise ValueError(f"{value!r} is no URL such as s3://bucket/prefix or https://host/path/")
        if parts.query or parts.fragment:
            raise ValueError("a URL with '?' or '#' in it: keys follow it, so it ends with a path")
        return value

    @field_validator("url")
    @classmethod
    def _known_scheme(cls, value: str) -> str:
        scheme = urlsplit(value).scheme
        if scheme not in SCHEMES:
            raise ValueError(f"{scheme}:// is no store: it takes {', '.join(SCHEMES)}{did_you_mean(scheme, SCHEMES)}")
        return value

    @model_validator(mode="after")
    def _consent(self) -> "Origin":
        if self.endpoint is not None and self.endpoint.startswith("http://") and not self.allow_http:
            raise ValueError(f"the endpoint {self.endpoint} is not encrypted: set allow_http where that is meant")
        return self

    @property
    def kind(self) -> str:
        """What kind of store it is, such as ``S3``."""
        return SCHEMES[urlsplit(self.url).scheme]

    @property
    def store_options(self) -> dict[str, str]:
        """The options of the store by the crate's names."""
        found = {}
        if self.endpoint is not None:
            found["endpoint"] = self.endpoint
            found["allow_http"] = str(self.allow_http).lower()
        if self.region is not None:
            found["region"] = self.region
        elif self.kind == "S3" and self.endpoint is not None:
            # A signature needs one; a store of one's own mostly does not look at it.
            found["region"] = "us-east-1"
        if self.path_style is not None:
            found["virtual_hosted_style_request"] = str(not self.path_style).lower()
        if self.anonymous:
            found["skip_signature"] = "true"
        return found | dict(self.options)


Origins = Mapping[str, Origin]


def parse_origins(value: object) -> dict[str, Origin]:
    """Return prefix → origin from a table, a list of texts ``/PREFIX=URL``, or one text with white space between them.

    Raises ValueError with one line that names the prefix.
    """
    found: dict[str, Origin] = {}
    for prefix, given in _pairs(value):
        name = f"/{prefix.strip('/')}"
        if any(part in {"", ".", ".."} or "\0" in part for part in name[1:].split("/")) and name != "/":
            raise ValueError(f"{prefix!r} is no prefix of URIs: empty names, '.' and '..' are in none")
        if name in found:
            raise ValueError(f"{name!r} is there twice: a prefix has one origin")
        found[name] = _origin(name, given)
    return found


def _origin(prefix: str, given: object) -> Origin:
    if isinstance(given, Origin):
        return given.model_copy(update={"prefix": prefix})
    values = {"url": given} if isinstance(given, str) else given
    if not isinstance(values, Mapping):
        raise ValueError(f"{prefix}: expected a URL or a table with one (got {type(given).__name__})")
    try:
        return Origin(**{**values, "prefix": prefix})
    except ValidationError as error:
        raise ValueError(f"{prefix}: {_explained(error)}") from None


def _explained(error: ValidationError) -> str:
    """Return the first problem in one line. The values stay out of it: options may be secrets."""
    problem = error.errors()[0]
    field = ".".join(str(part) for part in problem["loc"] if part not in {"float", "literal['never','always']"})
    if problem["type"] == "extra_forbidden":
        hint = did_you_mean(field, Origin.model_fields)
        return f"no such option {field!r}{hint}; options of the store go into 'options'"
    if problem["type"] == "missing":
        return f"{field} is needed"
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    if field.startswith("revalidate"):
        return "revalidate takes never, always or seconds"
    return f"{field}: {problem['msg'].lower()}"


def _pairs(value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        yield from ((str(prefix), given) for prefix, given in value.items())
        return
    items = value.split() if isinstance(value, str) else value
    if not isinstance(items, Iterable):
        raise ValueError(f"{items!r} is no /PREFIX=URL")
    for item in items:
        prefix, equals, url = str(item).strip().partition("=")
        if not equals or not prefix.startswith("/"):
            # The item stays out of the message: a URL may have a password in it.
            raise ValueError("an origin without its prefix: expected /PREFIX=URL")
        yield prefix, url


def default_disk_cache(environment: Mapping[str, str] = os.environ) -> Path:
    """Return systemd's ``$CACHE_DIRECTORY``, else the user's cache directory."""
    if directory := environment.get("CACHE_DIRECTORY", "").partition(":")[0]:
        return Path(directory)
    home = environment.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "objmapper"


def shown(origins: Origins) -> dict[str, dict[str, Any]]:
    """Return the origins as ``/config`` shows them: the names of the options without their values."""
    return {
        prefix: {**origin.model_dump(mode="json"), "options": dict.fromkeys(origin.options, "********")}
        for prefix, origin in origins.items()
    }
