"""Does splitting pay? A split against everything on one tier, like with like.

What counts: both tiers alone, each with the network as it is and with the same pruning, and the image sent as it is, as
PNG and as JPEG. Where raw images must stay on the device (LAMBDA_MIN of 1 or more) sending them is shown and not
counted.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import List, Optional, Sequence

from costs.cost_model import Times, ranked


@dataclass(frozen=True)
class OneTier:
    """A way to run the network without a split."""
    name: str  # of a baseline: 'all_server_pruned_png'
    times: Times
    sends_image: bool

    @property
    def words(self) -> str:
        """'the server alone, same pruning, image as PNG'."""
        return words_of(self.name)


@dataclass(frozen=True)
class Verdict:
    """A split beside the best ways without one, by T_eff; frames a second of one client beside that."""
    T_eff_ms: float  # of the split
    counted: OneTier  # the best that counts
    not_counted: Optional[OneTier]  # the best that would send the image though it must stay; None: all count
    T_cyc_ms: float  # of the split
    least_T_cyc_ms: float  # of everything that counts

    @property
    def pays(self) -> bool:
        """Is the split faster than everything that counts?"""
        return ranked(self.T_eff_ms) < ranked(self.counted.times.T_eff_ms)

    @property
    def is_no_split(self) -> bool:
        """Is the chosen configuration itself one of one tier?"""
        return ranked(self.T_eff_ms) == ranked(self.counted.times.T_eff_ms)

    @property
    def pays_anyway(self) -> bool:
        """And would it be if images could leave the device?"""
        return self.pays and (self.not_counted is None or
                              ranked(self.T_eff_ms) < ranked(self.not_counted.times.T_eff_ms))


def words_of(name: str) -> str:
    """A baseline's name as people say it: 'all_server_pruned_png'."""
    _, tier, *more = name.split('_')
    image = next((f', image as {part.upper()}' for part in more if part != 'pruned'), '')
    return f"the {tier} alone, {'same pruning' if 'pruned' in more else 'unpruned'}{image}"


def verdict_of(times: Times, ways: Sequence[OneTier], images_stay: bool) -> Verdict:
    """The verdict on a split with these times. `images_stay`: must raw images stay on the tier that has them?"""
    def best(of: List[OneTier]) -> Optional[OneTier]:
        return min(of, key=lambda way: way.times.rank()) if of else None

    sending, staying = [way for way in ways if way.sends_image], [way for way in ways if not way.sends_image]
    counting = staying if images_stay else staying + sending
    return Verdict(times.T_eff_ms, best(counting), best(sending) if images_stay else None, times.T_cyc_ms,
                   min(way.times.T_cyc_ms for way in counting))


def sentences(found: Sequence[Verdict]) -> List[str]:
    """In plain words, for one domain or many: where splitting pays, and against what."""
    groups = {'splitting pays': [v for v in found if v.pays_anyway],
              'splitting pays only because raw images must stay on the device (LAMBDA_MIN is above 0)':
                  [v for v in found if v.pays and not v.pays_anyway],
              'splitting does not pay': [v for v in found if not v.pays and not v.is_no_split],
              'splitting does not pay, the best choice is no split': [v for v in found if v.is_no_split]}
    lines = [f'{what}{_how_many(some, found)}: T_eff {_mean([v.T_eff_ms for v in some])} against '
             f'{_named([v.counted for v in some])}; {_fps([v.T_cyc_ms for v in some])} frames/s for each client, '
             f'without a split at most {_fps([v.least_T_cyc_ms for v in some])}'
             for what, some in groups.items() if some]
    sent = [v for v in found if v.not_counted is not None and not v.pays_anyway]
    if sent:
        lines.append(f'not counted, because it sends the image: T_eff of {_named([v.not_counted for v in sent])}'
                     f'{_how_many(sent, found)}; with LAMBDA_MIN=0 it would count')
    return lines


def _how_many(some: Sequence[Verdict], found: Sequence[Verdict]) -> str:
    return '' if len(found) == 1 else f' in {len(some)} of {len(found)} domains'


def _fps(cycles_ms: Sequence[float]) -> str:
    """Their mean rate."""
    return f'{sum(1000 / ms for ms in cycles_ms) / len(cycles_ms):.1f}'


def _mean(ms: Sequence[float]) -> str:
    return f'{sum(ms) / len(ms):.3f} ms'


def _named(ways: Sequence[OneTier]) -> str:
    """Their mean T_eff, and what they are."""
    return f'{_mean([way.times.T_eff_ms for way in ways])} ({" or ".join(sorted({way.words for way in ways}))})'
