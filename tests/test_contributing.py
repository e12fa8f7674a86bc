"""The pages for contributors and the settings of their tools: what they name is there."""

import os
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

HOME = Path(__file__).parent.parent
PAGES = ("CONTRIBUTING.md", "SECURITY.md")
#: Made by `make setup`, so not in a clone.
MADE = {".venv", ".rust"}


def text(name: str) -> str:
    return (HOME / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_names_is_there(page: str) -> None:
    spans = {span for span in re.findall(r"`([^`\n]+)`", text(page)) if re.fullmatch(r"[\w.-]+(/[\w.-]+)+/?", span)}
    links = {target.partition("#")[0] for target in re.findall(r"\]\(([^)]+)\)", text(page))}
    links = {target for target in links if not target.startswith("https://")}
    assert spans | links
    assert sorted(name for name in spans | links if not (HOME / name).exists()) == []


@pytest.mark.parametrize("page", PAGES)
def test_every_link_to_a_section_leads_to_one(page: str) -> None:
    for target in re.findall(r"\]\(([^):]+#[^)]+)\)", text(page)):
        name, _, section = target.partition("#")
        titles = re.findall(r"^#+ (.*)$", text(name), re.MULTILINE)
        assert section in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


def test_every_target_that_is_named_is_one_of_makes() -> None:
    targets = set(re.findall(r"^([a-z-]+):", text("Makefile"), re.MULTILINE))
    named = {name for page in PAGES for name in re.findall(r"(?:`|^)make ([a-z-]+)", text(page), re.MULTILINE)}
    assert len(named) > 5
    assert named <= targets


def test_the_checklist_of_settings_names_what_there_is() -> None:
    from objmapper_server.settings.setting_info import SettingInfo, count

    (field,) = re.findall(r"max_waiting: Annotated\[(.*)\] = 100", text("CONTRIBUTING.md"))
    bounds = eval(field.partition(", ")[2], {"count": count, "SettingInfo": SettingInfo})
    assert bounds[1] == SettingInfo("Requests that may wait.", "N", reloadable=True)


def test_the_readme_leads_to_each_page() -> None:
    for name in (*PAGES, "docs/architecture.md"):
        assert f"[{name}]: https://github.com/objmapper/objmapper/blob/main/{name}\n" in text("README.md")
        assert text("README.md").count(f"[{name}]") == 2


def test_hooks_are_local_and_call_what_is_there() -> None:
    source = text(".pre-commit-config.yaml")
    assert re.findall(r"repo: (\S+)", source) == ["local"]
    entries = re.findall(r"entry: (.*)", source)
    assert len(entries) == source.count("- id:") == source.count("language: system")
    for entry in entries:
        for word in shlex.split(entry):
            if "/" in word and Path(word).parts[0] not in MADE:
                assert (HOME / word).exists(), entry
        command = entry.replace("--manifest-path engine/Cargo.toml ", "").replace(" --force-exclude", "")
        command = command.replace(".venv/bin/", "$(bin)/")
        assert command in text("Makefile"), f"{entry}: `make lint` does something else"


def test_the_toolchain_is_one_that_the_engine_takes_and_none_that_is_fetched() -> None:
    toolchain = tomllib.loads(text("rust-toolchain.toml"))["toolchain"]
    # A version would have rustup download it beside a newer one, and listed components likewise.
    assert toolchain == {"channel": "stable", "profile": "minimal"}


@pytest.mark.skipif(shutil.which("rustup") is None, reason="rustup is needed")
def test_an_installed_toolchain_is_used_where_stable_is_not_installed(tmp_path: Path) -> None:
    run = ["rustc", "--print", "sysroot"]
    installed = subprocess.run(run, cwd=HOME, capture_output=True, text=True, check=True).stdout.strip()
    (tmp_path / "toolchains").mkdir()
    (tmp_path / "toolchains" / "ours").symlink_to(installed)
    (tmp_path / "settings.toml").write_text('version = "12"\ndefault_toolchain = "ours"\nprofile = "minimal"\n')
    environment = {name: value for name, value in os.environ.items() if name != "RUSTUP_TOOLCHAIN"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", ". tools/rust.sh; rustc --print sysroot"],
        cwd=HOME,
        env=environment | {"RUSTUP_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert Path(done.stdout.strip()).resolve() == Path(installed).resolve()
    assert [path.name for path in (tmp_path / "toolchains").iterdir()] == ["ours"]
