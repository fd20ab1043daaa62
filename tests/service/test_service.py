"""Several client processes on one service: every frame is answered once, in order, as the whole network would."""
from __future__ import annotations

import os

import pytest
from service_cases import CameraProcess, entry_of, expected, images_in, random_alpha, running, weights_in


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    """(its folder, a random network)."""
    folder = tmp_path_factory.mktemp('weights')
    return folder, weights_in(folder, 3)


def test_clients_of_other_domains_splits_and_formats_get_the_classes_of_the_whole_network(model, tmp_path):
    folder, network = model
    entries = [entry_of('one', random_alpha(network, 1), 3), entry_of('two', random_alpha(network, 2), 7, 'uint8+zlib'),
               entry_of('three', random_alpha(network, 3), 0)]
    images = images_in(tmp_path / 'images', 5, 40)
    with running(folder, entries, workers=2) as served:
        clients = [CameraProcess(served.port, tmp_path / entry.name, tmp_path / 'images', entry.name)
                   for entry in entries]
        for entry, client in zip(entries, clients):
            status, lines = client.finish()
            assert status == 0, client.said()
            assert [line['frame'] for line in lines] == list(range(40))
            assert [line['class'] for line in lines] == expected(network, entry, images)
            assert [os.path.basename(line['file']) for line in lines] == [f'{i:04}.png' for i in range(40)]
            assert all(not line['local'] and line['latency_ms'] > 0 and 0 < line['probability'] <= 1 for line in lines)
            assert lines[0]['configuration'] == {'lambda': entry.first.split, 'wire': entry.first.wire}
        assert not served.service.clients
