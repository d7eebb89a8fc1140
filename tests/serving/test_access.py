import base64
import stat
from pathlib import Path

import pytest

from kshot.errors import ConfigError
from kshot.serving.access import KEYS_VARIABLE, Keys, add_key, read_keys


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys" / "keys.txt"


def shown(keys: Keys, name: bytes, value: bytes) -> str | None:
    key = keys.of({name: value})
    return None if key is None else key.name


def test_a_key_is_known_by_any_header_and_kept_as_a_hash_alone(file: Path) -> None:
    secret = add_key(file, "camera", write=False)
    add_key(file, "line", write=True)
    keys = read_keys(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert secret not in file.read_text()
    basic = b"Basic " + base64.b64encode(b"anyone:" + secret.encode())
    assert shown(keys, b"authorization", b"Bearer " + secret.encode()) == "camera"
    assert shown(keys, b"authorization", basic) == "camera"
    assert shown(keys, b"x-api-key", secret.encode()) == "camera"
    assert keys.of({b"x-api-key": secret.encode()}).scopes == {"read"}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "value", [b"", b"Bearer ", b"Bearer wrong", b"Basic !!!", b"Basic ", b"Digest x", b"Bearer \xff"]
)
def test_no_other_header_is_a_key(file: Path, value: bytes) -> None:
    add_key(file, "camera", write=False)
    assert shown(read_keys(file), b"authorization", value) is None


def test_keys_may_stand_in_the_environment(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = add_key(file, "camera", write=True)
    monkeypatch.setenv(KEYS_VARIABLE, file.read_text().strip())
    assert shown(read_keys(None), b"x-api-key", secret.encode()) == "camera"


def test_a_file_that_others_may_read_is_refused(file: Path) -> None:
    add_key(file, "camera", write=False)
    file.chmod(0o640)
    with pytest.raises(ConfigError, match=r"has the mode 0640; need 0600; next: chmod 600"):
        read_keys(file)


def test_bad_names_twice_the_same_and_bad_lines_are_refused(file: Path, tmp_path: Path) -> None:
    add_key(file, "camera", write=False)
    with pytest.raises(ConfigError, match="has a key 'camera'"):
        add_key(file, "camera", write=True)
    with pytest.raises(ConfigError, match="found the key name 'a b'"):
        add_key(file, "a b", write=False)
    file.write_text("camera read,delete 00\n")
    with pytest.raises(ConfigError, match=r"line 1 of .* is no key"):
        read_keys(file)
    with pytest.raises(ConfigError, match=r"no keys at .*; next: kshot serve-key"):
        read_keys(tmp_path / "none")
