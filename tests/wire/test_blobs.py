"""The client's cache: what a kill, a full disk, another process or a stranger leaves in it harms nobody."""
from __future__ import annotations

import os
import threading

import numpy as np
import pytest

from wire.blobs import BlobStore, hash_of


def test_a_blob_is_continued_where_it_broke_off_and_refused_when_it_is_another(tmp_path):
    data = np.arange(1000, dtype=np.uint8)
    digest = hash_of(data)
    store = BlobStore(str(tmp_path), 10000)
    assert store.append(digest, 1000, 0, data[:400]) == 400
    store = BlobStore(str(tmp_path), 10000)
    assert store.present_bytes(digest) == 400 and not store.has(digest)
    assert store.append(digest, 1000, 0, data[:10]) == 400  # here already
    assert store.append(digest, 1000, 500, data[500:]) == 400  # a gap: the sender goes on from 400
    with pytest.raises(ValueError):
        store.append(digest, 1000, 400, data)  # more than there is
    assert store.append(digest, 1000, 300, data[300:]) == 1000
    assert np.array_equal(store.read(digest), data)
    assert store.append('0' * 64, 1000, 0, data) == 0 and store.present_bytes('0' * 64) == 0
    for bad in ('../x', 'A' * 64, digest + '/'):
        with pytest.raises(ValueError):
            store.present_bytes(bad)
    with open(os.path.join(str(tmp_path), digest), 'r+b') as stream:
        stream.write(b'x')
    with pytest.raises(KeyError):
        store.read(digest)


def left_behind(folder, digest, data):
    """A blob whose process was killed between its last byte and its new name."""
    with open(os.path.join(str(folder), f'{digest}.part'), 'wb') as stream:
        stream.write(data.tobytes())


def test_a_blob_that_was_whole_when_its_process_was_killed_is_complete(tmp_path):
    data = np.arange(1000, dtype=np.uint8)
    store = BlobStore(str(tmp_path), 10000)
    left_behind(tmp_path, hash_of(data), data)
    assert store.present_bytes(hash_of(data)) == 1000 and np.array_equal(store.read(hash_of(data)), data)


def test_what_is_damaged_is_dropped_and_received_again(tmp_path):
    data = np.arange(1000, dtype=np.uint8)
    digest, store = hash_of(data), BlobStore(str(tmp_path), 10000)
    for damaged in (np.zeros(1000, np.uint8), np.zeros(400, np.uint8), np.zeros(2000, np.uint8)):
        left_behind(tmp_path, digest, damaged)
        here = min(store.present_bytes(digest), 1000)
        if here == 1000:  # the server takes it for complete; using it shows that it is not
            with pytest.raises(KeyError):
                store.read(digest)
            here = store.present_bytes(digest)
        while here < 1000:
            here = store.append(digest, 1000, here, data[here:here + 300])
        assert np.array_equal(store.read(digest), data)
        os.unlink(os.path.join(str(tmp_path), digest))


def test_two_clients_on_one_folder_receive_one_blob_together(tmp_path):
    data = np.random.default_rng(0).integers(0, 256, 200_000).astype(np.uint8)
    digest, failures = hash_of(data), []

    def receive() -> None:
        store = BlobStore(str(tmp_path), 1 << 20)
        here = store.present_bytes(digest)
        while here < len(data):
            here = store.append(digest, len(data), here, data[here:here + 1000])
        if not np.array_equal(store.read(digest), data):
            failures.append(here)

    threads = [threading.Thread(target=receive) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures and sorted(os.listdir(str(tmp_path))) == ['.lock', digest]


def test_what_one_job_needs_together_makes_no_room_for_itself(tmp_path):
    store = BlobStore(str(tmp_path), 2500)
    blobs = [np.full(1000, value, dtype=np.uint8) for value in range(3)]
    digests = [hash_of(data) for data in blobs]
    store.wanted.update(digests)
    store.add(blobs[0]), store.add(blobs[1])
    with pytest.raises(ValueError, match='--cache_gib'):
        store.add(blobs[2])
    store.wanted.clear()
    store.add(blobs[2])
    assert [store.has(digest) for digest in digests] == [False, True, True]


def test_the_cache_makes_room(tmp_path):
    store = BlobStore(str(tmp_path), 2500)
    digests = [store.add(np.full(1000, value, dtype=np.uint8)) for value in range(3)]
    assert [store.has(digest) for digest in digests] == [False, True, True]


def received(store, digest, data, piece=300):
    """What a server does until the client has all; fails where it would give up."""
    here = store.present_bytes(digest)
    for _ in range(20):
        if here >= len(data):
            return store.read(digest)
        here = store.append(digest, len(data), here, data[here:here + piece])
    raise AssertionError('it never gets complete')


@pytest.mark.parametrize('content', [b'', b'abc', bytes(1000), bytes(2000)])
def test_a_finished_file_whose_content_is_not_its_own_is_received_again(tmp_path, content):
    """Truncated, empty or exchanged: neither its name nor its size counts."""
    data = np.arange(1000, dtype=np.uint8)
    (tmp_path / hash_of(data)).write_bytes(content)
    assert np.array_equal(received(BlobStore(str(tmp_path), 10000), hash_of(data), data), data)


def test_a_file_that_changes_while_the_client_runs_is_noticed(tmp_path):
    data = np.arange(1000, dtype=np.uint8)
    store = BlobStore(str(tmp_path), 10000)
    digest = store.add(data)
    assert store.present_bytes(digest) == 1000
    (tmp_path / digest).write_bytes(b'x' * 1000)
    assert store.present_bytes(digest) == 0 and np.array_equal(received(store, digest, data), data)


def test_links_lead_nowhere(tmp_path):
    """A link in the cache is replaced by the blob; what it points to is neither read nor changed."""
    data, outside = np.arange(1000, dtype=np.uint8), tmp_path / 'outside'
    digest, folder = hash_of(data), tmp_path / 'cache'
    store = BlobStore(str(folder), 10000)
    for name in (digest, digest + '.part'):
        outside.write_bytes(data.tobytes()[:500] if name.endswith('.part') else data.tobytes())
        before = outside.read_bytes()
        (folder / name).symlink_to(outside)
        assert store.present_bytes(digest) == 0
        assert np.array_equal(received(store, digest, data), data) and outside.read_bytes() == before
        assert not (folder / digest).is_symlink()
        (folder / digest).unlink()
    os.mkfifo(str(folder / digest))
    assert np.array_equal(received(store, digest, data), data)


def test_blobs_that_grow_together_stay_within_the_limit(tmp_path):
    """A hundred are begun with one byte each, and then all go on."""
    store, size = BlobStore(str(tmp_path), 2500), 1000
    blobs = [np.full(size, value, dtype=np.uint8) for value in range(30)]
    for begin, end in ((0, 1), (1, 999)):
        for data in blobs:
            store.append(hash_of(data), size, begin, data[begin:end])
            assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 2500
    assert np.array_equal(received(store, hash_of(blobs[-1]), blobs[-1]), blobs[-1])
