"""Kills a server at random moments while it fetches objects of an origin: no torn object, no space lost.

    python -m benchmarks.soak.origin_crashes [--kills 500] [--seed 1] [--size 20000000]

Each round starts a server on the same disk cache, asks for objects that are not there from four threads, and sends
SIGKILL after a random time. The next server must serve each object whole, whatever the earlier ones left, and the
cache must have a file for each object and no other. Needs the S3 server of the tests (`make .venv/bin/s3s-fs`).
"""

import argparse
import random
import shutil
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

from objmapper_client import Client, ObjmapperError
from tests.support.s3_server import S3Server
from tests.support.server_process import ServerProcess

OBJECTS = 6


def write_settings(home: Path, s3: S3Server) -> Path:
    """Write the server's file of settings."""
    options = s3.options()["options"]
    assert isinstance(options, dict)
    lines = [
        f'disk_cache = "{home / "cache"}"',
        '[origins."/s3"]',
        'url = "s3://bucket"',
        f'endpoint = "{s3.endpoint}"',
        "allow_http = true",
        'revalidate = "never"',
        '[origins."/s3".options]',
        *(f'{name} = "{value}"' for name, value in options.items()),
    ]
    file = home / "objmapper.toml"
    file.write_text("\n".join(lines) + "\n")
    return file


def fetch(address: str, names: list[str], contents: dict[str, bytes], torn: list[str]) -> None:
    """Ask for objects until the server dies."""
    with suppress(ObjmapperError, OSError), Client(address, timeout=20) as client:
        torn.extend(name for name in names if client.read(f"/s3/{name}") != contents[name])


def run(home: Path, settings: Path, contents: dict[str, bytes], generator: random.Random, kills: int) -> list[str]:
    """Kill servers; return what was wrong."""
    torn: list[str] = []
    began = time.monotonic()
    for kill in range(kills):
        for file in (home / "cache" / "objects").rglob("*"):
            # Half of what is there is fetched anew.
            if file.is_file() and generator.random() < 0.5:
                file.unlink()
        with ServerProcess(home / "root", home / "o.sock", "--config", str(settings)) as server:
            threads = []
            for _ in range(4):
                names = generator.sample(sorted(contents), len(contents))
                threads.append(threading.Thread(target=fetch, args=(server.addresses["unix"], names, contents, torn)))
            for thread in threads:
                thread.start()
            time.sleep(generator.uniform(0.0, 0.6))
            server.close()
            for thread in threads:
                thread.join()
        left = list((home / "cache" / "staging").iterdir())
        if len(left) > 1:
            torn.append(f"{len(left)} files in staging")
        if (kill + 1) % 50 == 0:
            print(f"{kill + 1} kills, {len(torn)} faults, {time.monotonic() - began:.0f} s", flush=True)
    with ServerProcess(home / "root", home / "o.sock", "--config", str(settings)) as server:
        with Client(server.addresses["unix"]) as client:
            torn.extend(name for name, content in contents.items() if client.read(f"/s3/{name}") != content)
        files = [file for file in (home / "cache" / "objects").rglob("*") if file.is_file()]
        if len(files) != len(contents):
            torn.append(f"{len(files)} files for {len(contents)} objects")
    return torn


def main() -> int:
    """Run the soak."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--size", type=int, default=20_000_000, help="of the largest object in bytes (20000000)")
    given = parser.parse_args()
    generator = random.Random(given.seed)
    home = Path(tempfile.mkdtemp(prefix="objmapper-origin-crashes-"))
    try:
        bucket = home / "stores" / "bucket"
        bucket.mkdir(parents=True)
        (home / "root").mkdir()
        contents = {f"o{number}": generator.randbytes(given.size >> number) for number in range(OBJECTS)}
        for name, content in contents.items():
            (bucket / name).write_bytes(content)
        with S3Server(home / "stores") as s3:
            torn = run(home, write_settings(home, s3), contents, generator, given.kills)
    finally:
        shutil.rmtree(home)
    print(f"{given.kills} kills: {len(torn)} faults {torn[:5]}")
    return 1 if torn else 0


if __name__ == "__main__":
    sys.exit(main())
