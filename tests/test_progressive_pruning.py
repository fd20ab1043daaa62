"""The joint search: exact looks, constraint, acceptance, resumption, and results that can be read back."""
from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import config
import lut_manager
import progressive_pruning
from costs import cost_model
from costs.cost_model import Roofline
from domain_dataset import load_domain
from domains.image_sets import ImageSet
from gamma_mask_builder import build_gamma_mask, runnable_gammas
from hyper_repvgg import create_hyper_repvgg
from lut_manager import TierCosts
from network.alpha import kept, surviving_branches, unpruned_alpha
from progressive_pruning import JointSearch
from search import alpha_training, joint_result, pruning_search
from search.candidates import smaller_sets
from search.frontier_search import FrontierSearch
from search.importance_pruning import ImportanceSearch
from search.prefix_activations import PruningEvaluator, choice_of
from search.pruning_search import Judgement, SearchState
from throughput_optimizer import solve_exact

SETTINGS = config.load(('LOOKS=16', 'RECOVERY_STEPS=2', 'MAX_PRUNING_ROUNDS=6'), environ={})


def fake_tier(tier: str, rng: np.random.Generator) -> TierCosts:
    """Times in which a 3x3 costs about four times a 1x1, on a slow client and a fast server."""
    _, has_identity = lut_manager.blocks_of(SETTINGS)
    base = np.array([4, 1, .8, 5, 4, 4.5, 4, 2, 1, 6, 5, 5, 5, 4]) * (0.12 if tier == 'client' else 0.03)
    block_ms = base * rng.uniform(0.9, 1.1, (len(has_identity), 14))
    block_ms[~runnable_gammas(np.array(has_identity))] = np.nan
    return TierCosts(tier, {'name': tier, 'simulated': True, 'profile': 'fake'}, block_ms, 0 * block_ms, 0.05, 0.05,
                     Roofline(50, 10))


def first_images(split: str, count: int) -> ImageSet:
    data = load_domain(SETTINGS, 0, split)
    return ImageSet(data.images[:count], data.labels[:count])


@pytest.fixture(scope='module')
def parts():
    rng = np.random.default_rng(5)
    table = lut_manager.merge(fake_tier('server', rng), fake_tier('client', rng), SETTINGS)
    model = create_hyper_repvgg(SETTINGS.WEIGHT_PATH_SERVER, SETTINGS.MODEL_NAME, SETTINGS.NUM_CLASSES)
    return table, model, first_images('train', 96), first_images('val', 120)


def new_search(parts, search_type=JointSearch, settings: config.Settings = SETTINGS):
    table, model, train, val = parts
    torch.set_num_threads(1)
    alpha = unpruned_alpha(table.has_identity)
    model.set_alpha_array(alpha)
    reference = alpha_training.accuracy(model, val, settings)
    unpruned = solve_exact(table, surviving_branches(alpha), settings).times.T_eff_ms
    importance = [(k, b) for k in range(table.n_blocks) for b in range(3) if not np.isnan(alpha[k, b])]
    return search_type(model, table, train, val, settings, 0, alpha, reference, unpruned, importance)


@hypothesis_settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), cache_mb=st.sampled_from([0, 2, 512]))
def test_a_look_from_cached_activations_is_the_accuracy_of_the_pruned_network(parts, data, cache_mb):
    table, model, _, val = parts
    alpha = unpruned_alpha(table.has_identity)
    settings = dataclasses.replace(SETTINGS, ACTIVATION_CACHE_MB=cache_mb)
    whole = tuple(tuple(bool(v) for v in row) for row in surviving_branches(alpha))
    choice = tuple(data.draw(st.sampled_from([keep, *smaller_sets(keep)])) for keep in whole)
    looked = PruningEvaluator(model, alpha, val, settings).accuracy(choice)
    model.set_alpha_array(np.where(np.isnan(alpha), np.nan, np.where(np.array(choice), alpha, 0.0)))
    with torch.no_grad():  # the training form, not folded, all at once
        x = (val.images.float() / 255 - 0.5) / 0.5
        plain = float((model(x).argmax(1) == val.labels).float().mean())
    assert looked == pytest.approx(plain, abs=1.5 / len(val))  # float32 ties may fall either way


@pytest.mark.parametrize('search_type', [JointSearch, ImportanceSearch])
def test_what_a_search_ends_with_meets_the_constraint_and_is_no_worse_than_its_start(parts, search_type):
    settings = dataclasses.replace(SETTINGS, MAX_PRUNING_ROUNDS=3)
    search = new_search(parts, search_type, settings)
    start_J = search.J(search.T_eff_ref_ms, search.reference)
    state = search.run(search.start(), lambda state: None)
    assert state.finished and len(state.curve) > 1
    assert state.accuracy >= search.reference - settings.EPSILON
    assert search.J_of(state) <= start_J
    surviving = surviving_branches(state.alpha)
    assert surviving.any(axis=1).all()
    assert state.curve[-1].n_pruned == int((state.alpha == 0).sum()) > 0
    search.model.set_alpha_array(state.alpha)
    assert alpha_training.accuracy(search.model, search.val, settings) == state.accuracy
    solution = search.final(state.alpha)
    assert build_gamma_mask(surviving)[np.arange(len(solution.gamma)), solution.gamma].all()


def test_every_accepted_change_of_the_joint_search_lowers_J(parts):
    search = new_search(parts)
    state = search.run(search.start(), lambda state: None)
    values = [search.J(point.T_eff_ms, point.accuracy) for point in state.curve]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize('search_type', [JointSearch, FrontierSearch])
def test_a_search_ends_where_no_pruning_saves_time(parts, search_type):
    table = dataclasses.replace(parts[0], T_ms={tier: np.where(np.isnan(ms), np.nan, 1.0)
                                                for tier, ms in parts[0].T_ms.items()})
    search = new_search((table, *parts[1:]), search_type)

    def no_end(state):
        assert state.rounds < 100

    state = search.run(search.start(), no_end)
    assert state.finished and search.J_of(state) <= search.J(search.T_eff_ref_ms, search.reference)


def test_all_recoveries_start_from_one_alpha_trained_on_pruned_networks_and_the_reference_stays(parts):
    search = new_search(parts)
    state = search.start()
    assert state.trained_block_images == SETTINGS.SHARED_STEPS * len(search.model.blocks) * SETTINGS.RECOVERY_BATCH_SIZE
    present = ~np.isnan(search.unpruned)
    assert (state.shared_alpha[present] != 0).all() and (state.shared_alpha[present] != search.unpruned[present]).any()
    np.testing.assert_array_equal(state.alpha, search.unpruned)  # the network that J starts from is not retrained
    assert state.accuracy == search.reference
    choice = search.first_looks()[0]
    search.look(state, [choice], whole=True)
    search.model.set_alpha_array(kept(choice, state.shared_alpha))
    assert state.looks[choice].accuracy == alpha_training.accuracy(search.model, search.val, SETTINGS)


def test_without_shared_steps_recoveries_start_from_the_unpruned_network(parts):
    search = new_search(parts, settings=dataclasses.replace(SETTINGS, SHARED_STEPS=0))
    state = search.start()
    np.testing.assert_array_equal(state.shared_alpha, search.unpruned)
    assert state.trained_block_images == 0
    assert state.looks[choice_of(search.unpruned)].accuracy == pytest.approx(search.reference)


def test_steps_without_a_branch_do_not_train_it_and_leave_no_hole(parts):
    _, model, train, _ = parts
    before = unpruned_alpha([block.n_branches == 3 for block in model.blocks])
    without = ~np.isnan(before)
    without[2, 0] = without[4, 1] = False
    model.set_alpha_array(before)
    alpha_training.train_alpha(model, train, SETTINGS, 4, 0.05, seed=3, kept_at=lambda step: without)
    trained = model.alpha_array()
    changed = (trained != before) & ~np.isnan(before)
    np.testing.assert_array_equal(changed, without)
    assert (trained[~np.isnan(before)] != 0).all()


@pytest.mark.parametrize('won', [0.0, 0.05])
def test_what_has_just_missed_gets_one_longer_recovery_and_counts_only_if_that_is_enough(parts, monkeypatch, won):
    search = new_search(parts)
    state = search.start()
    start_J, choice = search.J_of(state), min(search.first_looks(), key=lambda c: search.relative_T_eff([c])[0])
    alpha = kept(choice, state.shared_alpha)
    state.judged[choice] = Judgement(search.bound - 0.001, alpha)  # it would lower J, but misses the bound
    asked = []

    def recovered(state, start, steps, seed, l1, before, needed):
        asked.append((start, steps, needed))
        return dataclasses.replace(before, accuracy=before.accuracy + won, alpha=1.1 * start) if won else before

    monkeypatch.setattr(search, 'recovered', recovered)
    assert search.second_chance(state)
    (start, steps, needed), = asked
    np.testing.assert_array_equal(start, alpha)
    assert steps == pruning_search.LONGER * SETTINGS.RECOVERY_STEPS and needed == search.bound
    assert state.judged[choice].longer and (search.J_of(state) < start_J) == bool(won) == state.polished
    assert not search.second_chance(state) and len(asked) == 1


def test_what_has_missed_by_far_gets_no_longer_recovery(parts):
    search = new_search(parts)
    state = search.start()
    for choice in search.first_looks()[:3]:
        state.judged[choice] = Judgement(search.bound - 2 * SETTINGS.EPSILON, kept(choice, state.shared_alpha))
    assert not search.second_chance(state)


@pytest.mark.parametrize('spent', ['less than half', 'half'])
def test_half_of_the_looks_are_spent_and_then_what_promises_more_than_a_look_is_worth(parts, monkeypatch, spent):
    search = new_search(parts, settings=dataclasses.replace(SETTINGS, LOOKS=24 if spent == 'half' else 40))
    state = search.start()
    search.look(state, search.first_looks())
    assert 12 <= len(state.looks) < 20
    promise = progressive_pruning.expected_improvement
    assert search.most_promising(state) is not None
    monkeypatch.setattr(progressive_pruning, 'expected_improvement',
                        lambda *arguments: np.minimum(promise(*arguments), progressive_pruning.WORTH_A_LOOK))
    assert (search.most_promising(state) is None) == (spent == 'half')


def test_without_any_allowance_recoveries_are_still_tried(parts):
    search = new_search(parts, settings=dataclasses.replace(SETTINGS, EPSILON=0.0))
    with np.errstate(divide='raise', invalid='raise'):
        state = search.run(search.start(), lambda state: None)
    assert len(state.judged) > 1 and state.accuracy >= search.reference


class Killed(Exception):
    """Stands for a kill between two rounds."""


def killed_after_every_round(parts, settings: config.Settings) -> SearchState:
    """How a search ends that goes on after each round from its file alone."""
    table = parts[0]

    def save_and_die(state):
        joint_result.save_state('joint_state', state, 0, table, settings, 'inputs', 1.0)
        raise Killed

    for _ in range(200):
        search = new_search(parts, settings=settings)
        saved = joint_result.load_state('joint_state', 0, table, settings, 'inputs')
        state = saved[0] if saved else search.start()
        if state.finished:
            break
        with pytest.raises(Killed):
            search.run(state, save_and_die)
    assert state.finished
    assert joint_result.load_state('joint_state', 0, table, settings, 'other inputs') is None
    return state


def test_a_search_killed_after_every_round_ends_where_an_undisturbed_one_does(parts, tmp_path):
    settings = dataclasses.replace(SETTINGS, RESULTS_DIR=str(tmp_path), ACTIVATION_CACHE_MB=0)
    search = new_search(parts, settings=settings)
    undisturbed, state = search.run(search.start(), lambda state: None), killed_after_every_round(parts, settings)
    np.testing.assert_array_equal(state.alpha, undisturbed.alpha)
    assert state.curve == undisturbed.curve and state.looks == undisturbed.looks
    for choice, look in state.looks.items():
        np.testing.assert_array_equal(look.margins, undisturbed.looks[choice].margins)
    np.testing.assert_array_equal(state.lowest_margins, undisturbed.lowest_margins)
    np.testing.assert_array_equal(state.shared_alpha, undisturbed.shared_alpha)
    assert state.block_evaluations == undisturbed.block_evaluations


def test_a_killed_search_runs_again_what_was_in_memory_and_finds_as_much(parts, tmp_path):
    settings = dataclasses.replace(SETTINGS, RESULTS_DIR=str(tmp_path))
    search = new_search(parts, settings=settings)
    undisturbed, state = search.run(search.start(), lambda state: None), killed_after_every_round(parts, settings)
    assert state.block_evaluations > undisturbed.block_evaluations
    assert state.accuracy >= search.bound
    assert search.J_of(state) == pytest.approx(search.J_of(undisturbed), abs=0.02)  # rounding may lead another way


@hypothesis_settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10 ** 6), head_tier=st.sampled_from(cost_model.TIERS))
def test_times_of_many_choices_at_once_equal_those_of_each_alone(parts, seed, head_tier):
    settings = dataclasses.replace(SETTINGS, HEAD_TIER=head_tier)
    search = new_search(parts, settings=settings)
    rng = np.random.default_rng(seed)
    whole = [tuple(bool(v) for v in row) for row in surviving_branches(search.unpruned)]
    choices = [tuple(keeps[rng.integers(len(keeps))] for keeps in ([keep, *smaller_sets(keep)] for keep in whole))
               for _ in range(5)]
    together = search.relative_T_eff(choices)
    alone = [solve_exact(search.table, np.array(choice), settings).times.T_eff_ms / search.T_eff_ref_ms
             for choice in choices]
    np.testing.assert_allclose(together, alone, rtol=1e-12)
