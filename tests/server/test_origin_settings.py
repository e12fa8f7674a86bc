"""Origins in the settings: flag, file and environment give one value; a wrong one is one line without a secret."""

import json
from pathlib import Path

import pytest

from objmapper_server import Config
from objmapper_server.errors import ConfigError
from objmapper_server.settings.effective import effective_settings
from objmapper_server.settings.origin import Origin, default_disk_cache, parse_origins

CANARY = "canary-5d1f"


def test_flag_file_and_environment_give_one_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "o.toml"
    file.write_text(
        """
        [origins."/models"]
        url = "s3://bucket/prod"
        [origins."/data/"]
        url = "https://host/base/"
        revalidate = "always"
        """
    )
    expected = {
        "/models": Origin(prefix="/models", url="s3://bucket/prod"),
        "/data": Origin(prefix="/data", url="https://host/base/", revalidate="always"),
    }
    assert Config.load(file, root=tmp_path).origins == expected
    plain = {name: origin.model_copy(update={"revalidate": 60.0}) for name, origin in expected.items()}
    texts = ["/models=s3://bucket/prod", "/data=https://host/base/"]
    config = Config.load(root=tmp_path, origins=texts)
    assert (config.origins, config.sources["origins"]) == (plain, "--origin")
    monkeypatch.setenv("OBJMAPPER_ORIGINS", " ".join(texts))
    config = Config.load(root=tmp_path)
    assert (config.origins, config.sources["origins"]) == (plain, "OBJMAPPER_ORIGINS")


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("s3://bucket", "an origin without its prefix: expected /PREFIX=URL"),
        (f"s3://key:{CANARY}@bucket", "an origin without its prefix: expected /PREFIX=URL"),
        ("models=s3://bucket", "an origin without its prefix: expected /PREFIX=URL"),
        ("/models=bucket", "'bucket' is no URL such as s3://bucket/prefix"),
        ("/models=s4://bucket", "s4:// is no store: it takes s3, s3a"),
        ("/models=ftp://host/", "ftp:// is no store"),
        (f"/models=https://user:{CANARY}@host/", "a URL with a user or a password in it"),
        ("/models=https://host/?a=b", "a URL with '?' or '#' in it"),
        ("/a/../b=s3://bucket", "'/a/../b' is no prefix of URIs"),
        (["/a=s3://one", "/a/=s3://two"], "'/a' is there twice"),
        ({"/a": {"url": "s3://one", "regoin": "x"}}, "/a: no such option 'regoin'; did you mean 'region'?"),
        ({"/a": {"region": "x"}}, "/a: url is needed"),
        ({"/a": {"url": "s3://one", "revalidate": "often"}}, "/a: revalidate takes never, always or seconds"),
        ({"/a": {"url": "s3://one", "stale_if_error": -1}}, "/a: stale_if_error: "),
        ({"/a": {"url": "s3://one", "endpoint": "http://host"}}, "is not encrypted: set allow_http"),
        ({"/a": {"url": "s3://one", "options": {"secret": [CANARY]}}}, "/a: options.secret"),
        ({"/a": 5}, "/a: expected a URL or a table with one (got int)"),
    ],
)
def test_a_wrong_origin_is_one_line(tmp_path: Path, given: object, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.load(root=tmp_path, origins=given)
    text = str(caught.value)
    assert problem in text
    assert "\n" not in text
    assert CANARY not in text


def test_no_document_shows_the_values_of_options(tmp_path: Path) -> None:
    origin = {"url": "s3://bucket", "options": {"secret_access_key": CANARY}}
    config = Config(root=tmp_path, origins={"/a": origin}, unix=tmp_path / "s")
    document = json.dumps({name: each.model_dump() for name, each in effective_settings(config).items()})
    assert "secret_access_key" in document
    for text in (document, repr(config), str(config), repr(config.origins)):
        assert CANARY not in text


def test_the_options_of_a_store_have_the_names_of_the_crate() -> None:
    (origin,) = parse_origins(
        {
            "/a": {
                "url": "s3://bucket",
                "endpoint": "http://127.0.0.1:9000",
                "allow_http": True,
                "path_style": True,
                "anonymous": True,
                "options": {"token": "t"},
            }
        }
    ).values()
    assert origin.kind == "S3"
    assert origin.store_options == {
        "endpoint": "http://127.0.0.1:9000",
        "allow_http": "true",
        "region": "us-east-1",
        "virtual_hosted_style_request": "false",
        "skip_signature": "true",
        "token": "t",
    }


def test_the_cache_lies_where_systemd_or_the_user_keeps_caches() -> None:
    assert default_disk_cache({"CACHE_DIRECTORY": "/var/cache/objmapper"}) == Path("/var/cache/objmapper")
    assert default_disk_cache({"XDG_CACHE_HOME": "/x"}) == Path("/x/objmapper")
    assert default_disk_cache({}) == Path.home() / ".cache" / "objmapper"
