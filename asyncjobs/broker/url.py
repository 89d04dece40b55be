"""URLs of a store. This module parses them, because other parsers fail at a password that is not encoded, and print it.

Messages about a bad URL show only its scheme. A password may hold ``/ # ?`` and so reach into any part, but it ends at
an ``@``. So a URL is trusted if no ``@`` comes behind its host.
"""

from __future__ import annotations

import difflib
import os
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn
from urllib.parse import parse_qsl, unquote

from asyncjobs.errors import ConfigError

SCHEMES: Final = (
    "redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster",
)  # fmt: skip
EXPECTED: Final = ", ".join(f"{one}://" for one in SCHEMES)
HOST: Final = re.compile(r"\[(?P<six>[0-9A-Fa-f:.]+(?:%[\w.-]+)?)\]|(?P<name>[^\s\[\]:/?#@,%\\]+)")
EXAMPLES: Final = {
    "redis": "redis://user:password@host:6379/0",
    "sentinel": "redis+sentinel://user:password@host:26379,host:26379/mymaster/0",
    "cluster": "redis+cluster://user:password@host:6379,host:6379",
    "unix": "unix:///path/to/redis.sock?db=0",
}
# What redis-py's own URLs may say and what is decided here for every connection.
DECIDED: Final = (
    "socket_timeout", "socket_connect_timeout", "socket_keepalive", "socket_read_size", "retry_on_timeout",
    "max_connections", "health_check_interval", "timeout", "protocol", "legacy_responses", "decode_responses",
    "encoding", "encoding_errors", "lib_name", "lib_version",
)  # fmt: skip
# Other services, to be named when one of them is meant by mistake; anything else may be a piece of a password.
OTHERS: Final = (
    "http", "https", "tcp", "valkey", "valkeys", "sentinel", "amqp", "amqps", "postgres", "postgresql", "mysql", "file",
)  # fmt: skip
CERTIFICATES: Final = ("none", "optional", "required")


class _Wrong(Exception):
    """The fault of a URL, in words that hold no part of the URL."""


def _number(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise _Wrong("is a number from 0 on")
    return int(text)


def _flag(text: str) -> bool:
    known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in known:
        raise _Wrong("is true or false")
    return known[text.lower()]


def _requirement(text: str) -> str:
    plain = text.lower().removeprefix("cert_")
    if plain not in CERTIFICATES:
        raise _Wrong(f"is one of {', '.join(CERTIFICATES)}")
    return plain


def _file(text: str) -> str:
    if not os.path.isfile(text):
        raise _Wrong("names a file that is not there")
    return text


def _folder(text: str) -> str:
    if not os.path.isdir(text):
        raise _Wrong("names a folder that is not there")
    return text


def _version(text: str) -> ssl.TLSVersion:
    known = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
    known |= {str(int(one)): one for one in known.values()} | {one.name.lower(): one for one in known.values()}
    if text.lower() not in known:
        raise _Wrong("is 1.2 or 1.3")
    return known[text.lower()]


def _text(text: str) -> str:
    if not text:
        raise _Wrong("is not empty")
    return text


OPTIONS: Final[dict[str, Callable[[str], Any]]] = {
    "username": _text, "password": _text, "client_name": _text, "db": _number, "ssl_cert_reqs": _requirement,
    "ssl_ca_certs": _file, "ssl_ca_path": _folder, "ssl_ca_data": _text, "ssl_certfile": _file, "ssl_keyfile": _file,
    "ssl_password": _text, "ssl_check_hostname": _flag, "ssl_min_version": _version, "ssl_ciphers": _text,
}  # fmt: skip
SECRET: Final = ("password", "ssl_password", "sentinel_password", "sentinel_ssl_password")


def place(host: str, port: int | str) -> str:
    """A host and a port in the form of a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@dataclass
class StoreURL:
    """The parts of a URL.

    Attributes:
        kind: 'redis', 'unix', 'sentinel' or 'cluster'; secure: over TLS.
        hosts: pairs of host and port; empty for a Unix socket.
        path: the path of a Unix socket.
        service: the name by which the Sentinels know the service.
        options: for connections: username, password, db, ssl_…; guard: the same for connections to the Sentinels.
        ignored: options of the URL that asyncjobs decides itself.
    """

    kind: str
    secure: bool
    hosts: list[tuple[str, int]] = field(default_factory=list)
    path: str = ""
    service: str = ""
    options: dict[str, Any] = field(default_factory=dict, repr=False)
    guard: dict[str, Any] = field(default_factory=dict, repr=False)
    ignored: list[str] = field(default_factory=list)

    @property
    def shown(self) -> str:
        """The URL as it may be printed and logged."""
        db = self.options.get("db", 0)
        if self.kind == "unix":
            return f"unix://{self.path}" + (f"?db={db}" if db else "")
        scheme = ("rediss" if self.secure else "redis") + (f"+{self.kind}" if self.kind != "redis" else "")
        who = "***@" if "password" in self.options or "username" in self.options else ""
        where = ",".join(place(host, port) for host, port in self.hosts)
        tail = {"redis": f"/{db}", "sentinel": f"/{self.service}/{db}", "cluster": ""}[self.kind]
        return f"{scheme}://{who}{where}{tail}"


def parsed(url: str) -> StoreURL:
    """Parse `url`.

    Raises:
        ConfigError: `url` is no URL of a store. The message holds only its scheme.
    """
    url = url.strip()
    scheme, colon, rest = url.partition("://")
    scheme = scheme.lower()
    if not colon or scheme not in SCHEMES:
        near = difflib.get_close_matches(scheme, SCHEMES, n=1, cutoff=0.8) if colon else []
        hint = f"; did you mean {near[0]}://?" if near else ""
        given = f" {scheme}://" if colon and scheme in OTHERS else ""
        raise ConfigError(f"redis=…: unknown scheme{given}, expected {EXPECTED}{hint}")
    reason = ""
    try:
        return _taken_apart(scheme, rest)
    except _Wrong as wrong:
        reason = str(wrong)
    raise ConfigError(f"redis='{scheme}://…': {reason}")  # outside the except, so that no error is chained


def _taken_apart(scheme: str, rest: str) -> StoreURL:
    family, _, kind = scheme.partition("+")
    made = StoreURL(kind or ("unix" if family == "unix" else "redis"), family == "rediss")
    end = re.search(r"[/?#]", rest)
    authority, behind = (rest, "") if end is None else (rest[: end.start()], rest[end.start() :])
    if "@" in behind and (authority or made.kind != "unix"):
        raise _Wrong(
            "an @ comes behind the host, so the password holds a character that must be percent-encoded "
            "(/ is %2F, # is %23, ? is %3F, @ is %40)"
        )
    if "#" in behind:
        raise _Wrong("a # must be percent-encoded, %23")
    userinfo, at, hosts = authority.rpartition("@")
    path, _, query = behind.partition("?")
    user, _, password = userinfo.partition(":")
    if at:
        given = {"username": unquote(user), "password": unquote(password)}
        made.options |= {key: value for key, value in given.items() if value}
    if made.kind == "unix":
        if hosts or not path.startswith("/"):
            raise _Wrong(f"a Unix socket is named by its whole path, {EXAMPLES['unix']}")
        made.path = unquote(path)
    else:
        made.hosts = _hosts(hosts, made.kind)
        _path(made, path.strip("/"))
    _query(made, query)
    return made


def _hosts(text: str, kind: str) -> list[tuple[str, int]]:
    """``host:port,[::1]:port,host``"""
    found = []
    for one in text.split(",") if kind != "redis" else [text]:
        match = HOST.match(one)
        if match is None:
            raise _Wrong(f"it names no host; expected {EXAMPLES[kind]}")
        colon, port = one[match.end() : match.end() + 1], one[match.end() + 1 :]
        if colon and (colon != ":" or (":" in port and not match["six"])):
            raise _Wrong(f"its host is none; expected {EXAMPLES[kind]}, an IPv6 address in brackets: [::1]:6379")
        if colon and not (re.fullmatch(r"[0-9]{1,5}", port) and 0 < int(port) < 65536):
            raise _Wrong(f"the port is a number from 1 to 65535; expected {EXAMPLES[kind]}")
        found.append((match["six"] or match["name"], int(port) if colon else 26379 if kind == "sentinel" else 6379))
    return found


def _path(made: StoreURL, path: str) -> None:
    """Read the database from the path. A Cluster has only one, and a Sentinel URL names the service before it."""
    if made.kind == "cluster":
        if path:
            raise _Wrong("a Cluster has no numbered databases")
        return
    if made.kind == "sentinel":
        service, _, path = path.partition("/")
        if not service:
            raise _Wrong(f"a Sentinel URL names the service: {EXAMPLES['sentinel']}")
        made.service = unquote(service)
    if path:
        made.options["db"] = _checked("the database", _number, path)


def _checked(name: str, check: Callable[[str], Any], value: str) -> Any:
    try:
        return check(value)
    except _Wrong as wrong:
        reason = str(wrong)
    raise _Wrong(f"{name} {reason}")


def _query(made: StoreURL, query: str) -> None:
    for one in query.split("&") if query else ():
        if not one or "=" not in one:
            raise _Wrong("behind the ? stand options, name=value&name=value")
    seen: set[str] = set()
    for name, value in parse_qsl(query, keep_blank_values=True):
        plain = name.removeprefix("sentinel_") if made.kind == "sentinel" else name
        options = made.options if plain == name else made.guard
        if name in seen:
            raise _Wrong(f"the option {name} is given twice")
        seen.add(name)
        if name in DECIDED:
            made.ignored.append(name)
        elif name == "sentinel_ssl" and made.kind == "sentinel":
            made.guard["ssl"] = _checked(f"the option {name}", _flag, value)
        elif plain in OPTIONS and not (plain == "db" and plain != name):
            _option(made, options, name, plain, value)
        else:
            _unknown(name, made.kind)
    if any(one.startswith("ssl_") for one in made.guard) and not made.guard.get("ssl"):
        raise _Wrong("options sentinel_ssl_… need sentinel_ssl=true")


def _option(made: StoreURL, options: dict[str, Any], name: str, plain: str, value: str) -> None:
    checked = _checked(f"the option {name}", OPTIONS[plain], value)
    if plain.startswith("ssl_") and options is made.options and not made.secure:
        raise _Wrong(f"the option {name} needs TLS, rediss://")
    if plain == "db" and made.kind == "cluster":
        raise _Wrong("a Cluster has no numbered databases")
    if options.get(plain, checked) != checked:
        raise _Wrong(f"{name} is given twice, with two values")
    options[plain] = checked


def _unknown(name: str, kind: str) -> NoReturn:
    allowed = [*OPTIONS, *(f"sentinel_{one}" for one in OPTIONS if kind == "sentinel" and one != "db")]
    near = difflib.get_close_matches(name, allowed, n=1)
    named = f" {name}" if re.fullmatch(r"[A-Za-z_]{2,30}", name) else ""
    hint = f"did you mean {near[0]}? " if near else ""
    raise _Wrong(f"there is no option{named}; {hint}allowed: {', '.join(allowed)}")
