"""Run a service until it is told to stop, and show what it does."""
from __future__ import annotations

import signal
import sys
import threading
from typing import List, Mapping, NamedTuple, Optional

import cli
from config import Settings
from network_utils import Address, Listener, token_from_environment
from service.entries import Entry, class_names
from service.server import Service
from service.shift import References
from service.workers import StartWorkers, start_processes
from service.watching import LogFile, Page, Terminal
from wire.certificates import listening_context

NAMES_SHOWN = 10
SHOWN_S = 1.0  # between two looks at the state


class Watching(NamedTuple):
    """Where the state is shown beside the terminal."""
    log_jsonl: Optional[str] = None  # a file
    web_port: Optional[int] = None  # of the live page; 0: any free one


def run(settings: Settings, entries: Mapping[str, Entry], workers: int, listening: cli.Listening, watching: Watching,
        adapts: bool, references: Optional[References] = None, start_workers: StartWorkers = start_processes) -> None:
    """Serve these entries (`Service`). Raises `UserError` when it cannot listen."""
    terminal, stopped = Terminal(sys.stderr), threading.Event()
    shown = [terminal, *([LogFile(watching.log_jsonl)] if watching.log_jsonl else [])]
    port = settings.PORT_MAIN if listening.port is None else listening.port
    listener = Listener(Address(listening.bind or settings.SERVER_IP, port), token_from_environment(), 'service',
                        ('camera',), terminal.say, listening.allow_open, tls=listening_context(listening.tls))
    service = Service(settings, entries, workers, class_names(settings), terminal.say, adapts, references,
                      start_workers)
    page = None
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        service.start()
        if watching.web_port is not None:
            page = Page(watching.web_port, service.snapshot)
            terminal.say(f'live page: http://127.0.0.1:{page.port}/')
        names = [*list(entries)[:NAMES_SHOWN], *(['...'] if len(entries) > NAMES_SHOWN else [])]
        terminal.say(f"serving {', '.join(names)} on {listener.address} with {workers} worker(s)")
        threading.Thread(target=_show, args=(service, shown, stopped), name='show', daemon=True).start()
        service.serve(listener)
    finally:
        stopped.set()
        listener.close()
        service.close()
        if page is not None:
            page.close()


def _show(service: Service, shown: List, stopped: threading.Event) -> None:
    """Show the state every SHOWN_S seconds."""
    while not stopped.wait(SHOWN_S):
        snapshot = service.snapshot()
        for place in shown:
            place.show(snapshot)
