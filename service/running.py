"""Run a service until it is told to stop."""
from __future__ import annotations

import signal
import sys
from typing import Optional, Sequence

import cli
from config import Settings
from network_utils import Address, Listener, token_from_environment
from service.entries import class_names, entries_of_results
from service.server import Service


def run(settings: Settings, domains: Sequence[int], workers: int, bind: Optional[str], port: Optional[int],
        allow_open: bool) -> None:
    """Serve the results of these domains. Raises `UserError` when there is none, or when it cannot listen."""
    entries = entries_of_results(domains, settings)
    address = Address(bind or settings.SERVER_IP, settings.PORT_MAIN if port is None else port)
    listener = Listener(address, token_from_environment(), 'service', ('camera',), cli.say, allow_open)
    service = Service(settings, entries, workers, class_names(settings))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        service.start()
        cli.say(f"serving {', '.join(entries)} on {listener.address} with {workers} worker(s)")
        service.serve(listener)
    finally:
        listener.close()
        service.close()
