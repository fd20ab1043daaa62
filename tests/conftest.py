"""What all tests share. No test has a deadline: machines differ."""
import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)  # the models here are too small to gain by more
settings.register_profile('repository', deadline=None)
settings.load_profile('repository')


def pytest_configure(config):
    if hasattr(config.option, 'loadscopereorder'):  # pytest-xdist from 3.7 on; else the file with most tests is first
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    """The file that takes longest comes first: last, it would run alone while the other worker has nothing to do."""
    items.sort(key=lambda item: item.path.name != 'test_quickstart.py')  # stable


@pytest.fixture(scope='module')
def served(tmp_path_factory):
    """(RemoteClient, Client process, what the server said). The client runs from an unpacked bundle."""
    import device_files
    from client_process import SETTINGS, Client, free_port

    from remote.client import wait_for_client
    torch.set_num_threads(1)
    port, said = free_port(), []
    process = Client(port, tmp_path_factory.mktemp('client'),
                     top=device_files.unpacked_in(tmp_path_factory.mktemp('device')))
    client = wait_for_client(SETTINGS, '127.0.0.1', port, say=said.append, return_s=60)
    yield client, process, said
    client.close('done')
    process.kill()


@pytest.fixture
def made(monkeypatch):
    """The tiers that step 1 measures or simulates, in order, without the time that it takes."""
    from table_files import watch_tiers
    return watch_tiers(monkeypatch)
