"""Several client processes on one service: every frame is answered once, in order, as the whole network would."""
from __future__ import annotations

import os

import numpy as np
from service_cases import CameraProcess, entry_of, expected, images_in, random_alpha, running, weights_in

LIVE = '''
import numpy as np

def frames(size):
    for image in np.load({path!r}):
        yield image
'''


def test_clients_of_other_networks_splits_and_formats_get_the_classes_of_the_whole_network(tmp_path):
    network = weights_in(tmp_path, 3)
    entries = [entry_of('one', random_alpha(network, 1), 3),
               entry_of('two', random_alpha(network, 2), 7, 'uint8@0.5+zlib'),
               entry_of('three', random_alpha(network, 3), 0)]
    images = images_in(tmp_path / 'images', 5, 40)
    np.save(tmp_path / 'images.npy', images.permute(0, 2, 3, 1).numpy())
    (tmp_path / 'live.py').write_text(LIVE.format(path=str(tmp_path / 'images.npy')))
    sources = [(tmp_path / 'images',), (tmp_path / 'images',), (tmp_path / 'live.py', '--live')]
    with running(tmp_path, entries, workers=2) as served:
        clients = [CameraProcess(served.port, tmp_path / entry.name, source[0], entry.name, *source[1:])
                   for entry, source in zip(entries, sources)]
        for entry, client in zip(entries, clients):
            status, lines = client.finish()
            assert status == 0, client.said()
            assert [line['frame'] for line in lines] == list(range(40))
            answered = [line for line in lines if 'dropped' not in line]
            classes = expected(network, entry, images)
            assert [line['class'] for line in answered] == [classes[line['frame']] for line in answered]
            assert all(not line['local'] and line['latency_ms'] > 0 and 0 < line['probability'] <= 1
                       for line in answered)
            assert answered[0]['configuration'] == {'network': entry.name, 'lambda': entry.first.split,
                                                    'wire': entry.first.wire}
            if entry.name == 'three':  # all frames are there at once: most are dropped, and the newest is not
                assert 0 < len(answered) < 40 and lines[-1] is answered[-1]
            else:
                assert [os.path.basename(line['file']) for line in answered] == [f'{i:04}.png' for i in range(40)]
        assert not served.service.clients
