"""Seeing a service: a line a client in the terminal, lines of JSON in a file, Prometheus' text, a live page.

All show the same: `Service.snapshot()`, {'server': {...}, 'clients': [{...}, ...]}.
"""
from __future__ import annotations

import json
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Callable, Dict, List, TextIO, Tuple

from config import UserError

Snapshot = Dict[str, Any]
PAGE = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'live.html')
COUNTERS = ('answered', 'dropped', 'switches', 'refused', 'left', 'restarts')  # of Prometheus; other numbers are gauges
LABELS = ('name', 'entry', 'network', 'peer', 'wire')
PLAIN_S = 60.0  # between two blocks of lines where there is no terminal


def line_of(client: Snapshot) -> str:
    """A client in one line."""
    def number(name: str, form: str) -> str:
        return '-' if client[name] is None else format(client[name], form)

    promised = '' if client['promised_fps'] is None else f" of {client['promised_fps']:g}"
    stages = ', '.join(f"{stage} {number(f'{stage}_ms', '.1f')}" for stage in ('head', 'link', 'wait', 'tail'))
    return (f"{client['name'][:20]:20} {client['entry'][:16]:16} λ {client['lambda']:2} {client['wire'][:12]:12} "
            f"{number('fps', '6.1f')}{promised} fps, latency {number('latency_p50_ms', '.1f')} ms (99 %: "
            f"{number('latency_p99_ms', '.1f')}): {stages}; {client['dropped']} dropped")


def lines_of(snapshot: Snapshot) -> List[str]:
    """All clients, and the server in the last line."""
    server = snapshot['server']
    return [*map(line_of, snapshot['clients']),
            f"{len(snapshot['clients'])} client(s), workers busy {100 * server['busy']:.0f} %, {server['waiting']} "
            f"frame(s) wait, {server['refused']} client(s) refused, {server['restarts']} worker(s) restarted"]


class Terminal:
    """The present state as the last lines of a terminal, rewritten in place; messages scroll by above them. Where the
    stream is no terminal, the same lines from time to time."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._in_place = stream, stream.isatty()
        self._shown: List[str] = []
        self._next_s = PLAIN_S
        self._lock = threading.Lock()

    def say(self, message: str) -> None:
        """A message."""
        with self._lock:
            self._write([message], self._shown)

    def show(self, snapshot: Snapshot) -> None:
        """The present state."""
        with self._lock:
            if self._in_place:
                width = os.get_terminal_size(self._stream.fileno()).columns
                self._write([], [line[:width - 1] for line in lines_of(snapshot)])
            elif snapshot['server']['up_s'] >= self._next_s:
                self._next_s += PLAIN_S
                self._write(lines_of(snapshot), [])

    def _write(self, messages: List[str], shown: List[str]) -> None:
        erase = '\x1b[A\x1b[2K' * len(self._shown) if self._in_place else ''
        self._shown = shown if self._in_place else []
        self._stream.write(erase + ''.join(f'{line}\n' for line in (*messages, *self._shown)))
        self._stream.flush()


class LogFile:
    """A line of JSON for every snapshot."""

    def __init__(self, path: str) -> None:
        try:
            self._stream = open(path, 'a', encoding='utf-8')
        except OSError as error:
            raise UserError(f'--log_jsonl {path}: {error.strerror}') from None

    def show(self, snapshot: Snapshot) -> None:
        """Add a line."""
        self._stream.write(json.dumps(snapshot) + '\n')
        self._stream.flush()


def prometheus_text(snapshot: Snapshot) -> str:
    """The snapshot in the text format of Prometheus, version 0.0.4."""
    found: Dict[str, List[str]] = {}
    clients = [('split_client_', client) for client in snapshot['clients']]
    for prefix, entry in [('split_server_', snapshot['server']), *clients]:
        labels = ','.join(f'{name}="{_escaped(entry[name])}"' for name in LABELS if name in entry)
        for name, value in entry.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                metric = prefix + name + ('_total' if name in COUNTERS else '')
                found.setdefault(metric, []).append(f"{metric}{'{' + labels + '}' if labels else ''} {value}")
    lines: List[str] = []
    for metric, samples in found.items():
        lines += [f"# TYPE {metric} {'counter' if metric.endswith('_total') else 'gauge'}", *samples]
    return '\n'.join(lines) + '\n'


def _escaped(text: str) -> str:
    return text.replace('\\', '\\\\').replace('"', '\\"').replace('\n', '\\n')


class Page:
    """`/` a live page, `/state` its data, `/metrics` for Prometheus: on this machine's loopback only."""

    def __init__(self, port: int, snapshot: Callable[[], Snapshot]) -> None:
        with open(PAGE, 'rb') as stream:
            page = stream.read()
        answers: Dict[str, Callable[[], Tuple[str, bytes]]] = {
            '/': lambda: ('text/html; charset=utf-8', page),
            '/state': lambda: ('application/json', json.dumps(snapshot()).encode()),
            '/metrics': lambda: ('text/plain; version=0.0.4; charset=utf-8', prometheus_text(snapshot()).encode())}
        try:
            self._server = ThreadingHTTPServer(('127.0.0.1', port), _handler(answers))
        except OSError as error:
            raise UserError(f'--web_port {port}: {error.strerror}') from None
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, name='page', daemon=True).start()

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()


def _handler(answers: Dict[str, Callable[[], Tuple[str, bytes]]]) -> type:
    class Handler(BaseHTTPRequestHandler):
        """Answers GET."""
        timeout = 10.0  # for a request to come

        def do_GET(self) -> None:  # the name that http.server looks for
            """One of `answers`."""
            host = re.sub(r':\d+$', '', self.headers.get('Host', ''))
            answer = answers.get(self.path.partition('?')[0])
            if host not in ('127.0.0.1', 'localhost'):  # a page elsewhere whose name was made to lead here
                self.send_error(403, 'only for 127.0.0.1 and localhost')
            elif answer is None:
                self.send_error(404)
            else:
                kind, body = answer()
                self.send_response(200)
                self.send_header('Content-Type', kind)
                self.send_header('Content-Length', str(len(body)))
                self.send_header('Content-Security-Policy', "default-src 'self' 'unsafe-inline'")
                self.send_header('Cache-Control', 'no-store')
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            """Nothing: the terminal shows the clients."""

    return Handler
