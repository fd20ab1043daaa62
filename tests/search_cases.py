"""What the tests of the search share: small problems with real images and random times, and the kill of a search."""
from __future__ import annotations

import dataclasses
from typing import Callable, Optional

import numpy as np
import pytest
import torch

import config
import lut_manager
from config import Settings
from costs.cost_model import HardwareTable, Roofline
from costs.goal import Goal
from domain_dataset import load_domain
from domains.image_sets import ImageSet
from gamma_mask_builder import runnable_gammas
from hyper_repvgg import HyperRepVGG, create_hyper_repvgg
from lut_manager import TierCosts
from network.alpha import BlockMask, PruningMask, surviving_branches, unpruned_alpha
from network.outline import outline_for
from search import alpha_training, state_file
from search.domain_search import Search
from search.problem import PruningProblem
from search.pruned_times import PrunedTimes
from search.state import Phase, SearchState
from throughput_optimizer import solve_exact

SETTINGS = config.load(('MAX_EVALUATIONS=12', 'RECOVERY_STEPS=4', 'MAX_PRUNING_ROUNDS=6', 'CLIENTS=1'), environ={})


def with_settings(**changes) -> Settings:
    """`SETTINGS` with some changed."""
    return dataclasses.replace(SETTINGS, **changes)


def slow_client_table(seed: int = 5, settings: Settings = SETTINGS) -> HardwareTable:
    """Times in which a 3x3 costs about four times a 1x1, on a slow client and a fast server."""
    rng = np.random.default_rng(seed)

    def tier(name: str, scale: float) -> TierCosts:
        n_branches = outline_for(settings).n_branches
        base = scale * np.array([4, 1, .8, 5, 4, 4.5, 4, 2, 1, 6, 5, 5, 5, 4])
        block_ms = base * rng.uniform(0.9, 1.1, (len(n_branches), 14))
        block_ms[~runnable_gammas(n_branches)] = np.nan
        return TierCosts(name, {'name': name, 'simulated': True, 'profile': 'fake'}, block_ms, 0 * block_ms, 0.05, 0.05,
                         Roofline(50, 10))

    return lut_manager.merge(tier('server', 0.03), tier('client', 0.12), settings,
                             image_codec_ms={'png': (0.2, 0.05), 'jpeg': (0.07, 0.1)})


def trained_model() -> HyperRepVGG:
    """The built-in network with its weights, α = 1."""
    return create_hyper_repvgg(SETTINGS.WEIGHT_PATH_SERVER, SETTINGS.MODEL_NAME, SETTINGS.NUM_CLASSES)


def first_images(domain: int, subset: str, count: int) -> ImageSet:
    """Images of the built-in data."""
    data = load_domain(SETTINGS, domain, subset)
    return ImageSet(data.images[:count], data.labels[:count])


def problem_of(settings: Settings = SETTINGS, table: Optional[HardwareTable] = None, domain: int = 0,
               alpha: Optional[np.ndarray] = None, n_val: int = 120) -> PruningProblem:
    """The built-in network on a few images of a domain, as `domain_search.problem_of` puts it together from files."""
    torch.set_num_threads(1)
    model = trained_model()
    table = slow_client_table(settings=settings) if table is None else table
    alpha = unpruned_alpha(table.n_branches) if alpha is None else alpha
    train, val = first_images(domain, 'train', 96), first_images(domain, 'val', n_val)
    model.set_alpha_array(alpha)
    A_ref = alpha_training.accuracy(model, val, settings)
    return made_problem(table, settings, alpha, A_ref, domain, model, train, val)


def made_problem(table: HardwareTable, settings: Settings, alpha: np.ndarray, A_ref: float, domain: int = 0,
                 model: Optional[HyperRepVGG] = None, train: Optional[ImageSet] = None,
                 val: Optional[ImageSet] = None) -> PruningProblem:
    """A problem that may lack network and images, for partners that do without them."""
    T_eff_ref_ms = solve_exact(table, surviving_branches(unpruned_alpha(table.n_branches)), settings).times.T_eff_ms
    importance = [(k, b) for k in range(table.n_blocks) for b in range(3) if not np.isnan(alpha[k, b])]
    goal = Goal(T_eff_ref_ms, A_ref, settings.EPSILON, settings.KAPPA, settings.MU)
    return PruningProblem(model, train, val, alpha, importance, goal, PrunedTimes(table, T_eff_ref_ms, settings),
                          settings, domain)


def random_block_mask(kept: BlockMask, rng: np.random.Generator, share: float) -> BlockMask:
    """What a block keeps when each branch goes with this probability; one stays."""
    alive = np.flatnonzero(kept)
    stays = int(rng.choice(alive))
    return tuple(bool(present) and (b == stays or rng.random() >= share) for b, present in enumerate(kept))


def random_mask(unpruned: PruningMask, rng: np.random.Generator, share: float = 0.3) -> PruningMask:
    """A mask of this network in which about this share of the branches is gone."""
    return tuple(random_block_mask(kept, rng, share) for kept in unpruned)


def training_form_logits(model: HyperRepVGG, alpha: np.ndarray, images: torch.Tensor) -> torch.Tensor:
    """Logits of the network alone, not folded, all images at once."""
    model.set_alpha_array(alpha)
    with torch.no_grad():
        x = (images.float() / 255 - 0.5) / 0.5
        x = model.stage0(x)
        for block in model.blocks:
            x = torch.relu(block.se(sum(a * branch(x) for a, branch in zip(block.alpha, block.branches()))))
        return model.linear(x.mean(dim=(2, 3)))


class Killed(Exception):
    """Stands for a kill between two rounds."""


def killed_after_every_round(make_search: Callable[[], Search], table: HardwareTable, settings: Settings,
                             most_rounds: int = 300) -> SearchState:
    """How a search ends that goes on after each round from its file alone, with partners made anew. Writes to
    RESULTS_DIR."""
    def save_and_die(state: SearchState) -> None:
        state_file.save('joint_state', state, 0, table, settings, 'inputs', 1.0)
        raise Killed

    for _ in range(most_rounds):
        search = make_search()
        saved = state_file.load('joint_state', 0, table, settings, 'inputs')
        state = saved[0] if saved else search.start()
        if state.phase is Phase.DONE:
            state_file.drop('joint_state', 0, settings)
            return state
        with pytest.raises(Killed):
            search.run(state, save_and_die)
    raise AssertionError(f'not done after {most_rounds} rounds')


def assert_same_networks(found: SearchState, expected: SearchState) -> None:
    """Equal to the last bit in everything but the work that it took."""
    assert found.phase is expected.phase and found.rounds == expected.rounds
    assert found.curve == expected.curve and found.rejected == expected.rejected
    assert list(found.measured) == list(expected.measured)
    for mask, measurement in expected.measured.items():
        np.testing.assert_array_equal(found.measured[mask].alpha, measurement.alpha)
        np.testing.assert_array_equal(found.measured[mask].margins, measurement.margins)
    assert list(found.recovered) == list(expected.recovered) and len(found.narrow) == len(expected.narrow)
    for one, other in [(found.best, expected.best), *zip(found.narrow, expected.narrow),
                       *((found.recovered[mask], network) for mask, network in expected.recovered.items())]:
        np.testing.assert_array_equal(one.alpha, other.alpha)
        assert {**vars(one), 'alpha': None} == {**vars(other), 'alpha': None}
