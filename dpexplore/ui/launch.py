"""Serve the page: check what was asked for, put together what it runs on, and listen."""

from __future__ import annotations

import ipaddress
import os
import socket
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec

from dpexplore.errors import InputError
from dpexplore.extras import missing
from dpexplore.models import DEFAULT_MODEL, load_model
from dpexplore.models.memory import reserve_little
from dpexplore.serving.app_context import AppContext
from dpexplore.serving.model_pool import ModelPool
from dpexplore.space import VisitorRules, running_on_a_space
from dpexplore.space.zero import SlicedServer, slice_on_zero
from dpexplore.ui.gate import own_names
from dpexplore.ui.server import log_as_json, serve

SPACE_PROXIES = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")
"""A Space is reached through its host's own proxies alone, which stand in private networks."""


@dataclass(frozen=True)
class Options:
    """How the page is served; the fields are the options of `dpexplore app`."""

    host: str
    port: int
    model: str | None
    mcp: bool
    grace_seconds: float
    public: bool
    auth: tuple[str, ...]
    root_path: str | None
    log_text: bool
    allowed_hosts: tuple[str, ...] = ()
    trusted_proxies: tuple[str, ...] = ()


def launch(options: Options) -> None:
    """Serve the page until the process is asked to end. InputError, before anything is loaded, if it cannot be."""
    reserve_little()
    check(options)
    # uvicorn reads it: a client's address is taken from a header where these, and nobody else, have written it.
    hops = options.trusted_proxies or (SPACE_PROXIES if running_on_a_space() else ())
    os.environ["FORWARDED_ALLOW_IPS"] = ",".join(hops)
    app = context(options.model, public=options.public or running_on_a_space())
    app = replace(app, grace_seconds=options.grace_seconds)
    if app.rules:
        log_as_json(with_text=options.log_text)
    print(f"dpexplore is at http://{options.host}:{options.port}", flush=True)
    if options.mcp:
        print(f"MCP is at http://{options.host}:{options.port}/gradio_api/mcp/", flush=True)
    logins = [tuple(login.split(":", 1)) for login in options.auth]
    settings = {"auth": logins or None, "root_path": options.root_path, "mcp_server": options.mcp}
    anybody = app.rules is not None and not options.allowed_hosts
    names = None if anybody else own_names(options.host, options.allowed_hosts)
    serve(app, options.host, options.port, names, **settings)


def check(options: Options) -> None:
    """InputError if the logins cannot be read, MCP is not installed, or nothing can listen at the address."""
    if any(not all(login.partition(":")) for login in options.auth):
        raise InputError("--auth takes USER:PASSWORD, such as ada:secret.")
    if options.mcp and not find_spec("mcp"):
        raise missing("--mcp", "mcp")
    if not 1 <= options.port <= 65535:
        raise InputError(f"Port {options.port} is out of range; ports go from 1 to 65535.")
    for proxy in options.trusted_proxies:
        try:
            ipaddress.ip_network(proxy)
        except ValueError:
            raise InputError(f"--trusted-proxies {proxy!r} is not an address; give one such as 10.0.0.0/8.") from None
    where = f"{options.host}:{options.port}"
    try:
        family = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((options.host, options.port))
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"Cannot listen on {where} ({reason}); choose another with --host and --port.") from None


def context(model: str | None, *, public: bool) -> AppContext:
    """What the page runs on. InputError if the manifest is wrong, or does not offer the model."""
    if not public:
        return AppContext(model=model or DEFAULT_MODEL)
    rules = VisitorRules.of_this_machine()
    wanted = model or rules.manifest.models.default
    rules.check_model(wanted)
    if rules.machine != "zero":
        return AppContext(pool=ModelPool(permit=rules.check_model), model=wanted, rules=rules)
    seconds = rules.limits.slice_seconds
    server = partial(SlicedServer, slice_of=slice_on_zero(seconds), seconds=seconds)
    pool = ModelPool(partial(load_model, device="cpu"), rules.check_model, server)
    return AppContext(pool=pool, model=wanted, rules=rules)
