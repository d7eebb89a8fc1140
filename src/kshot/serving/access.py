"""Who may ask: keys with scopes, of which only hashes are kept.

A line of the key file, which only its owner may read: NAME SCOPES SHA256, where SCOPES are read, or read,write. The
same lines, with ; between them, may stand in the environment variable KSHOT_SERVICE_KEYS instead.
"""

import base64
import binascii
import hmac
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

from kshot.errors import ConfigError

Scope = Literal["read", "write"]

KEYS_VARIABLE = "KSHOT_SERVICE_KEYS"
_LINE = re.compile(r"(?P<name>[\w.-]{1,64}) (?P<scopes>read|read,write) (?P<hash>[0-9a-f]{64})")
_PREFIX = "kshot_"


@dataclass(frozen=True, kw_only=True)
class Key:
    name: str
    scopes: frozenset[str]
    sha256: bytes


class Keys:
    """The keys of a service; without any, whoever reaches it may do everything."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self._keys = tuple(keys)

    def __bool__(self) -> bool:
        return bool(self._keys)

    def of(self, headers: Mapping[bytes, bytes]) -> Key | None:
        """The key that a request shows: as Bearer, as X-API-Key, or as the password of a browser. It takes as long
        whether there is such a one or not."""
        shown = sha256(_secret(headers)).digest()
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.sha256, shown):
                found = key
        return found


def read_keys(path: Path | None) -> Keys:
    """Those of the file and of the environment. Raises ConfigError for a file that others may read, or a bad line."""
    lines = [(KEYS_VARIABLE, line) for line in os.environ.get(KEYS_VARIABLE, "").split(";")]
    if path is not None:
        try:
            mode, text = path.stat().st_mode, path.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"no keys at {path} ({error.strerror}); next: kshot serve-key NAME --keys {path}"
            ) from error
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConfigError(f"{path} has the mode {mode & 0o777:04o}; need 0600; next: chmod 600 {path}")
        lines += [(f"line {number} of {path}", line) for number, line in enumerate(text.splitlines(), 1)]
    return Keys(_parsed(lines))


def add_key(path: Path, name: str, *, write: bool) -> str:
    """A new key, of which only the hash goes to the file. Raises ConfigError for a name that is there, or no name."""
    secret = _PREFIX + secrets.token_urlsafe(24)
    line = f"{name} {'read,write' if write else 'read'} {sha256(secret.encode()).hexdigest()}"
    if not _LINE.fullmatch(line):
        raise ConfigError(f"found the key name {name!r}; need up to 64 letters, digits, _ . and -")
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    if any(known.split(" ")[0] == name for known in before.splitlines()):
        raise ConfigError(f"{path} has a key {name!r}; need another name, or take its line out")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.touch(mode=0o600)
    unfinished.chmod(0o600)
    unfinished.write_text(f"{before}{line}\n", encoding="utf-8")
    unfinished.replace(path)
    return secret


def _parsed(lines: Iterable[tuple[str, str]]) -> Iterator[Key]:
    for where, line in lines:
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise ConfigError(f"{where} is no key; need NAME SCOPES SHA256; next: kshot serve-key NAME")
        yield Key(name=match["name"], scopes=frozenset(match["scopes"].split(",")), sha256=bytes.fromhex(match["hash"]))


def _secret(headers: Mapping[bytes, bytes]) -> bytes:
    if b"x-api-key" in headers:
        return headers[b"x-api-key"]
    kind, _, value = headers.get(b"authorization", b"").partition(b" ")
    if kind.lower() == b"bearer":
        return value.strip()
    if kind.lower() == b"basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except binascii.Error:
            return b""
    return b""
