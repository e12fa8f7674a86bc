"""A setting is its field in `Config`, its use and its test; other places follow from the field, or are named here."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer

from objmapper_cli.commands.serve import serve_settings
from objmapper_cli.setting_flags import with_flags
from objmapper_server import Config
from objmapper_server.settings.access_rules import AccessRules
from objmapper_server.settings.config_arguments import ConfigArguments
from objmapper_server.settings.effective import effective_settings
from objmapper_server.settings.reload import RELOADABLE
from objmapper_server.settings.setting_info import SettingInfo, count, setting_infos, shown_default
from objmapper_server.settings.sources import DEFAULT_ADMIN

HOME = Path(__file__).parent.parent.parent
ENGINE = HOME / "engine" / "src"
#: What `Engine` takes beside the settings, and what `Config` derives from a setting.
BESIDE = {"inherited", "models"}
DERIVED = {"models": "concurrency_model"}


def native(file: str, struct: str) -> set[str]:
    """The fields of a structure of the engine."""
    source = re.sub(r"//.*", "", (ENGINE / file).read_text(encoding="utf-8"))
    (body,) = re.findall(rf"struct {struct} \{{(.*?)\n\}}", source, re.DOTALL)
    return set(re.findall(r"^ {4}(?:pub )?(\w+):", body, re.MULTILINE))


def used_by_python() -> set[str]:
    """The settings that the sources of server and command read: ``config.NAME``."""
    found = set()
    for path in (*(HOME / "objmapper_server").rglob("*.py"), *(HOME / "cli").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value).split(".")[-1] in {"config", "settings"}:
                found.add(node.attr)
    return found


def flags(config: type[Config]) -> dict[str, Any]:
    """The options and arguments of the command that these settings make, by name."""
    app = typer.Typer()
    app.command("serve")(with_flags(serve_settings, config))
    return {each.name: each for each in typer.main.get_command(app).params}


def missing_places(config: type[Config]) -> Iterator[str]:
    """What each place lacks, a line each."""
    infos = setting_infos(config)
    given, shown = flags(config), (HOME / "docs" / "reference.md").read_text(encoding="utf-8")
    engine, limits, rules = (
        native("settings.rs", "Settings"),
        native("settings.rs", "Limits"),
        native("python.rs", "PyRules"),
    )
    used = {DERIVED.get(name, name) for name in engine - BESIDE | used_by_python() | rules}
    for name, info in infos.items():
        if name not in ConfigArguments.__annotations__:
            yield f"objmapper_server/settings/config_arguments.py lacks {name}: run `make reference`"
        if info.has_flag != (name in given):
            yield f"objmapper serve has {'a' if name in given else 'no'} flag for {name}"
        if f"| `{name}` |" not in shown:
            yield f"docs/reference.md lacks {name}: run `make reference`"
        if name not in used:
            yield f"{name} is used by neither server, command nor engine (engine/src/settings.rs)"
    for name in ConfigArguments.__annotations__.keys() - infos.keys():
        yield f"Config lacks {name}, which objmapper_server/settings/config_arguments.py has: run `make reference`"
    for name in engine - BESIDE - infos.keys():
        yield f"Config lacks {name}, which the engine reads (engine/src/settings.rs)"
    for name in limits - {name for name, info in infos.items() if info.reloadable}:
        yield f"Config.{name} is not reloadable, and the engine's Limits read it at a reload"
    for name in rules ^ {each.name for each in fields(AccessRules)}:
        yield f"PyRules (engine/src/python.rs) and AccessRules (settings/access_rules.py) differ in {name}"


def test_no_place_lacks_a_setting() -> None:
    assert list(missing_places(Config)) == []


class OneMore(Config):
    """The settings, and one that is new: a field, and nothing else."""

    new_limit: Annotated[int, count(1, 50), SettingInfo("Of something new.", "N", reloadable=True)] = 7


def test_each_place_that_does_not_follow_from_the_field_is_named() -> None:
    assert list(missing_places(OneMore)) == [
        "objmapper_server/settings/config_arguments.py lacks new_limit: run `make reference`",
        "docs/reference.md lacks new_limit: run `make reference`",
        "new_limit is used by neither server, command nor engine (engine/src/settings.rs)",
    ]


def test_flag_variable_and_key_follow_from_the_field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    option = flags(OneMore)["new_limit"]
    assert (option.opts, option.metavar, option.help) == (["--new-limit"], "N", "Of something new. [default: 7]")
    file = tmp_path / "o.toml"
    file.write_text("new_limit = 8\n")
    assert OneMore.load(file, root=tmp_path).new_limit == 8
    monkeypatch.setenv("OBJMAPPER_NEW_LIMIT", "9")
    config = OneMore.load(file, root=tmp_path)
    assert (config.new_limit, config.sources["new_limit"]) == (9, "OBJMAPPER_NEW_LIMIT")
    config = OneMore.load(file, root=tmp_path, new_limit="10")
    assert (config.new_limit, config.sources["new_limit"]) == (10, "--new-limit")
    with pytest.raises(ValueError, match=r"new_limit \(from --new-limit\): expected a whole number .*\(got '51'\)"):
        OneMore.load(root=tmp_path, new_limit="51")


def test_a_field_without_documentation_is_refused() -> None:
    class Silent(Config):
        silent: int = 1

    with pytest.raises(TypeError, match=r"Silent\.silent needs one SettingInfo"):
        setting_infos(Silent)


@pytest.mark.parametrize("name", Config.model_fields)
def test_each_setting_has_one_line_of_help_and_the_default_that_it_says(name: str, tmp_path: Path) -> None:
    info = setting_infos(Config)[name]
    assert info.help
    assert "\n" not in info.help
    assert bool(info.metavar) != (Config.model_fields[name].annotation is bool)
    shown = shown_default(Config, name).partition(",")[0]
    if not shown or shown in {"any size", "no cap"}:
        assert not shown or Config.model_fields[name].get_default() == 0
        return
    loaded = Config.load(root=tmp_path, environment=False)
    assert getattr(Config.load(root=tmp_path, environment=False, **{name: shown}), name) == getattr(loaded, name)
    assert name != "admin" or shown == DEFAULT_ADMIN


def test_what_a_reload_changes_is_what_the_fields_say(tmp_path: Path) -> None:
    assert {name for name, info in setting_infos(Config).items() if info.reloadable} == RELOADABLE
    shown = effective_settings(Config(root=tmp_path))
    assert {name for name, each in shown.items() if each.changeable} == RELOADABLE
    assert {"idle_timeout", "admin_token"} <= RELOADABLE
    assert not {"root", "unix", "cache_size"} & RELOADABLE


def test_a_shell_completes_the_values_of_settings_that_have_some() -> None:
    found = flags(Config)
    for name, some in {"optimize_for": "latency", "log_format": "json", "concurrency_model": "tcp=epoll"}.items():
        context = typer.Context(typer.main.get_command(typer.Typer(callback=lambda: None, invoke_without_command=True)))
        assert some in {each.value for each in found[name].shell_complete(context, "")}


@pytest.mark.parametrize("arguments", [["get", "--help"], ["ls", "--help"], ["-V"]])
def test_the_settings_are_loaded_for_serve_only(arguments: list[str]) -> None:
    program = (
        "import sys; from objmapper_cli import main\n"
        f"sys.argv[1:] = {arguments}\n"
        "try: main.main()\n"
        "except SystemExit: pass\n"
        "assert not [name for name in sys.modules if name.startswith('objmapper_server')]"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=HOME / "cli", capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
