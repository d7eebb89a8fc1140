"""Servers: a free port for one on this machine, whether one answers, and in what words one does not."""

import base64
import http.client
import json
import os
import socket
import ssl
import urllib.request
from collections.abc import Iterator
from urllib.error import HTTPError
from urllib.parse import urlsplit

LOCALHOST = "127.0.0.1"
PATIENCE_S = 5.0  # for the first answer of a server
_OWN_ADDRESSES = (LOCALHOST, "localhost", "::1")
_NO_PROXY = ("no_proxy", "NO_PROXY")


def keep_own_addresses_off_proxies() -> None:
    """Let nobody here, nor in a process that is started from here, ask a proxy for a server of this machine.

    To be called before the first client is made. What the user has in NO_PROXY stays.
    """
    if not any(name.lower().endswith("_proxy") for name, value in os.environ.items() if value):
        return  # nothing to keep off, and where the system names proxies, NO_PROXY alone would turn them off
    known = [part.strip() for name in _NO_PROXY for part in os.environ.get(name, "").split(",")]
    if "*" in known:
        return
    joined = ",".join(dict.fromkeys((*filter(None, known), *_OWN_ADDRESSES)))
    os.environ.update(dict.fromkeys(_NO_PROXY, joined))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOCALHOST, 0))
        port: int = probe.getsockname()[1]
        return port


def is_free(port: int) -> bool:
    """Whether nothing on this machine listens at the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOCALHOST, port))
        except OSError:
            return False
    return True


def answers(url: str) -> bool:
    """Whether a server of this machine answers with status 200."""
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError):
        return False


def silence(url: str, *, is_page: bool = False) -> str:
    """Why the server at `url` is of no use; "" where it answers, and be it that it asks for a key.

    `is_page`: there is a page at this very path, without which it is another server.
    """
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # whom to trust is its clients' to say
    opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context))
    try:
        opener.open(public(url), timeout=PATIENCE_S).close()
    except HTTPError as error:
        is_trouble = error.code >= 500 or (is_page and error.code == 404)
        return f"it answers {error.code} {error.reason}" if is_trouble else ""
    except (OSError, ValueError) as error:
        return why_silent(error)
    return ""


def why_silent(error: BaseException) -> str:
    """What stopped a client, in a few words, from the error that it raised or one behind that."""
    for cause in _causes(error):
        if status := getattr(getattr(cause, "response", None), "status_code", None):
            return f"it answers {status} {http.client.responses.get(status, '')}".rstrip()
        match cause:
            case json.JSONDecodeError():
                return "it answers with a page of something else"
            case socket.gaierror():
                return "no machine of that name is known"
            case ConnectionRefusedError():
                return "nothing listens there"
            case ssl.SSLCertVerificationError():
                return f"its certificate is not trusted ({cause.verify_message})"
            case ssl.SSLError():
                return "it does not speak https"
            case ConnectionResetError() | ConnectionAbortedError() | BrokenPipeError():
                return "it hangs up without an answer"
            case _ if "timeout" in type(cause).__name__.lower():
                return f"no answer in {PATIENCE_S:.0f} s"
            case OSError() if cause.strerror:
                return cause.strerror.lower()
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def authorization(words: str, token: str) -> dict[str, str]:
    """The header of a question with `words`, user:password, or else with a token; none without either."""
    if words:
        return {"Authorization": f"Basic {base64.b64encode(words.encode()).decode()}"}
    return {"Authorization": f"Bearer {token}"} if token else {}


def public(url: str) -> str:
    """The URL without the user and password that it may carry."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def proxy_for(url: str) -> str:
    """Words for an error about `url`: the proxy that clients would ask for it; "" where there is none."""
    parts = urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme) or urllib.request.getproxies().get("all")
    if not proxy or not parts.hostname or urllib.request.proxy_bypass(parts.hostname):
        return ""
    return f" by way of the proxy {public(proxy)}, which NO_PROXY={parts.hostname} would leave out"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and those behind it, innermost first: clients wrap them in their own."""
    behind = [error.__cause__, error.__context__, getattr(error, "reason", None), *error.args]
    for one in behind:
        if isinstance(one, BaseException) and one is not error:
            yield from _causes(one)
    yield error
