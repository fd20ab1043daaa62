"""Tables and results made up for tests of pictures and summaries."""
from __future__ import annotations

import dataclasses

import numpy as np
import torch

import lut_manager
from costs.cost_model import TIERS, Configuration, Roofline, Scenario, times
from domains.image_sets import ImageSet
from gamma_mask_builder import build_gamma_mask, runnable_gammas
from lut_manager import TierCosts
from network.alpha import surviving_branches, unpruned_alpha
from network.outline import outline_for
from search import result_file
from search.frontier import OBJECTIVES, TESTS, Candidate, measured_frontier
from search.one_tier import Network, SentImages, without_split
from search.pick import PickRule
from search.result import AccuracyReport, Baseline, JointResult
from search.state import CurvePoint
from search.wire_loss import WireLoss
from throughput_optimizer import solve_exact


def make_table(settings, seed=0):
    """A random table of the settings' model: a slow client, a fast server."""
    rng = np.random.default_rng(seed)
    runnable = runnable_gammas(outline_for(settings).n_branches)
    tiers = {}
    for tier, scale in zip(TIERS, (0.5, 0.1)):
        block_ms = np.where(runnable, scale * rng.uniform(0.2, 1, runnable.shape), np.nan)
        tiers[tier] = TierCosts(tier, {'name': f'a {tier} for $5', 'simulated': tier == 'client', 'profile': 'made up'},
                                block_ms, 0 * block_ms, scale, scale, Roofline(10.0, 5.0))
    return lut_manager.merge(tiers['server'], tiers['client'], settings)


def ends(table, alpha, suffix, accuracy, settings):
    """A network of this accuracy without a split, as `one_tier.without_split` reports it."""
    images = SentImages(ImageSet(torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.zeros(4, dtype=torch.long)),
                        ImageSet(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.zeros(2, dtype=torch.long)),
                        table, settings)
    network = Network(alpha, lambda data: round(accuracy * len(data)), 0.0)
    found = without_split(network, suffix, images, table, settings)
    return {name: dataclasses.replace(baseline, accuracy=accuracy) for name, baseline in found.items()}


def make_result(table, settings, domain, sequential=False):
    """A result of one domain with two pruned blocks."""
    ones = unpruned_alpha(table.n_branches)
    unpruned = solve_exact(table, surviving_branches(ones), settings)
    curve = [CurvePoint(0, 0.9, unpruned.times.T_eff_ms, unpruned.times.throughput_fps)]
    networks = [(ones, 0.9)]
    alpha = ones.copy()
    for block in (1, 5):
        alpha[block, 0] = 0.0
        found = solve_exact(table, surviving_branches(alpha), settings)
        curve.append(CurvePoint(int((alpha == 0).sum()), curve[-1].accuracy - 0.004, found.times.T_eff_ms,
                                found.times.throughput_fps))
        networks.append((alpha.copy(), curve[-1].accuracy))
    frontiers = {name: measured_frontier([
        Candidate(network, accuracy, True, solve_exact(table, surviving_branches(network), settings, None, objective))
        for network, accuracy in networks], objective, WireLoss(None, None, settings))
        for name, objective in OBJECTIVES.items()}
    frontiers[TESTS] = list(reversed(frontiers['T_eff']))
    others = {'step2': Baseline(0.89, unpruned.times),
              **ends(table, ones, '', 0.89, settings), **ends(table, alpha, '_pruned', 0.885, settings)}
    if sequential:
        others['sequential'] = Baseline(0.88, unpruned.times)
    return JointResult(
        domain, f'domain\n{domain} at $1', 'pseudo', table.block_names,
        Configuration(alpha, found.gamma, found.split, found.wire),
        AccuracyReport(0.88, 0.89, 0.885, 200, (0.83, 0.92), 0.9, curve[-1].accuracy, 0.9, 0.895, 100, 0.04),
        0.02, 0.0, -0.1, found.times, others, curve, None, 0, 1.0, 100, frontiers, PickRule('constraint'))


def save_domain(table, settings, domain, sequential=False):
    """Write `make_result`; returns its path."""
    return result_file.save('joint', make_result(table, settings, domain, sequential), settings, 'made for a test')


def random_configuration(table, rng, split, wire):
    """Random α (every block keeps a branch) with a random γ that fits."""
    alpha = unpruned_alpha(table.n_branches) * rng.uniform(0.3, 2.5, (table.n_blocks, 3))
    alpha[rng.random(alpha.shape) < 0.4] *= 0
    alpha[~surviving_branches(alpha).any(axis=1), 1] = 1.0
    valid = build_gamma_mask(surviving_branches(alpha))
    return Configuration(alpha, tuple(int(rng.choice(np.flatnonzero(row))) for row in valid), split, wire)


def configured(result, table, configuration, head_tier, omega=0.5):
    """The result with another configuration and the times that follow."""
    return dataclasses.replace(result, configuration=configuration,
                               times=times(table, configuration, Scenario(head_tier, omega)))
