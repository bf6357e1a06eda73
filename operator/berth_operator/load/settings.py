"""What do flags decide about load?  How often workers are read, how slowly demand falls, where sleepers wake."""

from __future__ import annotations

import argparse
import ipaddress
from collections.abc import Callable
from dataclasses import dataclass, field

from berth_operator.load.watch import WatchSettings


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """How pools' own traffic is followed."""

    watch: WatchSettings = field(default_factory=WatchSettings)
    activator_address: str = ""
    """Ours, as clients of pools reach it; empty: no pool sleeps."""
    activator_listen: str = ""
    """Where it binds; empty: anywhere."""


def add_flags(parser: argparse.ArgumentParser, default: Callable[[str, str], str]) -> None:
    """`default(NAME, value)`: what the environment says, else the value."""
    add = parser.add_argument
    add(
        "--activator-address",
        default=default("ACTIVATOR_ADDRESS", ""),
        help="our own IP address as pools' clients reach it, to wake pools scaled to zero; default: no pool sleeps",
    )
    add("--activator-listen", default=default("ACTIVATOR_LISTEN", ""), help="address to bind for that; default: all")
    add("--load-interval", default=default("LOAD_INTERVAL", "5s"), help="read workers' metrics this often")
    add(
        "--load-stabilization",
        default=default("LOAD_STABILIZATION", "5m"),
        help="observed demand falls to the greatest of this long",
    )


def load_settings(
    given: argparse.Namespace, parser: argparse.ArgumentParser, seconds: Callable[[str, str], float]
) -> LoadSettings:
    """From parsed flags; exits by `parser.error` on bad ones.  `seconds(flag, value)` reads a duration."""
    try:
        address = str(ipaddress.ip_address(given.activator_address)) if given.activator_address else ""
    except ValueError:
        found = given.activator_address
        parser.error(f"--activator-address: found {found!r}, expected an IP address such as 10.1.2.3")
    return LoadSettings(
        watch=WatchSettings(
            every_s=max(0.1, seconds("load-interval", given.load_interval)),
            stabilisation_s=seconds("load-stabilization", given.load_stabilization),
        ),
        activator_address=address,
        activator_listen=given.activator_listen,
    )
