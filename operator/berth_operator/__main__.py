"""Start-up only: settings, logs, then kopf runs the process until a signal or a failure ends it."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import sys
from collections.abc import Sequence

import berth_operator.handlers  # noqa: F401 - registers the handlers
from berth_operator import logs, settings
from berth_operator.cluster.kube import ApiError
from berth_operator.kopf_import import kopf
from berth_operator.prices.aws import AwsPriceError
from berth_operator.process import Operator


async def run(given: settings.Settings) -> int:
    """Run one operator to its end.  Returns 0 after SIGTERM or SIGINT, 1 when it could not go on.

    Raises ApiError without a way to the API server, OSError where it cannot listen, AwsPriceError without boto3 for it.
    """
    operator = Operator(given)
    await operator.prepare()
    await kopf.operator(
        standalone=True,
        clusterwide=True,
        liveness_endpoint=f"http://{joined(given.health_address)}/healthz",
        stop_flag=operator.ending,
        memo=operator,
    )
    return 1 if operator.failed else 0


def main(arguments: Sequence[str] | None = None) -> None:
    """The command `berth-operator`."""
    given = settings.parse(sys.argv[1:] if arguments is None else arguments)
    logs.configure(given.log_format, given.log_level)
    open_as_many_files_as_allowed()
    try:
        sys.exit(asyncio.run(run(given)))
    except (ApiError, AwsPriceError) as error:
        sys.exit(f"berth-operator: {error}")
    except OSError as error:
        sys.exit(f"berth-operator: cannot listen on {_addresses(given)}: {error}")


def open_as_many_files_as_allowed() -> None:
    """Each connection that the activator holds takes two, and containers begin with 1,024 since containerd 2.0."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _addresses(given: settings.Settings) -> str:
    return " and ".join(map(joined, (given.metrics_address, given.health_address)))


def joined(address: tuple[str, int]) -> str:
    """HOST:PORT, as URLs have it: an IPv6 address in brackets."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


if __name__ == "__main__":
    main()
