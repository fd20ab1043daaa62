"""What is shown of a service: the same numbers everywhere, whatever a client calls itself."""
from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import urllib.error
import urllib.request

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import UserError
from service.figures import WINDOW_S, Answered, BusyTime, ClientFigures
from service.watching import PAGE, LogFile, Page, Terminal, lines_of, prometheus_text

NAMES = st.text(st.characters(exclude_categories=['Cc', 'Cs', 'Zl', 'Zp']), max_size=30)


def snapshot_of(name: str = 'gate', fps: float = 12.5, n: int = 2, up_s: float = 100.0):
    figures = ClientFigures().snapshot(0.0)
    client = {'name': name, 'peer': '127.0.0.1:5', 'entry': 'domain_0', 'network': 'domain_0', 'live': False,
              'lambda': 4, 'wire': 'uint8', 'promised_fps': 15.0, 'predicted_head_ms': 1.0, 'predicted_tail_ms': 2.0,
              'bytes_per_frame': 100.0, 'unanswered': 1, **figures, 'fps': fps}
    server = {'time_s': 1.0, 'up_s': up_s, 'workers': 2, 'busy': 0.5, 'waiting': 3, 'n_clients': n, 'refused': 1,
              'left': 2, 'restarts': 0}
    return {'server': server, 'clients': [client] * n}


@given(st.lists(st.tuples(st.floats(0.01, 3), st.floats(0.1, 100)), max_size=60))
def test_rates_and_latencies_are_those_of_the_last_seconds(gaps):
    figures, at_s = ClientFigures(joined_s=0.0), 0.0
    times = []
    for gap_s, latency_ms in gaps:
        at_s += gap_s
        times.append((at_s, latency_ms))
        figures.add(Answered(at_s, 1.0, 1.0, 0.0, 1.0, latency_ms, 1))
    found = figures.snapshot(at_s)
    recent = [latency for when, latency in times if at_s - when <= WINDOW_S]
    span_s = min(WINDOW_S, max(at_s, 1e-3))
    assert found['fps'] == pytest.approx(len(recent) / span_s, abs=1e-3)
    if recent:
        assert min(recent) - 1e-3 <= found['latency_p50_ms'] <= found['latency_p99_ms'] <= max(recent) + 1e-3
    assert figures.snapshot(at_s + 2 * WINDOW_S)['fps'] == 0


def test_how_busy_a_worker_is():
    busy = BusyTime()
    for second in range(30):
        busy.begin(second)
        busy.end(second + 0.25)
    assert busy.share(30.0) == pytest.approx(0.25)
    busy.begin(30.0)
    assert busy.share(30.0 + WINDOW_S) == pytest.approx(1.0)


@given(NAMES)
def test_prometheus_reads_what_is_written_whatever_the_name(name):
    text = prometheus_text(snapshot_of(name, n=1))
    values = {}
    for line in text.splitlines():
        found = re.fullmatch(r'([a-z_0-9]+)(?:\{((?:[a-z]+="(?:[^"\\]|\\.)*",?)*)\})? (-?[0-9.e+-]+)', line)
        assert line.startswith('# TYPE ') or found, line
        if found:
            values[found[1]] = float(found[3])
            if found[2]:
                label = re.match(r'name="((?:[^"\\]|\\.)*)"', found[2])[1]
                assert re.sub(r'\\(.)', r'\1', label) == name
    assert values['split_client_fps'] == 12.5 and values['split_server_refused_total'] == 1


def test_the_official_parser_reads_it():
    parser = pytest.importorskip('prometheus_client.parser', reason='pip install prometheus_client')
    families = {family.name: family for family in parser.text_string_to_metric_families(
        prometheus_text(snapshot_of('a "quoted\\ name"')))}
    assert families['split_client_fps'].samples[0].labels['name'] == 'a "quoted\\ name"'


def test_a_log_file_has_plain_lines_and_a_terminal_rewrites_its_last_ones(monkeypatch):
    plain = io.StringIO()
    terminal = Terminal(plain)
    for second in (1.0, 30.0, 61.0, 62.0):
        terminal.show(snapshot_of(up_s=second))
    terminal.say('gate joins')
    assert plain.getvalue().splitlines() == [*lines_of(snapshot_of()), 'gate joins']

    class Screen(io.StringIO):
        def isatty(self):
            return True

        def fileno(self):
            return 1

    monkeypatch.setattr(os, 'get_terminal_size', lambda fd: os.terminal_size((60, 20)))
    screen = Screen()
    terminal = Terminal(screen)
    terminal.show(snapshot_of(n=2))
    terminal.say('gate joins')
    terminal.show(snapshot_of(n=1))
    lines = []
    for line in re.split(r'\n|(\x1b\[A\x1b\[2K)', screen.getvalue()):
        if line and line.startswith('\x1b'):
            lines.pop()
        elif line:
            lines.append(line)
    assert lines == ['gate joins', *(line[:59] for line in lines_of(snapshot_of(n=1)))]


def test_every_line_of_the_log_is_a_snapshot(tmp_path):
    log = LogFile(str(tmp_path / 'log'))
    for n in (1, 2):
        log.show(snapshot_of(n=n))
    lines = (tmp_path / 'log').read_text().splitlines()
    assert [json.loads(line) for line in lines] == [snapshot_of(n=1), snapshot_of(n=2)]
    with pytest.raises(UserError, match='log_jsonl'):
        LogFile(str(tmp_path / 'no' / 'log'))


def get(port: int, path: str, host: str = '127.0.0.1'):
    request = urllib.request.Request(f'http://127.0.0.1:{port}{path}', headers={'Host': f'{host}:{port}'})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.headers['Content-Type'], answer.read().decode()


def test_the_page_its_data_and_metrics_are_served_on_loopback_to_this_machine_only():
    page = Page(0, lambda: snapshot_of('<b>gate</b>'))
    try:
        kind, text = get(page.port, '/')
        assert kind.startswith('text/html') and '<title>' in text
        assert json.loads(get(page.port, '/state')[1]) == snapshot_of('<b>gate</b>')
        assert get(page.port, '/metrics')[1] == prometheus_text(snapshot_of('<b>gate</b>'))
        for path, host, status in (('/nothing', '127.0.0.1', 404), ('/../config.py', 'localhost', 404),
                                   ('/state', 'elsewhere.example', 403)):
            with pytest.raises(urllib.error.HTTPError) as error:
                get(page.port, path, host)
            assert error.value.code == status
    finally:
        page.close()


BROWSER = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'chrome'))), None)


@pytest.mark.skipif(BROWSER is None, reason='needs Chromium: apt-get install chromium, or a browser of that family as '
                                            'chromium or google-chrome on the PATH')
def test_the_page_shows_the_clients_in_a_real_browser(tmp_path):
    page = Page(0, lambda: snapshot_of('<b>gate</b>', n=3))
    try:
        found = subprocess.run([BROWSER, '--headless', '--no-sandbox', '--disable-gpu', f'--user-data-dir={tmp_path}',
                                '--virtual-time-budget=5000', '--dump-dom', f'http://127.0.0.1:{page.port}/'],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60, check=True).stdout.decode()
    finally:
        page.close()
    rows = re.findall(r'<tr>(.*?)</tr>', re.search(r'<tbody id="clients">(.*)</tbody>', found, re.DOTALL)[1], re.DOTALL)
    assert len(rows) == 3 and '3 client(s)' in found
    for row in rows:
        assert '&lt;b&gt;gate&lt;/b&gt;' in row and '12.5 of 15.0' in row and '<polyline' in row


@pytest.mark.skipif(shutil.which('node') is None, reason='needs Node.js')
def test_the_page_shows_names_as_text(tmp_path):
    """The page's script against a document that records what is written into it."""
    with open(PAGE, encoding='utf-8') as stream:
        script = re.search(r'<script>(.*)</script>', stream.read(), re.DOTALL)[1].replace("'use strict';", '')
    (tmp_path / 'page.js').write_text('''
        const texts = [];
        function element() {
          return {set textContent(v) { texts.push(String(v)); }, insertRow: element, insertCell: element, append() {},
                  setAttribute() {}, replaceWith() {}};
        }
        const document = {createElement: element, createElementNS: element, getElementById: element};
        const setTimeout = () => console.log(JSON.stringify(texts));  // the page is done with this state
        const fetch = async () => ({json: async () => (STATE)});
        '''.replace('STATE', json.dumps(snapshot_of('<b>gate</b>', n=1))) + script)
    texts = json.loads(subprocess.run(['node', str(tmp_path / 'page.js')], stdout=subprocess.PIPE, check=True).stdout)
    assert texts[0].startswith('1 client')
    assert '<b>gate</b>' in texts and '12.5 of 15.0' in texts and 'innerHTML' not in script
