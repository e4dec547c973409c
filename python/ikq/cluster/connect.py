"""Ray: `ray_library`, `connected`."""

from __future__ import annotations

import importlib
import ipaddress
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from ikq.cluster.output import rays_words_on_stderr
from ikq.errors import RefusedError, UnsupportedError

__all__ = ["check_address", "connected", "ray_library"]


_KNOCK_SECONDS = 10.0


def ray_library() -> Any:
    """The module `ray`.

    Raises:
        UnsupportedError: it is not installed.
    """
    # nothing is told to its makers unless the user wants that
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # the driver's own signals stay its own; GPUs are not Ray's to hide here
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        return importlib.import_module("ray")
    except ModuleNotFoundError:
        raise UnsupportedError('--cluster needs Ray: pip install "ikq[cluster]"') from None


def check_address(address: str) -> str | None:
    """Looks at an address before anything is begun; a sentence to show where its port may be an open door.

    Args:
        address: `local`, or `HOST:PORT` of a cluster's head.

    Raises:
        RefusedError: it is neither.
    """
    if address == "local":
        return None
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or "://" in address:
        raise RefusedError(f"--cluster {address}: give `local`, or HOST:PORT of the head of a Ray cluster")
    if _is_loopback(host.strip("[]")):
        return None
    has_tls = os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")
    has_token = os.environ.get("RAY_AUTH_MODE", "").lower() == "token"
    if has_tls and has_token:
        return None
    lacking = " and ".join(
        text
        for text, there in (("TLS (RAY_USE_TLS=1)", has_tls), ("a token (RAY_AUTH_MODE=token)", has_token))
        if not there
    )
    return (
        f"warning: {host} is not this machine, and the connection is without {lacking}: whoever reaches a "
        "port of Ray runs what they like on its nodes; see docs/cluster.md"
    )


def _stays_here(address: str) -> bool:
    return address == "local" or _is_loopback(address.rpartition(":")[0].strip("[]"))


def _knock(address: str) -> None:
    """Finds out at once that nobody is there, which Ray would try for minutes.

    Raises:
        OSError: nobody is.
    """
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_SECONDS).close()


def _check_loopback(ray: Any) -> None:
    """Looks at where a cluster of this machine listens.

    Raises:
        RefusedError: others can reach it.
    """
    addresses = {node["NodeManagerAddress"] for node in ray.nodes()}
    if not all(_is_loopback(address) for address in addresses):
        raise RefusedError(
            f"--cluster local: Ray listens on {', '.join(sorted(addresses))}, which others may reach; set "
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 before `ray` is imported"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextmanager
def connected(address: str, n_cpus: int | None, on_note: Callable[[str], None] | None) -> Iterator[Any]:
    """A connection to a cluster while the block runs; its value is the module `ray`.

    Args:
        address: as `check_address` has it; `local` starts a cluster of one node on the loopback.
        n_cpus: of that node; `None` is all.
        on_note: called with a warning about the address.

    Raises:
        RefusedError: the address is none, or nobody answers there.
        UnsupportedError: Ray is not installed.
    """
    warning = check_address(address)
    if _stays_here(address):
        # Ray puts the machine's outer address in the place of the loopback's, and then listens on all
        # interfaces, unless it is told that there are no clusters on this system
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    ray = ray_library()
    if warning is not None and on_note is not None:
        on_note(warning)
    own = not ray.is_initialized()
    if own:
        common = {"log_to_driver": False, "logging_level": logging.ERROR}
        try:
            if address == "local":
                ray.init(
                    address="local",
                    num_cpus=n_cpus,
                    include_dashboard=False,
                    **common,
                )
            else:
                _knock(address)
                ray.init(address=address, **common)
        except (OSError, RuntimeError) as e:
            raise RefusedError(f"--cluster {address}: there is no cluster that answers: {e}") from None
    with rays_words_on_stderr():
        try:
            if own and address == "local":
                _check_loopback(ray)
            yield ray
        finally:
            if own:
                # the thread that calls this then says what Ray's threads had kept back
                with redirect_stdout(sys.stderr):
                    ray.shutdown()
