"""Where is the API server, and who are we to it?  kubernetes_asyncio's answer, without its generated client.

The library imports some 860 generated modules, none of which we use: 60 MB of the operator's memory, and a second of
the start of each command.  What we do use is imported past them; whoever imports the library elsewhere gets all of it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

__all__ = ["Configuration", "RESTClientObject", "config", "without_generated_client"]

_LIBRARY: Final = "kubernetes_asyncio"

if TYPE_CHECKING:
    from kubernetes_asyncio import config
    from kubernetes_asyncio.client import Configuration
    from kubernetes_asyncio.client.rest import RESTClientObject


@contextmanager
def without_generated_client() -> Iterator[None]:
    """What is imported in here finds only those modules of the library that it names; nothing of it stays imported.

    Where the library has been imported already, in whole, nothing is left out.
    """
    found = None if _LIBRARY in sys.modules else importlib.util.find_spec(_LIBRARY)
    if found is None or not found.submodule_search_locations:
        yield
        return
    (folder,) = found.submodule_search_locations
    _package(_LIBRARY, folder)
    client = _package(f"{_LIBRARY}.client", f"{folder}/client")
    try:
        client.Configuration = importlib.import_module(f"{_LIBRARY}.client.configuration").Configuration
        client.ApiClient = None  # for functions that nobody calls here
        yield
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == _LIBRARY]:
            del sys.modules[name]


def _package(name: str, folder: str) -> Any:
    package = ModuleType(name)
    package.__path__ = [folder]
    sys.modules[name] = package
    return package


if not TYPE_CHECKING:
    with without_generated_client():
        from kubernetes_asyncio.client import Configuration
        from kubernetes_asyncio.client.rest import RESTClientObject

        config = importlib.import_module(f"{_LIBRARY}.config")
