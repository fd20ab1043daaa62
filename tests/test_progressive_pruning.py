"""The joint search with made-up partners, and with the real ones on a few images: constraint, acceptance, when it ends,
and that a killed one goes on to the same end."""
from __future__ import annotations

import dataclasses
from typing import List, Tuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from random_cases import seeds, tables, whole_table
from search_cases import (
    assert_same_networks,
    killed_after_every_round,
    made_problem,
    problem_of,
    slow_client_table,
    training_form_logits,
    with_settings,
)

import gamma_configurator
import hyper_repvgg
from config import Settings
from costs.cost_model import HardwareTable
from costs.limits import NothingFits
from gamma_mask_builder import build_gamma_mask
from network.alpha import PruningMask, mask_of, pruned, surviving_branches, unpruned_alpha
from progressive_pruning import ProgressivePruning
from search import evaluator, pick
from search.acquisition import Acquisition, RecoveryGain
from search.candidates import candidates_of
from search.frontier import frontiers_of
from search.problem import PruningProblem
from search.state import EvaluatedNetwork, Phase, SearchState, Work
from search.stopping import StoppingRule
from steps.joint import search_of

IMAGES = 60


# --- made-up partners ---------------------------------------------------------------------------------------

class KnownWorld:
    """What every mask and every recovery comes to, all drawn from a seed."""

    def __init__(self, table: HardwareTable, seed: int, settings: Settings, harm: float = 0.4) -> None:
        rng = np.random.default_rng(seed)
        self.alpha, self.seed, self.settings, self.table = unpruned_alpha(table.n_branches), seed, settings, table
        self.unpruned_margins = np.abs(rng.normal(1, 1, IMAGES))
        self.unpruned_margins[:rng.integers(0, 4)] *= -1
        self.effect = rng.normal(-harm, harm, (self.alpha.size, IMAGES))

    def margins(self, mask: PruningMask) -> np.ndarray:
        dropped = (surviving_branches(self.alpha) & ~np.array(mask)).reshape(-1)
        return (self.unpruned_margins + dropped.astype(float) @ self.effect).astype(np.float16)

    def recovered_accuracy(self, alpha: np.ndarray, seed: int, before: float) -> float:
        """Of a training that starts here: something won, or nothing."""
        rng = np.random.default_rng([seed, *np.nan_to_num(alpha, nan=2).round(9).view(np.uint64).reshape(-1) % 2 ** 32])
        return min(1.0, before + round(max(0.0, rng.normal(0, 0.05)) * IMAGES) / IMAGES)

    def problem(self) -> PruningProblem:
        A_ref = float((self.margins(mask_of(self.alpha)) > 0).mean())
        return made_problem(self.table, self.settings, self.alpha, A_ref)


class KnownEvaluator:
    """In the place of Evaluator: what the world knows; notes what it was asked for, and with which α."""

    def __init__(self, world: KnownWorld) -> None:
        self.world, self.block_evaluations, self.asked = world, 0, []

    def use(self, alpha: np.ndarray) -> None:
        self.alpha = alpha

    def margins(self, mask: PruningMask) -> np.ndarray:
        self.asked.append((mask, self.alpha))
        self.block_evaluations += len(mask) * IMAGES
        return self.world.margins(mask)


class KnownRecovery:
    """In the place of Recovery: trains α to 1.1 times what it was."""

    def __init__(self, world: KnownWorld) -> None:
        self.world, self.work, self.asked = world, Work(), []
        self.goal = world.problem().goal

    def gain(self, state: SearchState) -> RecoveryGain:
        gain = RecoveryGain(self.goal)
        for mask, network in state.recovered.items():
            gain.learn(state.measured[mask].accuracy, network.lossless_accuracy)
        return gain

    def train(self, alpha: np.ndarray, seed: int, before: EvaluatedNetwork) -> EvaluatedNetwork:
        self.asked.append((alpha, seed, before))
        self.work.trained_block_images += len(alpha)
        accuracy = self.world.recovered_accuracy(alpha, seed, before.accuracy)
        return before if accuracy == before.accuracy else EvaluatedNetwork(1.1 * alpha, accuracy, accuracy,
                                                                           recovered=True)

    def on_the_wire(self, network: EvaluatedNetwork, J_to_beat: float = 0) -> EvaluatedNetwork:
        return network


def made_search(world: KnownWorld) -> ProgressivePruning:
    problem, settings = world.problem(), world.settings
    return ProgressivePruning(
        problem, candidates_of(world.table, world.alpha, problem.goal.T_eff_ref_ms, problem.importance, settings),
        KnownEvaluator(world), Acquisition(problem.goal, problem.times.relative, 0.5 / IMAGES), KnownRecovery(world),
        StoppingRule(settings.MAX_EVALUATIONS, settings.MAX_PRUNING_ROUNDS))


@st.composite
def worlds(draw) -> KnownWorld:
    """Any small table, any network, any bounds."""
    table = draw(tables())
    settings = with_settings(
        LAMBDA_MIN=0, EPSILON=draw(st.sampled_from([0.0, 0.05, 0.2])), MU=draw(st.sampled_from([0.0, 1.0])),
        MAX_EVALUATIONS=draw(st.sampled_from([2, 7, 12, 40])), MAX_PRUNING_ROUNDS=draw(st.sampled_from([0, 1, 3, 30])),
        SEED=draw(st.integers(0, 5)))
    world = KnownWorld(table, draw(seeds), settings, draw(st.sampled_from([0.0, 0.2, 0.6])))
    assert table.n_blocks <= 4
    return world


def run(search: ProgressivePruning, most_rounds: int = 200) -> Tuple[SearchState, List[float]]:
    """(the end, J of the best network after every round)."""
    J = []

    def save(state: SearchState) -> None:
        J.append(search.problem.J_of(state.best))
        assert len(J) == state.rounds < most_rounds

    return search.run(search.start(), save), J


def has_a_time(world: KnownWorld) -> bool:
    """Tables of zeros have none that J could be relative to."""
    return world.problem().goal.T_eff_ref_ms > 0.01


made_up = hypothesis_settings(max_examples=60, suppress_health_check=[HealthCheck.filter_too_much])
real_worlds = worlds().filter(has_a_time)


@made_up
@given(real_worlds)
def test_the_constraint_is_kept_every_accepted_change_lowers_J_and_none_that_would_is_missed(world):
    search = made_search(world)
    state, after_rounds = run(search)
    problem, goal = search.problem, search.problem.goal
    accepted = [goal.J(point.T_eff_ms, point.accuracy) for point in state.curve]
    assert all(later < earlier for earlier, later in zip(accepted, accepted[1:]))
    assert all(later <= earlier for earlier, later in zip(after_rounds, after_rounds[1:]))
    assert all(point.accuracy >= goal.min_accuracy for point in state.curve)
    assert len(state.curve) - 1 <= world.settings.MAX_PRUNING_ROUNDS
    last, mask = state.curve[-1], mask_of(state.best.alpha)
    assert (last.accuracy, last.n_pruned) == (state.best.accuracy, int((state.best.alpha == 0).sum()))
    assert np.array(mask).any(axis=1).all()  # every block keeps a branch
    assert problem.J_of(state.best) == accepted[-1] <= 1 - goal.mu * goal.A_ref + 1e-12
    measured = [EvaluatedNetwork(found.alpha, found.accuracy, found.accuracy) for found in state.measured.values()]
    for network in (*measured, *state.recovered.values()):
        assert network.accuracy < goal.min_accuracy or problem.J_of(network) >= accepted[-1] - 2e-6


@made_up
@given(real_worlds)
def test_the_best_network_of_the_search_is_the_answer_that_the_constraint_picks_from_its_frontier(world):
    search = made_search(world)
    state, _ = run(search)
    answer = pick.pick(frontiers_of(search.problem, state), world.settings, search.problem.goal)
    J = search.problem.goal.J(answer.times.T_eff_ms, answer.accuracy)
    assert search.problem.J_of(state.best) == pytest.approx(J, abs=2e-6)


@made_up
@given(real_worlds)
def test_every_mask_is_measured_and_recovered_once_at_most_from_the_best_alpha_and_within_bounds(world):
    search = made_search(world)
    state, _ = run(search)
    asked = [mask for mask, _ in search.evaluator.asked]
    assert asked == list(state.measured) and len(asked) == len(set(asked))
    way_back = world.table.n_blocks - 1  # between the best network and the unpruned one, a block each
    assert len(asked) <= world.settings.MAX_EVALUATIONS + way_back
    assert asked[0] == search.candidates.unpruned
    for mask, alpha in search.evaluator.asked:
        assert ((alpha == 0) <= (world.alpha == 0)).all()  # a branch that the best network lacks is there again
        np.testing.assert_array_equal(state.measured[mask].alpha, pruned(alpha, mask))
        np.testing.assert_array_equal(state.measured[mask].margins, world.margins(mask))
        assert mask_of(state.measured[mask].alpha) == mask
    recovered = [mask_of(alpha) for alpha, _, _ in search.recovery.asked]
    assert recovered == list(state.recovered) and len(recovered) == len(set(recovered))
    assert set(recovered) <= set(asked)
    for mask, (_, _, before) in zip(recovered, search.recovery.asked):
        assert before.accuracy == state.measured[mask].accuracy <= state.recovered[mask].accuracy
    assert state.work.block_evaluations == len(asked) * len(world.alpha) * IMAGES
    assert state.work.trained_block_images == len(recovered) * len(world.alpha)


@made_up
@given(real_worlds)
def test_a_search_killed_after_every_round_ends_where_an_undisturbed_one_does(tmp_path_factory, world):
    results = str(tmp_path_factory.mktemp('killed'))
    world.settings = dataclasses.replace(world.settings, RESULTS_DIR=results)
    undisturbed, _ = run(made_search(world))
    world.table = dataclasses.replace(world.table, model=world.settings.MODEL_NAME)
    state = killed_after_every_round(lambda: made_search(world), world.table, world.settings)
    assert_same_networks(state, undisturbed)
    assert state.work == undisturbed.work


@given(seeds, st.sampled_from([4, 12, 24]), st.booleans())
@hypothesis_settings(max_examples=20)
def test_all_measurements_are_spent_while_anything_is_expected_of_them(seed, most, worth):
    settings = with_settings(MAX_EVALUATIONS=most, EPSILON=0.05)
    world = KnownWorld(slow_client_table(), seed, settings)
    search = made_search(world)
    promise = 1e-9 if worth else 0.0

    class SamePromise:
        def improvements(self, masks, accuracy, sd, gain, best_J):
            return np.full(len(masks), promise)  # too little for a recovery

    search.acquisition = SamePromise()
    state, _ = run(search)
    changes = search.candidates.single_changes(search.problem.times.relative)
    assert len(state.measured) == (most if worth else 1 + min(len(changes), most // 2))
    assert not state.recovered


@given(seeds)
@hypothesis_settings(max_examples=20)
def test_where_measurements_and_recoveries_tell_the_truth_little_is_left_to_find(seed):
    """Held against all masks of a network of three blocks, without anything that a recovery could win."""
    rng = np.random.default_rng(seed)
    full = slow_client_table(seed % 1000)
    table = dataclasses.replace(
        full, block_names=full.block_names[:3], has_identity=full.has_identity[:3],
        T_ms={tier: ms[:3] for tier, ms in full.T_ms.items()}, flops=full.flops[:3], bytes_moved=full.bytes_moved[:3],
        block_bytes={wire: n_bytes[:3] for wire, n_bytes in full.block_bytes.items()})
    world = KnownWorld(table, seed, with_settings(EPSILON=0.05, MAX_EVALUATIONS=40), harm=rng.choice([0.1, 0.3]))
    world.recovered_accuracy = lambda alpha, seed, before: before
    search = made_search(world)
    state, _ = run(search)
    problem, goal = search.problem, search.problem.goal
    every = {mask: float((world.margins(mask) > 0).mean()) for mask in search.candidates.pool([])}
    times = dict(zip(every, problem.times.relative(list(every))))
    lowest = min(goal.J(times[mask] * goal.T_eff_ref_ms, accuracy) for mask, accuracy in every.items()
                 if accuracy >= goal.min_accuracy)
    assert problem.J_of(state.best) <= lowest + 0.02


# --- real partners on a few images ----------------------------------------------------------------------------

@pytest.mark.parametrize('domain, formats', [(0, ('float32',)), (3, ('float32', 'uint8'))])
def test_what_a_search_ends_with_meets_the_constraint_and_is_no_worse_than_its_start(domain, formats):
    settings = with_settings(WIRE_FORMATS=formats)
    table = slow_client_table(settings=settings) if len(formats) == 1 else whole_table(settings, 3)
    problem = problem_of(settings, table, domain)
    search, start_J = search_of(problem), 1 - problem.goal.A_ref
    state, _ = run(search)
    assert state.phase is Phase.DONE and len(state.curve) > 1
    assert state.best.accuracy >= problem.goal.min_accuracy
    assert problem.J_of(state.best) <= start_J if len(formats) == 1 else problem.J_of(state.best) < start_J + 0.02
    surviving = surviving_branches(state.best.alpha)
    assert surviving.any(axis=1).all() and state.curve[-1].n_pruned == int((state.best.alpha == 0).sum()) > 0
    logits = training_form_logits(problem.model, state.best.alpha, problem.val.images)
    plain = float((logits.argmax(1) == problem.val.labels).float().mean())
    assert state.best.lossless_accuracy == pytest.approx(plain, abs=1.5 / len(problem.val))  # float32 ties
    solution = problem.times.solve_within_limits(state.best.alpha, state.best.formats)
    assert build_gamma_mask(surviving)[np.arange(len(solution.gamma)), solution.gamma].all()
    values = [problem.goal.J(point.T_eff_ms, point.accuracy) for point in state.curve]
    assert values == sorted(values, reverse=True)


def test_networks_between_the_best_one_and_the_unpruned_one_are_measured():
    problem = problem_of()
    state, _ = run(search_of(problem))
    mask, unpruned, path = mask_of(state.best.alpha), mask_of(problem.unpruned), 0
    assert sum(a != b for a, b in zip(mask, unpruned)) > 1
    while mask != unpruned:
        fuller = [(*mask[:k], whole, *mask[k + 1:]) for k, whole in enumerate(unpruned) if mask[k] != whole]
        mask, path = next(one for one in fuller if one in state.measured), path + 1
    assert path > 1


def test_a_search_ends_where_no_pruning_saves_time():
    table = slow_client_table()
    table = dataclasses.replace(table, T_ms={tier: np.where(np.isnan(ms), np.nan, 1.0)
                                             for tier, ms in table.T_ms.items()})
    problem = problem_of(table=table)
    state, _ = run(search_of(problem), most_rounds=4)
    assert state.phase is Phase.DONE and list(state.measured) == [mask_of(problem.unpruned)]
    assert problem.J_of(state.best) <= 1 - problem.goal.A_ref


@pytest.mark.parametrize('domain', [0, 3, 6])
def test_without_any_allowance_recoveries_are_still_tried(domain):
    problem = problem_of(with_settings(EPSILON=0.0), domain=domain, n_val=250)
    with np.errstate(divide='raise', invalid='raise'):
        state, _ = run(search_of(problem))
    assert state.recovered and state.best.accuracy >= problem.goal.A_ref


def test_a_limit_that_no_pruning_can_meet_is_said_before_any_work():
    settings = with_settings(MAX_LATENCY_MS=0.01)
    table = slow_client_table(settings=settings)
    search = made_search(KnownWorld(table, 1, settings))
    with pytest.raises(NothingFits, match='whatever is pruned'):
        search.start()
    assert not search.evaluator.asked


@pytest.mark.parametrize('formats, cache_mb', [(('float32',), 0), (('float32',), 512), (('float32', 'uint8'), 1)])
def test_the_work_of_a_search_is_what_was_run(formats, cache_mb, monkeypatch):
    settings = with_settings(WIRE_FORMATS=formats, BANDWIDTH_MBPS=5.0, ACTIVATION_CACHE_MB=cache_mb)
    problem = problem_of(settings, whole_table(settings, 4), n_val=40)
    build, ran, trained = gamma_configurator.build_plan, [0], [0]

    def counting(block, *arguments):
        plan = build(block, *arguments)
        if block is not problem.model.stage0:
            plan.register_forward_hook(lambda module, args, output: ran.__setitem__(0, ran[0] + len(output)))
        return plan

    for module in (evaluator, hyper_repvgg):
        monkeypatch.setattr(module, 'build_plan', counting)
    for block in problem.model.blocks:
        block.register_forward_hook(lambda module, args, output: trained.__setitem__(0, trained[0] + len(output)))
    state, _ = run(search_of(problem))
    assert state.recovered
    assert (state.work.block_evaluations, state.work.trained_block_images) == (ran[0], trained[0])


@pytest.mark.parametrize('formats, cache_mb', [(('float32',), 0), (('float32',), 512), (('uint4@0.25',), 1)])
def test_a_killed_search_ends_bit_for_bit_where_an_undisturbed_one_does_whatever_was_in_memory(tmp_path, formats,
                                                                                              cache_mb):
    settings = with_settings(RESULTS_DIR=str(tmp_path), ACTIVATION_CACHE_MB=cache_mb, WIRE_FORMATS=formats,
                             MAX_EVALUATIONS=3 if cache_mb == 1 else 10)
    table = whole_table(settings, 4) if cache_mb == 1 else slow_client_table(settings=settings)
    with_memory = dataclasses.replace(settings, ACTIVATION_CACHE_MB=cache_mb or 512)
    undisturbed, _ = run(search_of(problem_of(with_memory, table)))
    assert cache_mb != 1 or any(network.recovered for network in undisturbed.narrow)
    state = killed_after_every_round(lambda: search_of(problem_of(settings, table)), table, settings)
    assert_same_networks(state, undisturbed)
    assert state.work.trained_block_images == undisturbed.work.trained_block_images
    again = state.work.block_evaluations - undisturbed.work.block_evaluations
    assert again >= 0 and (again > 0 or cache_mb < 512)  # what was in memory is run again


def test_without_memory_kills_cost_no_work(tmp_path):
    settings = with_settings(RESULTS_DIR=str(tmp_path), ACTIVATION_CACHE_MB=0, MAX_EVALUATIONS=8, RECOVERY_STEPS=2)
    table = slow_client_table(settings=settings)
    undisturbed, _ = run(search_of(problem_of(settings, table)))
    state = killed_after_every_round(lambda: search_of(problem_of(settings, table)), table, settings)
    assert state.work == undisturbed.work
