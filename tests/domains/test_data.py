"""Claims about the data: fixed pixels, disjoint pools, real label skew, and one clear line for whatever is wrong."""
from __future__ import annotations

import hashlib
import itertools
import json
import os
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

import config
import domain_transforms
from config import UserError
from domain_dataset import DomainDataset, load_clean, load_domain
from domain_transforms import CORRUPTIONS, corrupt, domain_name
from domains.division import SUBSETS, draw, label_shares, round_to_sum, subset_pools
from domains.image_sources import open_source
from domains.partition import find_readable, load_partition, make_partition, save_partition
from network.inputs import normalise, predict


TRAINED_ON = '1adde9e4895b772bcb6fcf1c126f74a251b0e8a5583f90a44e5577cb3de5699c'  # the 2,500 images, int64


def settings_with(tmp_path, **overrides) -> config.Settings:
    """The quickstart settings, whatever the current folder and the environment, with a partition of their own."""
    return config.Settings(**{'DATA_PATH': os.path.join(config.ROOT, 'data'),
                              'PARTITION_FILE': str(tmp_path / 'partition_info.json'), **overrides})


def image_of(seed: int, size: int = 16) -> torch.Tensor:
    return torch.randint(0, 256, (3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def folder_of(root, classes: int = 3, each: int = 12, size=(30, 40)) -> None:
    """An ImageFolder tree of random pictures."""
    rng = np.random.default_rng(0)
    for label in range(classes):
        os.makedirs(root / f'class{label}')
        for number in range(each):
            pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / f'class{label}' / f'{number:02}.png')


# --- pixels ---------------------------------------------------------------------------------------

@hypothesis_settings(deadline=None, max_examples=30)
@given(domain=st.integers(0, 9), seed=st.integers(0, 2 ** 40), index=st.integers(0, 10 ** 7), image=st.integers(0, 99))
def test_pixels_depend_on_seed_domain_and_index_alone_and_torch_does_not_notice(domain, seed, index, image):
    clean = image_of(image)
    torch.manual_seed(image)
    before = torch.get_rng_state()
    first = corrupt(clean, domain, seed, index)
    assert torch.equal(torch.get_rng_state(), before)
    torch.randn(7)
    corrupt(clean, (domain + 1) % 10, seed, index)
    assert torch.equal(corrupt(clean, domain, seed, index), first)
    assert first.dtype == torch.uint8 and first.shape == clean.shape
    for other in (corrupt(clean, domain, seed + 1, index), corrupt(clean, domain, seed, index + 1)):
        assert not torch.equal(other, first)


def test_pixels_are_the_same_for_any_worker_count_and_order(tmp_path):
    alone = load_domain(settings_with(tmp_path, IMAGES_PER_SUBSET=90), 4, 'val')
    shared = load_domain(settings_with(tmp_path, IMAGES_PER_SUBSET=90, NUM_WORKERS=2), 4, 'val')
    assert torch.equal(alone.images, shared.images) and torch.equal(alone.labels, shared.labels)
    settings = settings_with(tmp_path, IMAGES_PER_SUBSET=90)
    source = open_source(settings)
    dataset = DomainDataset(source, load_partition(source, settings).domains[4]['val'], 4, settings.SEED)
    for position in random.Random(0).sample(range(len(dataset)), 20):
        assert torch.equal(dataset[position][0], alone.images[position])


def test_loading_leaves_torchs_random_state_alone(tmp_path):
    before = torch.get_rng_state()
    load_domain(settings_with(tmp_path), 0, 'test')
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize('domain', [d for d in range(10) if CORRUPTIONS[d].kind == 'gaussian'])
def test_the_noise_is_torchvisions_to_the_last_bit(domain, monkeypatch):
    theirs = getattr(v2, 'GaussianNoise', None)
    if theirs is None:
        pytest.skip('this torchvision has no GaussianNoise')
    ours = [corrupt(image_of(i, size), domain, 5, i) for i, size in enumerate((1, 2, 31, 32, 64))]
    monkeypatch.setattr(domain_transforms, 'gaussian_noise', lambda image, sigma: theirs(0.0, sigma, clip=True)(image))
    assert all(torch.equal(corrupt(image_of(i, size), domain, 5, i), ours[i])
               for i, size in enumerate((1, 2, 31, 32, 64)))


@pytest.mark.parametrize('domain', range(10))
def test_noise_has_the_strength_that_its_name_says(domain):
    grey = torch.full((3, 200, 200), 127, dtype=torch.uint8)
    noisy = corrupt(grey, domain, 0, 0)
    kind, amount = CORRUPTIONS[domain]
    assert f'{amount:.2f}' in domain_name(domain)
    if kind == 'gaussian':
        inner = (noisy > 0) & (noisy < 255)  # noise beyond the range of 8 bits is clipped
        normal = torch.distributions.Normal(0.0, amount)
        expected = 1 - 2 * float(normal.cdf(torch.tensor(-0.5)))
        assert float(inner.float().mean()) == pytest.approx(expected, abs=0.01)
    else:
        assert float((noisy == 0).float().mean()) == pytest.approx(amount / 2, abs=0.01)
        assert float((noisy == 255).float().mean()) == pytest.approx(amount / 2, abs=0.01)
        assert torch.equal(noisy[0], noisy[1]) and torch.equal(noisy[0], noisy[2])


@pytest.mark.parametrize('domain', [10, -1, 1000])
def test_a_domain_that_does_not_exist_is_refused(domain, tmp_path):
    for use in (lambda: corrupt(image_of(0), domain, 0, 0), lambda: domain_name(domain),
                lambda: load_domain(settings_with(tmp_path), domain, 'val')):
        with pytest.raises(UserError, match=f'domain {domain}: there are domains 0 to 9'):
            use()


def test_fewer_domains_refuse_the_others(tmp_path):
    with pytest.raises(UserError, match='domain 4: there are domains 0 to 3'):
        load_domain(settings_with(tmp_path, NUM_DOMAINS=4), 4, 'val')


# --- the partition --------------------------------------------------------------------------------

@hypothesis_settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=40).filter(lambda counts: sum(counts) >= 20),
       st.sampled_from([(0.5, 0.2, 0.15), (0.7, 0.1, 0.1), (0.25, 0.25, 0.25)]), st.integers(0, 5))
def test_pools_are_disjoint_complete_and_stratified(class_counts, fractions, seed):
    labels = np.repeat(np.arange(len(class_counts)), class_counts)
    settings = config.Settings(**dict(zip(('TRAIN_FRACTION', 'VAL_FRACTION', 'CAL_FRACTION'), fractions)), SEED=seed)
    pools = subset_pools(labels, np.arange(len(labels)), settings)
    assert sorted(np.concatenate(list(pools.values()))) == list(range(len(labels)))
    for subset, fraction in zip(SUBSETS, (*fractions, 1 - sum(fractions))):
        in_pool = np.bincount(labels[pools[subset]], minlength=len(class_counts))
        assert (np.abs(in_pool - fraction * np.array(class_counts)) <= 2).all()


@hypothesis_settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 80), min_size=2, max_size=30).filter(any), st.integers(0, 200), st.integers(0, 9))
def test_a_draw_never_repeats_an_image_nor_passes_its_limit(class_counts, limit, seed):
    labels = np.repeat(np.arange(len(class_counts)), class_counts)
    share = label_shares(np.array(class_counts), config.Settings(SEED=seed))[0]
    drawn = draw(np.arange(len(labels)), labels, share, limit, np.random.default_rng(seed))
    assert len(set(drawn)) == len(drawn) and 0 < len(drawn) <= (limit or len(labels))


@given(st.lists(st.floats(0, 1000), min_size=1, max_size=20))
def test_rounding_keeps_the_sum(values):
    rounded = round_to_sum(np.array(values))
    assert rounded.sum() == round(sum(values)) and (np.abs(rounded - values) <= 1).all()


def test_splits_of_all_domains_are_disjoint_and_the_label_skew_is_real(tmp_path):
    settings = settings_with(tmp_path)
    source = open_source(settings)
    partition = make_partition(source, settings)
    union = {subset: set(np.concatenate([domain[subset] for domain in partition.domains])) for subset in SUBSETS}
    assert not any(union[one] & union[other] for one, other in itertools.combinations(SUBSETS, 2))
    shares = np.array([[np.bincount(source.labels[domain[subset]], minlength=10) / len(domain[subset])
                        for subset in SUBSETS] for domain in partition.domains])  # (domains, subsets, classes)
    assert np.abs(shares[:, :1] - shares).max() < 0.01  # one distribution for the four subsets of a domain
    distance = np.abs(shares[:, None, 0] - shares[None, :, 0]).sum(axis=2) / 2  # total variation between domains
    assert distance[~np.eye(10, dtype=bool)].min() > 0.1
    assert make_partition(source, settings).domains[3]['val'].tolist() == partition.domains[3]['val'].tolist()


def test_the_training_pool_does_not_depend_on_how_the_others_are_divided():
    labels = np.repeat(np.arange(7), 61)
    pools = [subset_pools(labels, np.arange(len(labels)), config.Settings(VAL_FRACTION=val, CAL_FRACTION=cal))
             for val, cal in ((0.2, 0.15), (0.1, 0.3), (0.25, 0.05))]
    assert all(np.array_equal(pools[0]['train'], other['train']) for other in pools[1:])


def test_the_shipped_weights_training_images_are_still_the_training_pool():
    labels = open_source(config.Settings(DATA_PATH=os.path.join(config.ROOT, 'data'))).labels
    train = subset_pools(labels, np.arange(len(labels)), config.Settings())['train']
    assert hashlib.sha256(train.astype('<i8').tobytes()).hexdigest() == TRAINED_ON


def test_many_classes_are_dealt_out_in_blocks():
    shares = label_shares(np.full(1000, 50), config.Settings(NUM_CLASSES=1000))
    assert ((shares > 0).sum(axis=1) == 100).all() and ((shares > 0).sum(axis=0) == 1).all()
    np.testing.assert_allclose(shares.sum(axis=1), 1)


def test_the_committed_partition_is_what_its_settings_give():
    settings = config.Settings(DATA_PATH=os.path.join(config.ROOT, 'data'),
                               PARTITION_FILE=os.path.join(config.ROOT, config.Settings.PARTITION_FILE))
    source = open_source(settings)
    stored, made = load_partition(source, settings), make_partition(source, settings)
    for subset in SUBSETS:
        assert np.array_equal(stored.pools[subset], made.pools[subset])
        assert all(np.array_equal(a[subset], b[subset]) for a, b in zip(stored.domains, made.domains))


def test_a_missing_partition_is_made_and_said_once(tmp_path, capsys):
    settings = settings_with(tmp_path)
    load_domain(settings, 0, 'val')
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    load_domain(settings, 1, 'val')
    assert capsys.readouterr().err == ''


def _damage(name, text, content):
    def change(path, value):
        node = content
        for part in path[:-1]:
            node = node[part]
        node[path[-1]] = value
        return json.dumps(content)
    train, test = content['pools']['train']['indices'], content['pools']['test']['indices']
    return {
        'truncated': lambda: text[:len(text) // 2],
        'no object': lambda: '[]',
        'out of range': lambda: change(('domains', 2, 'val', 'indices'), [1, 5000]),
        'negative': lambda: change(('domains', 2, 'val', 'indices'), [-1, 3]),
        'no number': lambda: change(('domains', 2, 'val', 'indices'), [1, 'x']),
        'repeated': lambda: change(('domains', 2, 'train', 'indices'), [train[0], train[0]]),
        'train and test overlap': lambda: change(('pools', 'test', 'indices'), sorted([train[0], *test])),
        'domain takes test data': lambda: change(('domains', 0, 'train', 'indices'), sorted([*train[:9], test[0]])),
        'empty subset': lambda: change(('domains', 1, 'test', 'indices'), []),
        'domain missing': lambda: change(('domains',), content['domains'][:5]),
        'other version': lambda: change(('schema_version',), 2),
    }[name]()


@pytest.mark.parametrize('damage', ['truncated', 'no object', 'out of range', 'negative', 'no number', 'repeated',
                                    'train and test overlap', 'domain takes test data', 'empty subset',
                                    'domain missing', 'other version'])
def test_a_damaged_partition_is_refused_in_one_line(damage, tmp_path):
    settings = settings_with(tmp_path)
    source = open_source(settings)
    save_partition(make_partition(source, settings), source, settings)
    path = tmp_path / 'partition_info.json'
    text = path.read_text(encoding='utf-8')
    path.write_text(_damage(damage, text, json.loads(text)), encoding='utf-8')
    with pytest.raises(UserError) as caught:
        load_domain(settings, 0, 'val')
    assert str(path) in str(caught.value) and '\n' not in str(caught.value)


def test_a_partition_of_other_images_or_settings_is_refused(tmp_path):
    load_clean(settings_with(tmp_path, IMAGES_PER_SUBSET=50), 'val')
    with pytest.raises(UserError, match='IMAGES_PER_SUBSET=50 .now 60'):
        load_domain(settings_with(tmp_path, IMAGES_PER_SUBSET=60), 0, 'val')
    path = tmp_path / 'partition_info.json'
    content = json.loads(path.read_text(encoding='utf-8'))
    del content['metadata']['config']['CAL_FRACTION']  # as in files of earlier versions, which had three subsets
    older = tmp_path / 'older.json'
    older.write_text(json.dumps(content), encoding='utf-8')
    with pytest.raises(UserError, match='no CAL_FRACTION .now 0.25.; make it again with `python create_noniid_part'):
        load_domain(settings_with(tmp_path, IMAGES_PER_SUBSET=50, PARTITION_FILE=str(older)), 0, 'val')
    os.makedirs(tmp_path / 'other')
    with np.load(os.path.join(config.ROOT, 'data', 'mnist5k.npz')) as arrays:
        np.savez_compressed(tmp_path / 'other' / 'mnist5k.npz', images=arrays['images'][::-1], labels=arrays['labels'])
    with pytest.raises(UserError, match='belongs to other images'):
        load_domain(settings_with(tmp_path, IMAGES_PER_SUBSET=50, DATA_PATH=str(tmp_path / 'other')), 0, 'val')


# --- datasets -------------------------------------------------------------------------------------

def folder_settings(tmp_path, **overrides) -> config.Settings:
    return settings_with(tmp_path, **{'DATASET': 'imagefolder', 'DATA_PATH': str(tmp_path / 'images'), 'NUM_DOMAINS': 2,
                                      **overrides})


def test_unreadable_images_are_named_in_one_line_skipped_and_counted(tmp_path, capsys):
    folder_of(tmp_path / 'images')
    broken = tmp_path / 'images' / 'class1' / '03.png'
    broken.write_bytes(broken.read_bytes()[:100])
    (tmp_path / 'images' / 'class2' / 'empty.jpg').write_bytes(b'')
    (tmp_path / 'images' / 'class0' / 'notes.txt').write_text('not an image')
    settings = folder_settings(tmp_path)
    source = open_source(settings)
    partition = make_partition(source, settings)
    warnings = capsys.readouterr().err.strip().splitlines()
    assert len(warnings) == 1 and '03.png' in warnings[0] and 'empty.jpg' in warnings[0] and ' 2 ' in warnings[0]
    used = np.concatenate(list(partition.pools.values()))
    assert len(used) == 35 and not {source.describe(i) for i in used} & set(partition.skipped)
    save_partition(partition, source, settings)
    assert json.loads((tmp_path / 'partition_info.json').read_text(encoding='utf-8'))['skipped']['count'] == 2
    images = load_domain(settings, 1, 'train')
    assert images.images.shape[1:] == (3, 32, 32) and images.images.dtype == torch.uint8
    assert find_readable(source, num_workers=2)[0].tolist() == sorted(used)


def test_an_image_removed_after_the_partition_is_named(tmp_path):
    folder_of(tmp_path / 'images')
    settings = folder_settings(tmp_path)
    load_clean(settings, 'val')
    target, source = tmp_path / 'images' / 'class0' / '00.png', open_source(settings)
    dataset = DomainDataset(source, np.arange(len(source)), None, 0)
    target.write_bytes(b'x' * target.stat().st_size)  # while a step reads
    with pytest.raises(UserError, match='00.png'):
        dataset[0]
    with pytest.raises(UserError, match='belongs to other images'):
        load_clean(settings, 'val')
    target.unlink()
    with pytest.raises(UserError, match='belongs to other images'):
        load_clean(settings, 'val')


def _no_folder(images):
    images.rmdir()


def _copied_parts(images):
    folder_of(images / 'train')
    folder_of(images / 'val')


def _all_broken(images):
    folder_of(images, classes=2, each=2)
    for path in images.glob('*/*.png'):
        path.write_bytes(b'')


@pytest.mark.parametrize('prepare, says', [
    (_no_folder, 'no such folder'), (lambda images: None, 'no class folders'),
    (_copied_parts, '36 held-out images are training images too'), (_all_broken, 'none of the 4 images'),
    (lambda images: folder_of(images, classes=11, each=1), 'has 11 classes.*NUM_CLASSES=10'),
    (lambda images: folder_of(images, classes=1, each=2), 'val subset would be empty'),
])
def test_an_unusable_folder_is_refused_in_one_clear_line(prepare, says, tmp_path):
    (tmp_path / 'images').mkdir()
    prepare(tmp_path / 'images')
    with pytest.raises(UserError, match=says) as caught:
        load_domain(folder_settings(tmp_path), 0, 'val')
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('name, says', [
    ('CIFAR01', 'did you mean CIFAR10'), ('mnist5', 'did you mean'), ('qqqqqq', 'unknown DATASET'),
    ('cifar10', 'CIFAR10 cannot be opened.*nothing is downloaded'), ('ImageFoldr', 'did you mean imagefolder'),
])
def test_a_dataset_that_is_unknown_or_not_there_is_refused(name, says, tmp_path):
    with pytest.raises(UserError, match=says) as caught:
        load_domain(settings_with(tmp_path, DATASET=name, DATA_PATH=str(tmp_path)), 0, 'val')
    assert '\n' not in str(caught.value)


def test_a_torchvision_dataset_is_found_whatever_its_case(tmp_path):
    settings = settings_with(tmp_path, DATASET='fakedata', NUM_DOMAINS=2, IMAGES_PER_SUBSET=20)
    images = load_domain(settings, 1, 'test')
    assert images.images.shape == (20, 3, 32, 32) and int(images.labels.max()) < 10


@pytest.mark.parametrize('size', [16, 32, 48])
def test_the_digits_come_in_any_size(size, tmp_path):
    images = load_clean(settings_with(tmp_path, INPUT_SIZE=size), 'val').images
    assert images.shape == (750, 3, size, size)
    assert torch.equal(images[:, 0], images[:, 2]) and 20 < float(images.float().mean()) < 35


@pytest.mark.parametrize('fractions', [(0.8, 0.1, 0.1), (0.7, 0.2, 0.1), (0.4, 0.3, 0.3), (0.9, 0.5, 0.5)])
def test_fractions_that_leave_no_test_data_are_refused(fractions, tmp_path):
    with pytest.raises(UserError, match='leave nothing to test on'):
        load_clean(settings_with(tmp_path, **dict(zip(('TRAIN_FRACTION', 'VAL_FRACTION', 'CAL_FRACTION'), fractions))),
                   'train')


# --- the base model -------------------------------------------------------------------------------

def test_the_committed_weights_reach_97_percent_on_held_out_digits(tmp_path):
    from hyper_repvgg import create_hyper_repvgg, deploy
    settings = settings_with(tmp_path)
    path = os.path.join(config.ROOT, settings.WEIGHT_PATH_SERVER)
    assert os.path.getsize(path) <= 4 << 20
    network = deploy(create_hyper_repvgg(path, settings.MODEL_NAME, settings.NUM_CLASSES))
    test = load_clean(settings, 'test')
    inputs = normalise(test.images, settings.NORM_MEAN, settings.NORM_STD)
    assert float((predict(network, inputs, 250) == test.labels).float().mean()) >= 0.97
    for domain in (0, 3, 6):  # one of each kind and the hardest: hard, not hopeless
        test = load_domain(settings, domain, 'test')
        inputs = normalise(test.images, settings.NORM_MEAN, settings.NORM_STD)
        assert float((predict(network, inputs, 250) == test.labels).float().mean()) >= 0.85
