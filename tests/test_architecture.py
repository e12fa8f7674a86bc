"""The rules that keep the parts apart, read from the sources themselves.

``cli → objmapper_server, objmapper_client``; ``objmapper_server → objmapper_client.{protocol…,address,errors}``;
``objmapper_client →`` the standard library.
"""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Container, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

HOME = Path(__file__).parent.parent
CLIENT, SERVER, CLI = HOME / "objmapper_client", HOME / "objmapper_server", HOME / "cli" / "objmapper_cli"
PACKAGES = (CLIENT, SERVER, CLI)
MODULES = sorted(path for package in PACKAGES for path in package.rglob("*.py"))
RUST = sorted((HOME / "engine" / "src").rglob("*.rs"))
#: Each wraps one native class, and re-exports nothing of it.
ENGINE_ROOM = {"server.py", "load.py"}
NAMELESS = re.compile(r"(^|_)(util|utils|helper|helpers|manager|base|common|misc)(_|$)")
LONGEST = 500


def name_of(path: Path) -> str:
    return str(path.relative_to(HOME))


def package_of(path: Path) -> tuple[str, ...]:
    """The dotted parts of the package that a module is in."""
    top = CLI.parent if path.is_relative_to(CLI) else HOME
    return path.relative_to(top).parts[:-1]


def targets(node: ast.AST, path: Path) -> list[str]:
    """The modules that an import statement may load, dotted and in full."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        package = package_of(path)
        here = package[: len(package) - node.level + 1] if node.level else ()
        module = ".".join((*here, *([node.module] if node.module else [])))
        return [f"{module}.{alias.name}" for alias in node.names]
    return []


def for_types_only(node: ast.AST) -> bool:
    """Whether this is the block that only a type checker reads."""
    return isinstance(node, ast.If) and ast.unparse(node.test).removeprefix("typing.") == "TYPE_CHECKING"


def walk(node: ast.AST, *, run: bool = True) -> Iterator[ast.AST]:
    """All nodes below `node`; without what is for type checkers where `run` is set."""
    for child in ast.iter_child_nodes(node):
        if run and for_types_only(child):
            continue
        yield child
        yield from walk(child, run=run)


def imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {target for node in walk(tree) for target in targets(node, path)}


def within(target: str, *modules: str) -> bool:
    return any(target == module or target.startswith(f"{module}.") for module in modules)


def under(folder: Path) -> list[Path]:
    return [path for path in MODULES if path.is_relative_to(folder)]


def test_there_is_something_to_check() -> None:
    assert {package.name for package in PACKAGES if under(package)} == {package.name for package in PACKAGES}
    assert imports(SERVER / "server.py") & {"objmapper_server._engine.Engine"}


@pytest.mark.parametrize("path", under(CLIENT), ids=name_of)
def test_the_client_needs_the_standard_library_only(path: Path) -> None:
    allowed = {*sys.stdlib_module_names, CLIENT.name, *(["fsspec"] if path.name == "filesystem.py" else [])}
    assert {target for target in imports(path) if target.partition(".")[0] not in allowed} == set()


@pytest.mark.parametrize("path", under(SERVER), ids=name_of)
def test_the_server_uses_the_clients_words_and_none_of_its_io(path: Path) -> None:
    words = [f"{CLIENT.name}.{module}" for module in WORDS]
    ours = {target for target in imports(path) if within(target, CLIENT.name, CLI.name)}
    assert {target for target in ours if not within(target, *words)} == set()


@pytest.mark.parametrize("path", [*under(SERVER), *under(CLI)], ids=name_of)
def test_the_engine_has_one_door(path: Path) -> None:
    native = {target for target in imports(path) if within(target, f"{SERVER.name}._engine")}
    assert native == set() or (path.parent == SERVER and path.name in ENGINE_ROOM)


def test_no_native_name_is_handed_on() -> None:
    import objmapper_server

    for name in objmapper_server.__all__:
        assert getattr(objmapper_server, name).__module__ != "objmapper_server._engine"


@pytest.mark.parametrize("path", under(CLIENT), ids=name_of)
def test_only_the_runtimes_know_how_to_wait(path: Path) -> None:
    allowed = {
        "_runtime.threads": {"select"},
        "_runtime.thread_multiplexer": {"select"},
        "_runtime.aio": {"asyncio", "select"},
        "_runtime.asyncio_multiplexer": {"asyncio"},
    }.get(below_client(path), set())
    waiting = {target for target in imports(path) if within(target, "selectors", "select", "asyncio")}
    assert {target.partition(".")[0] for target in waiting} <= allowed


#: What both sides share, dotted below the client, and what of it each module may use.
WORDS: dict[str, set[str]] = {
    "errors": set(),
    "address": {"errors"},
    "protocol": {"protocol.v1"},
    "protocol.v1": {"errors"},
    "protocol.hello": {"errors", "protocol.v1", "protocol.v2_requests"},
    "protocol.v2_requests": {"errors", "protocol.v1"},
    "protocol.v2_responses": {"errors", "protocol.v1", "protocol.v2_requests"},
    "protocol.crc32c": set(),
    "protocol.udp": {"errors", "protocol.crc32c", "protocol.v1"},
    "_udp.path_state": set(),
    "_udp.transfer": {"_udp.path_state", "errors", "protocol.udp", "protocol.v1"},
}


def below_client(path: Path) -> str:
    """The dotted name of a module, or of a package, below the client."""
    parts = path.relative_to(CLIENT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_every_module_of_the_codec_is_listed() -> None:
    assert {below_client(path) for path in under(CLIENT / "protocol")} <= WORDS.keys()


@pytest.mark.parametrize("path", under(CLIENT), ids=name_of)
def test_the_codec_and_the_words_touch_no_socket(path: Path) -> None:
    if (name := below_client(path)) in WORDS:
        assert {target for target in imports(path) if within(target, "socket", "selectors", "asyncio")} == set()
        ours = {target for target in imports(path) if within(target, CLIENT.name)}
        assert {
            target for target in ours if not within(target, *(f"{CLIENT.name}.{each}" for each in WORDS[name]))
        } == set()


def module_of(path: Path) -> str:
    """The dotted name of a module, or of a package."""
    package = ".".join(package_of(path))
    return package if path.name == "__init__.py" else f"{package}.{path.stem}"


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_no_modules_import_each_other_in_a_circle(package: Path) -> None:
    """Imports inside of functions count, too."""
    modules = {module_of(path): path for path in under(package)}
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        used = imports(path)
        graph[name] = {each for each in modules if each != name and (each in used or _names_of(each, used, modules))}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def _names_of(module: str, used: set[str], modules: Container[str]) -> bool:
    """Whether something is imported out of a module that is no module itself."""
    return any(each.rpartition(".")[0] == module and each not in modules for each in used)


@pytest.mark.parametrize("path", under(CLI), ids=name_of)
def test_one_module_of_the_command_speaks_http(path: Path) -> None:
    assert not any(within(target, "httpx") for target in imports(path)) or path.name == "admin_client.py"


@pytest.mark.parametrize("path", under(SERVER), ids=name_of)
def test_the_web_is_the_admin_endpoints_affair(path: Path) -> None:
    web = {target for target in imports(path) if within(target, "fastapi", "starlette", "uvicorn", "h11")}
    assert not web or path.parent == SERVER / "admin"
    scraped = {target for target in imports(path) if within(target, "prometheus_client")}
    assert not scraped or path.name == "metrics.py"


@pytest.mark.parametrize("path", under(SERVER), ids=name_of)
def test_a_server_needs_no_endpoint_and_an_endpoint_no_process(path: Path) -> None:
    """A program with a server of its own has neither: server.py alone loads them, the endpoint when it starts one."""
    endpoint = {target for target in imports(path) if within(target, f"{SERVER.name}.admin")}
    assert not endpoint or path == SERVER / "server.py" or path.parent == SERVER / "admin"
    process = {target for target in imports(path) if within(target, f"{SERVER.name}.process")}
    assert not process or path.parent == SERVER / "process" or path.name in {"server.py", "engine_settings.py"}


@pytest.mark.parametrize("path", under(SERVER / "settings"), ids=name_of)
def test_settings_know_no_server(path: Path) -> None:
    allowed = [f"{SERVER.name}.{each}" for each in ("settings", "config", "concurrency", "errors")]
    assert {each for each in imports(path) if within(each, SERVER.name) and not within(each, *allowed)} == set()


def test_a_server_without_an_endpoint_loads_none_of_it() -> None:
    program = "import sys, objmapper_server; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], cwd=HOME, capture_output=True, text=True, check=True)
    assert set(loaded.stdout.split()) & {"fastapi", "uvicorn", "h11", "prometheus_client"} == set()


def happens(statement: ast.stmt) -> bool:
    """Whether a statement at the top of a module does anything but define."""
    match statement:
        case ast.Import() | ast.ImportFrom() | ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return False
        case ast.Assign() | ast.AnnAssign() | ast.Pass():
            return False
        case ast.Expr(value=ast.Constant(value=str())):
            return False  # a docstring
        case ast.If():
            main = ast.unparse(statement.test) == "__name__ == '__main__'"
            return not main and any(happens(each) for each in (*statement.body, *statement.orelse))
        case ast.Try():
            blocks = (*statement.body, *statement.orelse, *statement.finalbody)
            return any(happens(each) for each in (*blocks, *(each for h in statement.handlers for each in h.body)))
        case _:
            return True


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nothing_happens_when_a_module_is_imported(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert [ast.unparse(statement) for statement in tree.body if happens(statement)] == []


@pytest.mark.parametrize("source", ["print()", "for _ in (): pass", "if x:\n    f()", "with x: pass", "x += 1"])
def test_what_happens_is_noticed(source: str) -> None:
    assert [happens(statement) for statement in ast.parse(source).body] == [True]


@pytest.mark.parametrize("path", [path for path in MODULES if path.name == "__init__.py"], ids=name_of)
def test_a_packages_face_is_imports_and_all(path: Path) -> None:
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        names = statement.targets if isinstance(statement, ast.Assign) else []
        is_all = [ast.unparse(name) for name in names] == ["__all__"]
        is_docstring = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        assert is_all or is_docstring or isinstance(statement, ast.Import | ast.ImportFrom), ast.unparse(statement)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_says_first_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", [*MODULES, *RUST], ids=name_of)
def test_a_file_is_named_after_its_job_and_short(path: Path) -> None:
    assert not NAMELESS.search(path.stem), "the name says nothing"
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST, "two jobs are two files"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_class_is_named_after_its_job(path: Path) -> None:
    classes = [
        node.name for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.ClassDef)
    ]
    spelled = {name: re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower() for name in classes}
    assert [name for name, words in spelled.items() if NAMELESS.search(words)] == []


#: What a file of the engine may use, from the outside in.
LAYERS: dict[str, set[str]] = {
    "protocol": set(),
    "errors": {"protocol"},
    "sync": set(),
    "spawn": set(),
    "model": {"net"},
    "net": {"errors"},
    "fd": {"net", "sync"},
    "access": {"errors", "fd", "net", "sync"},
    "statistics": {"model", "net", "protocol", "settings", "sync"},
    "storage": {"access", "errors", "net", "protocol", "settings", "spawn", "sync"},
    "storage/remote_file_systems": set(),
    "storage/distinct_versions": {"etag"},
    "storage/root": {"sync"},
    "storage/mapping": {"etag", "errors", "remote_file_systems", "root", "distinct_versions"},
    "storage/target": {"etag", "errors", "mapping", "distinct_versions"},
    "storage/quota": {"errors"},
    "storage/source_file_system": set(),
    "storage/source_copy": {"errors", "pending_write", "source_file_system"},
    "storage/copier_threads": {"pool", "spawn", "sync"},
    "storage/pending_write": {"source_copy", "errors", "mapping", "quota", "staging", "target"},
    "storage/staging": {"errors", "pending_write", "mapping", "sync", "target", "distinct_versions"},
    "storage/etag": set(),
    "storage/cursor": {"errors", "etag"},
    "storage/smallest_names": set(),
    "storage/dir_batch": {"mapping", "smallest_names"},
    "storage/walk": {"access", "dir_batch", "errors", "mapping", "protocol"},
    "storage/listing": {"access", "cursor", "dir_batch", "errors", "mapping", "protocol", "sync", "walk"},
    "access/rules": {"net"},
    "access/denials": {"net", "sync"},
    "session": {
        "access",
        "errors",
        "storage_failures",
        "fd",
        "model",
        "net",
        "origin",
        "output_budget",
        "protocol",
        "request_log",
        "service",
        "settings",
        "statistics",
        "storage",
        "sync",
        "uploads",
    },
    "disk_cache": {"errors", "storage", "sync"},
    "origin": {"disk_cache", "errors", "settings", "storage", "sync"},
    "settings": {"model", "net"},
    "request_log": {"net", "protocol", "statistics", "sync"},
    "service": {
        "access",
        "errors",
        "fd",
        "net",
        "origin",
        "output_budget",
        "protocol",
        "request_log",
        "settings",
        "statistics",
        "storage",
        "storage_failures",
        "sync",
        "uploads",
    },
    "load": {"net", "protocol", "spawn", "statistics", "sync", "udp"},
    "udp/codec": {"protocol"},
    "udp/cookie": {"codec", "sync"},
    "udp/address_limits": {"sync"},
    "udp/admission": {"codec", "cookie", "counts", "address_limits", "net"},
    "udp/object_reader": {"codec", "errors", "service", "storage"},
}


def test_one_module_knows_the_stores_crate_and_one_folder_its_runtime() -> None:
    home = HOME / "engine" / "src"
    users = {
        name: {path for path in RUST if re.search(rf"\b{name}::", rust_code(path))}
        for name in ("object_store", "tokio")
    }
    assert users["object_store"] == {home / "origin" / "store.rs"}
    assert all(path.is_relative_to(home / "origin") for path in users["tokio"])


@pytest.mark.parametrize("path", RUST, ids=name_of)
def test_the_interpreter_is_known_at_the_engines_edge_only(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    behind_the_feature = re.compile(r"cfg_attr\(feature = \"python\", (derive\(pyo3::\w+\)|pyo3\(.*\))\)")
    if path.name not in {"python.rs", "errors.rs"}:
        assert "pyo3" not in re.sub(r"//.*", "", behind_the_feature.sub("", source))


def rust_code(path: Path) -> str:
    """A Rust file without comments, and without the attributes that are for Python alone."""
    source = re.sub(r"//.*", "", path.read_text(encoding="utf-8"))
    return re.sub(r"#\[cfg_attr\(feature = \"python\".*", "", source)


@pytest.mark.parametrize("name", LAYERS)
def test_the_engines_layers_look_inward_only(name: str) -> None:
    home = HOME / "engine" / "src"
    files = [path for path in RUST if path == home / f"{name}.rs" or path.is_relative_to(home / name)]
    assert files
    source = "".join(rust_code(path) for path in files)
    source = source.replace(f"crate::{name.rpartition('/')[0]}::", "crate::")
    used = set(re.findall(r"\bcrate::(\w+)", source))
    assert used - {name, name.rpartition("/")[2]} <= LAYERS[name]


def test_the_engines_parts_use_each_other_in_no_circle() -> None:
    """A part is a folder, or a file beside the folders. `python` uses the others, and tests may use all."""
    graph: dict[str, set[str]] = {}
    for path in RUST:
        inside = path.relative_to(HOME / "engine" / "src").with_suffix("").parts
        if not any(part.endswith("_tests") for part in inside):
            tested, _, _ = rust_code(path).partition("#[cfg(test)]\nmod ")
            graph.setdefault(inside[0], set()).update(re.findall(r"\bcrate::(\w+)", tested))
    assert {"net", "access", "session", "service", "concurrency"} <= graph.keys()
    graph = {part: used - {part} for part, used in graph.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("path", RUST, ids=name_of)
def test_only_the_engine_and_udp_know_the_models(path: Path) -> None:
    """Nothing below a concurrency model looks up to it: UDP has threads of its own, on the same parts."""
    above = {"concurrency", "udp", "loom_tests"}
    inside = path.relative_to(HOME / "engine" / "src").parts
    if not above & {inside[0], Path(inside[0]).stem} and path.name not in {"endpoint.rs", "engine.rs", "lib.rs"}:
        assert "crate::concurrency" not in re.sub(r"//.*", "", path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", RUST, ids=name_of)
def test_no_session_knows_a_thread(path: Path) -> None:
    if {path.stem, path.parent.name} & {"session", "protocol", "mapping"}:
        assert "thread::" not in re.sub(r"//.*", "", path.read_text(encoding="utf-8"))


def test_the_map_shows_every_folder() -> None:
    """The listing in docs/architecture.md names each folder with code, and none that is not there."""
    listing = (HOME / "docs" / "architecture.md").read_text(encoding="utf-8").split("```")[1]
    named = set(re.findall(r"^(\S+)/ ", listing, re.MULTILINE))
    assert named == {name_of(path.parent) for path in (*MODULES, *RUST) if not path.parent.name.endswith("_tests")}


def test_the_wheel_has_every_package() -> None:
    settings = tomllib.loads((HOME / "pyproject.toml").read_text(encoding="utf-8"))
    faces = [path for path in MODULES if path.name == "__init__.py"]
    assert {".".join(package_of(face)) for face in faces} == set(settings["tool"]["setuptools"]["packages"])
