"""Writes docs/reference.md from the docstrings; --check compares it with them.

griffe reads the sources, griffe2md writes classes and functions. This program adds the rest: attributes with the
comments above them, and long signatures in lines.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

import griffe
from griffe2md import ConfigDict, render_object_docs

from objmapper_server import Config
from objmapper_server.settings.setting_info import setting_infos, shown_default

HOME = Path(__file__).parent.parent
PAGE = HOME / "docs" / "reference.md"
HEAD = """\
# Reference

What `objmapper_client` and `objmapper_server` have for programs. `make reference` writes this page from the
docstrings; the [tutorial](tutorial.md) shows how it all goes together.
"""
#: In this order. A section without names has all other exports of the package.
SECTIONS = {
    "objmapper_client": {
        "The clients": ["Client", "AsyncClient"],
        "What they give": ["Object", "Stat", "Entry", "Mode", "Status"],
        "Addresses": ["parse", "default_address", "UnixAddress", "TcpAddress", "UdpAddress"],
        "Errors": [],
        "fsspec": ["filesystem.ObjmapperFileSystem"],
    },
    "objmapper_server": {"A server inside a program": ["Server", "Config", "Concurrency", "Statistics", "ConfigError"]},
}
LOOKS: ConfigDict = {
    "heading_level": 3,
    "members_order": "source",
    "group_by_category": False,
    "show_signature_annotations": True,
    "show_if_no_docstring": False,
    "inherited_members": False,
    "show_submodules": False,
    "summary": False,
    # Hooks of pydantic, and the interface of fsspec.
    "filters": ["!^_", "!^settings_customise_sources$"],
}
LONGEST = 120
Documented = griffe.Class | griffe.Function


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for name, sections in SECTIONS.items():
        package = griffe.load(name, search_paths=[str(HOME)])
        assert isinstance(package, griffe.Module)
        named = [each for names in sections.values() for each in names]
        rest = [str(each) for each in package.exports or [] if str(each) not in named]
        for title, names in sections.items():
            found = [of(package, each) for each in names or rest]
            parts += [f"## {title}", *(described(each) for each in found if each is not None)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def of(package: griffe.Module, name: str) -> Documented | None:
    """The class or function of that name; None for a type alias."""
    found = package[name]
    found = found.final_target if isinstance(found, griffe.Alias) else found
    return found if isinstance(found, Documented) else None


def described(found: Documented) -> str:
    """Its part of the page."""
    looks = LOOKS | ({"members": False} if found.path.endswith("FileSystem") else {})
    text = render_object_docs(found, looks)
    # Programs import a name from the package: the module that defines it may change.
    text = text.replace(f"`{found.path}", f"`{found.name}")
    text = re.sub(r"<code>\[(\w+)\]\([^)]*\)</code>", r"`\1`", text)
    text = re.sub(r"^Bases: `(Settings|_Value)`\n\n", "", text, flags=re.MULTILINE)
    text = re.sub(rf"(?<=^```python\n)(.{{{LONGEST},}})(?=\n```$)", in_lines, text, flags=re.MULTILINE)
    if found.name == "Config":
        text = text.replace("Bases: `BaseSettings`\n\n", "")
    if isinstance(found, griffe.Class):
        heading = "\n#### "
        head, separator, members = text.partition(heading)
        text = f"{head.rstrip()}\n\n{settings() if found.name == 'Config' else attributes(found)}\n{separator}{members}"
    return re.sub(r"\n{3,}", "\n\n", text)


def in_lines(signature: re.Match[str]) -> str:
    """A signature, an argument a line."""
    return formatted(f"def {signature[0]}: ...").removeprefix("def ").removesuffix(": ...")


def formatted(source: str) -> str:
    """Formatted Python, in lines that fit the page."""
    ruff = [sys.executable, "-m", "ruff", "format", "--isolated", "--line-length", str(LONGEST), "-"]
    return subprocess.run(ruff, input=source, capture_output=True, text=True, check=True).stdout.strip()


def attributes(found: griffe.Class) -> str:
    """The public attributes of a class, with their comments in the source."""
    lines = []
    arguments = {each.name: each for each in found.parameters}
    for name, each in found.members.items():
        if not isinstance(each, griffe.Attribute) or "property" in each.labels:
            continue
        if name.startswith("_") or name == "model_config":
            continue
        kind = each.annotation or (arguments[name].annotation if name in arguments else None)
        is_fixed = "class-attribute" in each.labels
        value = f" = {each.value}" if is_fixed and each.value is not None else ""
        lines += [*said_above(each), f"{name}{f': {kind}' if kind else ''}{value}"]
    # The arguments of a dataclass are above already.
    if not lines or "dataclass" in found.labels:
        return ""
    source = formatted("\n".join(lines))
    return f"```python\n{source}\n```\n"


def settings() -> str:
    """The table of all settings."""
    infos = setting_infos(Config)
    rows = ["| setting | what it does | takes | default | reload |", "|---|---|---|---|---|"]
    for name, info in infos.items():
        takes = Config.model_fields[name].description or ""
        default = shown_default(Config, name)
        cells = (f"`{name}`", info.help, takes, f"`{default}`" if default else "", "yes" if info.reloadable else "")
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    without = ", ".join(f"`{name}`" for name, info in infos.items() if not info.has_flag)
    return (
        "A setting is an argument here, a key in the file, `OBJMAPPER_` and its name in the environment, a flag of\n"
        f"`objmapper serve` (`max_threads`: `--max-threads`; {without} has none). A reload changes *yes* ones.\n\n"
        + "\n".join(rows)
        + "\n"
    )


def said_above(attribute: griffe.Attribute) -> list[str]:
    """The comment above an attribute, in the page's form."""
    assert isinstance(attribute.filepath, Path)
    source, at = attribute.lines_collection[attribute.filepath], (attribute.lineno or 1) - 1
    said: list[str] = []
    while at and source[at - 1].strip().startswith("#:"):
        at -= 1
        said.insert(0, source[at].strip().replace("#:", "#", 1))
    return said


def main() -> None:
    """Writes the page, or compares it."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--check", action="store_true", help="say whether the page is up to date, write nothing")
    text = page()
    if not arguments.parse_args().check:
        PAGE.write_text(text, encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != text:
        sys.exit("docs/reference.md is not what the docstrings say: make reference")


if __name__ == "__main__":
    main()
