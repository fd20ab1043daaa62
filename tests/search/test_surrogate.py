"""What the surrogate learns from measured networks: branches that add up, pairs, and how sure it may be."""
from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from random_cases import seeds

from search.surrogate import Surrogate

EPSILON = 0.02


class World:
    """Networks of made-up branches whose effects on every image add up, with some effect of every pair."""

    def __init__(self, seed: int, images: int = 400, branches: int = 10, pair: float = 0.0) -> None:
        self.rng, self.branches = np.random.default_rng(seed), branches
        self.effect = self.rng.normal(-0.15, 0.3, (branches, images))
        self.pair = pair * self.rng.normal(0, 0.3, (branches, branches, images))
        self.unpruned = np.abs(self.rng.normal(2, 1.5, images))

    def margins(self, dropped: np.ndarray) -> np.ndarray:
        d = dropped.astype(float)
        return self.unpruned + d @ self.effect + np.einsum('mi,mj,ijn->mn', d, d, self.pair)

    def accuracy(self, dropped: np.ndarray) -> np.ndarray:
        return (self.margins(dropped) > 0).mean(axis=1)

    def single_changes_and(self, more: int) -> np.ndarray:
        """No branch, each branch alone, and random sets."""
        return np.vstack([np.zeros(self.branches, bool), np.eye(self.branches, dtype=bool),
                          self.rng.random((more, self.branches)) < 0.3])

    def pairs(self) -> np.ndarray:
        alone = np.eye(self.branches, dtype=bool)
        return np.array([alone[i] | alone[j] for i in range(self.branches) for j in range(i)])

    def surrogate(self, dropped: np.ndarray) -> Surrogate:
        return Surrogate(dropped, self.margins(dropped), EPSILON)


@hypothesis_settings(max_examples=30)
@given(seed=seeds)
def test_networks_whose_branches_add_up_are_predicted_and_it_is_less_sure_where_it_has_not_been(seed):
    world = World(seed)
    seen = world.single_changes_and(20)
    surrogate = world.surrogate(seen)
    accuracy, sd = surrogate.predict(world.pairs())
    assert np.abs(accuracy - world.accuracy(world.pairs())).mean() < 0.01
    assert sd.mean() > surrogate.predict(seen[:11])[1].mean()


@hypothesis_settings(max_examples=20)
@given(seed=seeds)
def test_where_pairs_matter_more_measurements_make_it_better_and_surer(seed):
    world = World(seed, pair=0.3)
    seen, asked = world.single_changes_and(60), world.single_changes_and(60)[11:]
    few, many = (world.surrogate(seen[:count]).predict(asked) for count in (11, len(seen)))
    errors = [np.abs(accuracy - world.accuracy(asked)).mean() for accuracy, _ in (few, many)]
    assert errors[1] < errors[0] and many[1].mean() < few[1].mean()


@hypothesis_settings(max_examples=20)
@given(seed=seeds)
def test_its_accuracies_are_within_what_it_says_of_itself(seed):
    off = []
    for repeat in range(6):
        world = World((seed + repeat) % 2 ** 32, pair=0.1)
        asked = world.single_changes_and(30)[11:]
        accuracy, sd = world.surrogate(world.single_changes_and(20)).predict(asked)
        off += list((accuracy - world.accuracy(asked)) / sd)
    assert np.mean(np.abs(off) < 3) >= 0.85


@hypothesis_settings(max_examples=30)
@given(seed=seeds)
def test_measured_networks_are_predicted_as_they_were_measured(seed):
    world = World(seed)
    seen = world.single_changes_and(10)
    accuracy, _ = world.surrogate(seen).predict(seen)
    assert np.abs(accuracy - world.accuracy(seen)).mean() < 0.01


@hypothesis_settings(max_examples=30)
@given(seed=seeds)
def test_of_many_images_some_stand_for_all_also_beside_a_ruined_network(seed):
    rng = np.random.default_rng(seed)
    dropped = np.vstack([np.zeros(6, bool), np.eye(6, dtype=bool), np.ones((1, 6), bool)])
    effects = np.vstack([rng.normal(-0.1, 0.2, (6, 5000))])
    margins = rng.normal(0.6, 1.0, 5000) + dropped.astype(float) @ effects
    margins[-1] = rng.normal(-3, 1, 5000)  # nearly everything wrong: its lowest margins are no sample of the others
    surrogate = Surrogate(dropped, margins, EPSILON)
    assert surrogate.margins.shape[1] < margins.shape[1]
    predicted, true = surrogate.predict(dropped[:7])[0], (margins[:7] > 0).mean(axis=1)
    np.testing.assert_allclose(predicted, true, atol=0.06)


@hypothesis_settings(max_examples=30)
@given(seed=seeds)
def test_one_network_or_such_as_do_not_differ_give_finite_predictions(seed):
    world = World(seed)
    pool = world.single_changes_and(10)
    for seen, margins in ((pool[:1], world.margins(pool[:1])), (pool[:5], np.repeat(world.margins(pool[:1]), 5, 0)),
                          (pool[[0, 1, 1, 1]], world.margins(pool[[0, 1, 1, 1]]))):
        accuracy, sd = Surrogate(seen, margins.astype(np.float16), 0.005).predict(pool)
        assert ((accuracy >= -1e-6) & (accuracy <= 1 + 1e-6)).all()
        assert np.isfinite(sd).all() and (sd > 0).all()
