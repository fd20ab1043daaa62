"""From frontiers to an answer: the configuration that PICK chooses, confirmed on calibration images."""
from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Callable, Iterable, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from config import INT8, Settings, UserError
from costs.cost_model import FLOAT32, Configuration, HardwareTable, Solution
from costs.goal import Goal
from costs.limits import NothingFits
from domains.image_sets import ImageSet
from hyper_repvgg import HyperRepVGG
from network.alpha import surviving_branches
from search import pick
from search.confirmation import Calibration, Comparison, in_fixed_order
from search.cut_channels import ChannelChoice
from search.domain_inputs import images_of
from search.frontier import TESTS, FrontierPoint, Frontiers
from search.int8_loss import uses_int8
from search.wire_loss import WireLoss, classified_right
from throughput_optimizer_limit import solve_within_limits
from wire.formats import by_loss, is_lossless, share_of

StatisticsOf = Callable[[np.ndarray], np.ndarray]  # α [N, 3] -> BatchNorm statistics re-estimated for it
Solve = Callable[[Settings], Solution]  # γ and λ under settings that list wire formats of one loss


@dataclass(frozen=True)
class Answer:
    """A configuration that a search may end with, as far as it is known before test images are used."""
    configuration: Configuration
    val_accuracy: float
    comparison: Comparison  # on calibration images
    batchnorm: Optional[np.ndarray] = None  # re-estimated BatchNorm statistics; None: the model's own


def calibration_of(model: HyperRepVGG, reference: np.ndarray, domain: int, settings: Settings) -> Calibration:
    """A domain's calibration images; `reference`: α [N, 3] of the network behind A_ref."""
    return Calibration(model, reference, images_of(settings, domain, 'calibration'), settings,
                       choice_of(model, domain, settings))


def choice_of(model: HyperRepVGG, domain: int, settings: Settings) -> ChannelChoice:
    """What chooses the channels that are sent in a domain; its training images are read where they are needed."""
    needed = any(share_of(wire) < 1 for wire in settings.WIRE_FORMATS) or uses_int8(settings)
    return ChannelChoice(model, images_of(settings, domain, 'train') if needed else None, settings)


def picked(frontiers: Frontiers, goal: Goal, calibration: Calibration, val: ImageSet, table: HardwareTable,
           statistics_of: StatisticsOf) -> Tuple[Answer, pick.PickRule]:
    """What PICK chooses. Where it asks for confidence, the points are tested in order after the unpruned network, and
    the last one before the first that fails is the answer: the lowest J. Raises `UserError` where nothing passes."""
    settings, rule = calibration.settings, pick.rule_of(calibration.settings)

    def answer(point: FrontierPoint) -> Answer:
        statistics = statistics_of(point.configuration.alpha) if point.recalibrated else None
        return Answer(point.configuration, point.accuracy, calibration.compare(point.configuration, statistics),
                      statistics)

    if rule.confidence is None:
        return answer(pick.pick(frontiers, settings, goal)), rule
    reference = calibration.reference
    first = unpruned(lambda given: solve_within_limits(table, surviving_branches(reference), given), calibration, val,
                     goal)
    points = (point for point in frontiers[TESTS] if not calibration.is_unpruned(point.configuration))
    found = last_confirmed(itertools.chain(first, map(answer, points)), calibration)
    return found.answer, replace(rule, n_tested=found.n_tested, n_passed=found.n_passed)


class Confirmed(NamedTuple):
    """The answer of a test in a fixed order."""
    answer: Answer
    n_tested: int
    n_passed: int


def last_confirmed(options: Iterable[Answer], calibration: Calibration) -> Confirmed:
    """The last one before the first that fails; every one passes where no confidence is asked for. Raises `UserError`
    where nothing passes."""
    passed, n_tested = in_fixed_order(options, lambda answer: calibration.passes(answer.comparison))
    if not passed:
        raise nothing_passes(calibration)
    return Confirmed(passed[-1], n_tested, len(passed))


def first_confirmed(options: Iterable[Answer], calibration: Calibration) -> Answer:
    """The first one that passes. Raises `UserError` where nothing passes."""
    for answer in options:
        if calibration.passes(answer.comparison):
            return answer
    raise nothing_passes(calibration)


def nothing_passes(calibration: Calibration) -> UserError:
    """What to say where not even the unpruned network may be the answer."""
    settings = calibration.settings
    return UserError(f'no configuration is shown to lose at most ε = {settings.EPSILON:g} with confidence '
                     f'{settings.CONFIDENCE:g} on {len(calibration.images)} calibration images, not even the unpruned '
                     'one within the limits and WIRE_FORMATS; CONFIDENCE=none decides by validation images alone' +
                     f', and engines other than {INT8} lose nothing' * uses_int8(settings))


def unpruned(solve: Solve, calibration: Calibration, val: ImageSet, goal: Goal) -> List[Answer]:
    """The reference network at the γ and λ that `solve` chooses, without loss on its way where WIRE_FORMATS lists such
    a format; none where that is not within the limits."""
    settings = calibration.settings
    try:
        return [best_on_wire(calibration.reference, solve, calibration, val, goal,
                             lossless(settings) or settings.WIRE_FORMATS)]
    except NothingFits:
        return []


def lossless(settings: Settings) -> Tuple[str, ...]:
    """The formats of WIRE_FORMATS that lose nothing."""
    return tuple(wire for wire in settings.WIRE_FORMATS if is_lossless(wire))


def best_on_wire(alpha: np.ndarray, solve: Solve, calibration: Calibration, val: ImageSet, goal: Goal,
                 formats: Sequence[str], statistics: Optional[np.ndarray] = None) -> Answer:
    """A network (with these BatchNorm statistics; None: the model's own) at its lowest J over these wire formats, each
    with the validation accuracy that it leaves. Raises `limits.NothingFits` when no format is within the limits."""
    model, settings = calibration.model, calibration.settings
    measured, found = WireLoss(model, val, settings, lambda alpha: statistics, calibration.choice), []
    right = classified_right(model, Configuration(alpha, (), 0, FLOAT32), val, settings, statistics)
    groups = by_loss(formats)
    for group in groups:
        try:
            at = solve(replace(settings, WIRE_FORMATS=group))
        except NothingFits:
            if group == groups[-1] and not found:
                raise
            continue
        accuracy = measured.accuracy(alpha, at.split, at.wire, int(right.sum()) / len(right), statistics is not None)
        found.append((goal.J(at.times.T_eff_ms, accuracy), at, accuracy))
    _, best, accuracy = min(found, key=lambda option: option[0])
    chosen = measured.configuration(alpha, best, statistics is not None)
    return Answer(chosen, accuracy, calibration.compare(chosen, statistics), statistics)
