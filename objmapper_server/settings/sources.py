"""The sources of settings, by precedence: flags, environment, file. Each value keeps its origin."""

import os
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic_settings import BaseSettings, EnvSettingsSource

from objmapper_server.errors import ConfigError, did_you_mean
from objmapper_server.settings.setting_info import setting_infos

ENVIRONMENT_PREFIX: Final = "OBJMAPPER_"
#: The default address of the admin endpoint for a server started by the command.
DEFAULT_ADMIN: Final = "127.0.0.1:9997"
#: Maximum bytes of a settings file. One with all settings has a few thousand.
MAX_FILE_SIZE: Final = 1 << 20
#: Variables of the client, which are not settings.
CLIENT_VARIABLES = frozenset({"SERVER"})


def load_layers(
    cls: type[BaseSettings],
    file: str | os.PathLike[str] | None,
    flags: Mapping[str, object],
    *,
    environment: bool = True,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the effective values and their sources; raises `ConfigError` for an unknown setting."""
    values: dict[str, Any] = {"admin": DEFAULT_ADMIN}
    sources = {"admin": "default"}
    if file is not None:
        if not os.fspath(file):
            raise ConfigError("--config", "expected the path of a settings file (got '')")
        values |= (found := _from_file(cls, Path(file)))
        sources |= dict.fromkeys(found, str(file))
    if environment:
        values |= (found := _from_environment(cls))
        sources |= {name: ENVIRONMENT_PREFIX + name.upper() for name in found}
    given_flags = {name: value for name, value in flags.items() if value is not None}
    values |= given_flags
    flag = {name: info.flag or name.replace("_", "-") for name, info in setting_infos(cls).items()}
    sources |= {name: f"--{flag.get(name, name)}" if name != "root" else "ROOT" for name in given_flags}
    return values, sources


def _from_file(cls: type[BaseSettings], file: Path) -> dict[str, Any]:
    try:
        with open(file, "rb", opener=_open_nonblocking) as opened:
            # A reload reads the file again, which is impossible for a pipe.
            if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode) and str(file) != os.devnull:
                raise ConfigError("--config", f"{str(file)!r} is not a regular file, which a reload could read again")
            content = opened.read(MAX_FILE_SIZE + 1)
        if len(content) > MAX_FILE_SIZE:
            raise ConfigError(
                "--config", f"{str(file)!r} is too large: a settings file has at most {MAX_FILE_SIZE} bytes"
            )
        found = tomllib.loads(content.decode())
    except OSError as error:
        raise ConfigError("--config", f"cannot read {str(file)!r}: {error.strerror}") from error
    except RecursionError:
        raise ConfigError("--config", f"{str(file)!r} is nested too deeply for a settings file") from None
    except ValueError as error:
        # ValueErrors are: ConfigError, the errors of TOML and UTF-8, a NUL in the path, a number that is too long.
        if isinstance(error, ConfigError):
            raise
        raise ConfigError("--config", f"{str(file)!r} is not TOML: {error}") from error
    for name in found:
        if name not in cls.model_fields:
            raise ConfigError(name, f"no such setting{did_you_mean(name, cls.model_fields)}", str(file))
    return found


def absolute_path(text: str) -> Path:
    """Return `text` as an absolute path, with ``~`` and ``~user`` expanded; raises ValueError."""
    try:
        return Path(text).expanduser().absolute()
    except (RuntimeError, OSError) as error:
        # An unknown user, or a removed current directory.
        raise ValueError(f"cannot make {text!r} an absolute path: {error}") from None


def _open_nonblocking(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _from_environment(cls: type[BaseSettings]) -> dict[str, Any]:
    known = [name.upper() for name in cls.model_fields]
    for variable in os.environ:
        name = variable.removeprefix(ENVIRONMENT_PREFIX)
        if name == variable or name in CLIENT_VARIABLES or name in known:
            continue
        # Other programs may use the prefix too. A name that resembles a setting is a typing error.
        if hint := did_you_mean(name, known, likeness=0.8):
            raise ConfigError(variable, f"no such setting{hint}", "the environment")
    return EnvSettingsSource(cls)()
