"""Rate by number of clients: every method's best by a walk through the network, and a title that says what is drawn."""
from __future__ import annotations

import dataclasses

import numpy as np
import oracles
import pytest
from made_results import make_result, make_table

from config import Settings
from costs.cost_model import scenario_of
from network.alpha import surviving_branches, unpruned_alpha
from report import client_rates, summary

SETTINGS = Settings(CLIENTS=8)
TABLE = make_table(SETTINGS)
RESULT = make_result(TABLE, SETTINGS, 0)


def most_fps(surviving: np.ndarray, splits, settings: Settings, table=TABLE) -> float:
    """The highest rate at these splits when every block runs its fastest γ, by the oracle's walk."""
    def rate(split: int) -> float:
        gamma = [min(oracles.valid_gammas(row), key=table.T_ms['client' if k < split else 'server'][k].__getitem__)
                 for k, row in enumerate(surviving)]
        return 1000 / oracles.naive_times(table, gamma, split, 'float32', scenario_of(settings, table)).T_cyc_ms
    return max(map(rate, splits))


@pytest.mark.parametrize('fleet', [{}, dict(SERVER_WORKERS=2), dict(LINK_SHARED=True)])
def test_every_method_is_at_its_best_for_every_number_of_clients(fleet):
    settings, n = dataclasses.replace(SETTINGS, **fleet), TABLE.n_blocks
    found = client_rates.rates(RESULT, TABLE, settings)
    pruned = surviving_branches(RESULT.configuration.alpha)
    jpeg = dataclasses.replace(TABLE, image=RESULT.baselines['all_server_pruned_jpeg'].image)
    for at, clients in enumerate(client_rates.CLIENTS):
        for_k = dataclasses.replace(settings, CLIENTS=clients)
        assert {name: values[at] for name, values in found.items()} == pytest.approx({
            'split': most_fps(pruned, range(1, n), for_k),
            'split_unpruned': most_fps(surviving_branches(unpruned_alpha(TABLE.n_branches)), range(1, n), for_k),
            'all_client': most_fps(pruned, [n], for_k), 'all_server': most_fps(pruned, [0], for_k),
            'all_tail_jpeg': most_fps(pruned, [0], for_k, jpeg)})
    assert np.ptp(found['all_client']) == 0  # alone, a client minds no others


def test_the_title_says_from_how_many_clients_on_a_split_is_ahead_and_by_how_much():
    found = client_rates.mean_rates([RESULT], TABLE, SETTINGS)
    others = np.max([found[name] for name in found if not name.startswith('split')], axis=0)
    ahead = [k for k, split, other in zip(client_rates.CLIENTS, found['split'], others) if split > other]
    at = client_rates.CLIENTS.index(8)
    said = client_rates.rate_message(found, SETTINGS)
    which = f'{ahead[0]} or more' if ahead[-1] == client_rates.CLIENTS[-1] else f'{ahead[0]} to {ahead[-1]}'
    assert said.startswith(f'{which} cameras')
    assert f'{found["split"][at]:.0f} against {others[at]:.0f} frames a second for each of 8' in said
    slow = {name: values / (100 if name.startswith('split') else 1) for name, values in found.items()}
    assert 'more frames than a split' in client_rates.rate_message(slow, SETTINGS)


def test_the_table_holds_the_figures_of_the_picture():
    found = client_rates.mean_rates([RESULT], TABLE, SETTINGS)
    head, *rows = client_rates.text(found, SETTINGS)[1:]
    assert head.split() == ['1', '2', '4', '8', '16', '32'] and len(rows) == len(found)
    for row, values in zip(rows, found.values()):
        at = [client_rates.CLIENTS.index(int(k)) for k in head.split()]
        assert [float(cell) for cell in row.split()[-6:]] == pytest.approx([values[i] for i in at], abs=0.051)


def test_the_names_of_the_lines_stand_at_their_ends_and_apart():
    found = {name: np.full(len(client_rates.CLIENTS), 100.0 + 0.01 * i)
             for i, name in enumerate(client_rates.METHODS)}
    axes = client_rates.rate_by_clients(found, TABLE, SETTINGS).axes[0]
    heights = sorted(text.xy[1] for text in axes.texts)
    assert len(heights) == len(found) and min(np.diff(heights)) >= client_rates.LABEL_GAP - 1e-9
    assert [text.get_text() for text in axes.texts if 'camera alone' in text.get_text()]


def test_the_summary_says_what_all_clients_get_and_what_a_split_gains():
    said = summary.text([RESULT], [], SETTINGS)
    best = max(RESULT.baselines[name].times.throughput_fps for name in RESULT.baselines if '_pruned' in name)
    gain = RESULT.times.throughput_fps / best - 1
    assert f'{8 * RESULT.times.throughput_fps:.1f} frames/s in all' in said and f'{100 * gain:+.1f}%' in said
    assert 'frames/s of each of 8 clients: split' in said
    alone = summary.text([RESULT], [], dataclasses.replace(SETTINGS, CLIENTS=1))
    assert 'in all' not in alone and 'frames/s: split' in alone
