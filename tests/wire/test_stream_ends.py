"""Both ends of a stream over a real socket: order, frames that a socket does not take at once, and who is told what."""
from __future__ import annotations

import threading

import pytest
import torch
from test_network_utils import met
from wire_ends import pair

from wire import connection
from wire.frames import ConnectionLost, Kind, NetworkError, PeerError
from wire.stream import stream_head, stream_tail

N_FRAMES = 40


def both(head, tail, on_result=lambda i, prediction, latency_s: None):
    """(what the head end returned or raised, the tail end, the names of threads while it ran)."""
    server, client, _ = met(b'secret', b'secret')
    found = [None, None]

    def guarded(place, function, *arguments):
        try:
            found[place] = function(*arguments)
        except Exception as error:
            found[place] = error

    ends = [threading.Thread(target=guarded, args=(0, stream_head, client, head, 0, N_FRAMES, on_result)),
            threading.Thread(target=guarded, args=(1, stream_tail, server, tail, 0, N_FRAMES))]
    for end in ends:
        end.start()
    for end in ends:
        end.join(30)
        assert not end.is_alive()
    server.close()
    client.close()
    return found


def numbered(i: int):
    """A frame of 1 MB, which says its number."""
    return {'z': torch.full((250_000,), float(i))}


def first_value(tensors):
    """Its number, as the prediction."""
    assert bool((tensors['z'] == tensors['z'][0]).all())
    return [int(tensors['z'][0])]


def test_frames_larger_than_a_sockets_buffer_are_answered_in_order_by_no_more_threads():
    seen = set()

    def tail(tensors):
        seen.update(thread.name.partition(' ')[0] for thread in threading.enumerate())
        return first_value(tensors)

    record, end = both(numbered, tail)
    assert record.results == [[i] for i in range(N_FRAMES)] and end is None
    assert {'stream', 'send'} <= seen and not any(name.startswith('stream ') for name in seen)


@pytest.mark.parametrize('at', [0, 1, N_FRAMES // 2, N_FRAMES - 1])
@pytest.mark.parametrize('which', ['head', 'tail', 'result'])
def test_the_end_that_fails_raises_its_error_and_the_other_end_is_told(which, at):
    def head(i):
        if which == 'head' and i == at:
            raise RuntimeError('out of memory')
        return numbered(i)

    def tail(tensors):
        if which == 'tail' and int(tensors['z'][0]) == at:
            raise RuntimeError('out of memory')
        return first_value(tensors)

    def on_result(i, prediction, latency_s):
        if which == 'result' and i == at:
            raise PeerError('cancelled', 'by the operator')

    own, other = both(head, tail, on_result)[::-1 if which == 'tail' else 1]
    if which == 'result':
        assert isinstance(own, PeerError) and own.code == 'cancelled'
    else:
        assert isinstance(own, RuntimeError) and str(own) == 'out of memory'
    if isinstance(other, PeerError):  # else it was sending when the connection ended
        assert other.code == ('cancelled' if which == 'result' else 'failed')
    else:
        assert isinstance(other, ConnectionLost) or (which == 'result' and at == N_FRAMES - 1 and other is None)


def test_results_that_nobody_waits_for_end_a_stream():
    server, client, _ = met(b'', b'')
    server.send(Kind.RESULT, {'i': 0, 'prediction': [1], 'link_s': 0.0, 'tail_s': 0.0})
    server.send(Kind.RESULT, {'i': 1, 'prediction': [1], 'link_s': 0.0, 'tail_s': 0.0})
    with pytest.raises(NetworkError):
        stream_head(client, numbered, 0, N_FRAMES)
    server.close()


def test_what_a_peer_does_not_take_at_once_is_sent_meanwhile_and_others_wait_for_it():
    server, client, _ = met(b'secret', b'secret')
    big = torch.arange(4_000_000, dtype=torch.float32)
    assert not client.post(Kind.FRAME, {'i': 0}, {'z': big})
    assert not client.has_left(0.05)
    later = threading.Thread(target=client.send, args=(Kind.RESULT, {'i': 1}))
    later.start()
    client.send(Kind.RESULT, {'i': 2}, turn_s=0)  # has no turn: is not sent
    received = [server.receive(), server.receive()]
    later.join(10)
    assert torch.equal(received[0].tensors['z'], big) and received[1].integer('i', 1, 1) == 1
    assert client.has_left(10) and client.post(Kind.RESULT, {'i': 3}, {})
    assert server.receive().integer('i', 3, 3) == 3
    for end in (server, client):
        end.close()


def test_a_connection_that_ends_in_the_middle_of_a_post_keeps_nobody_waiting():
    for _ in range(20):
        server, client, _ = met(b'', b'')
        closing = threading.Thread(target=client.close)
        closing.start()
        with pytest.raises(NetworkError):
            while True:
                client.post(Kind.FRAME, {'i': 0}, {'z': torch.zeros(1_000_000)}, 5.0)
        closing.join()
        assert client.has_left(5.0)
        with pytest.raises(NetworkError):
            client.send(Kind.RESULT, {'i': 0})
        server.close()


def test_later_errors_have_the_first_reason(monkeypatch):
    monkeypatch.setattr(connection, 'SILENCE_S', 0.3)
    end, _ = pair()
    with pytest.raises(ConnectionLost, match='takes no data for 0.3 s'):
        end.send(Kind.FRAME, {}, {'z': torch.zeros(8 << 20)})
    with pytest.raises(ConnectionLost, match='takes no data for 0.3 s'):
        end.receive()
