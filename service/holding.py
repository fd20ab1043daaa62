"""Which networks a device holds ready: a switch to one of them loads nothing, so that no frame waits for it.

Weights travel unit by unit under their hash and α folds into them, so other networks of the same base weights cost a
device memory, not transfers.
"""
from __future__ import annotations

from typing import Dict, List, Mapping, Sequence

from config import Settings
from costs.memory import classifier_memory, weight_bytes
from network.gammas import fused_gamma
from network.outline import outline_for
from service.entries import Entry, ServedNetwork

MIB = 1 << 20


def folded_mb(network: ServedNetwork, tier: str, settings: Settings) -> float:
    """Memory of a whole network's folded weights on a tier, MB of 2^20 bytes."""
    outline = outline_for(settings)
    blocks = sum(map(weight_bytes, outline.blocks, network.gamma[tier]))
    ends = weight_bytes(outline.stem, fused_gamma((True,) * outline.stem.n_branches))
    ends += classifier_memory(*outline.classifier).weights
    return (blocks + ends) / MIB


def held(entry: Entry, others: Sequence[Entry], size_mb: Mapping[str, float], limit_mb: float, most: int,
         ) -> List[ServedNetwork]:
    """The networks of a device that may give them `limit_mb`, at most so many, the likeliest first: that which it
    begins with, whatever its size, those that its entry may change to, and what other entries begin with.
    `size_mb`: of each network, by name."""
    found: Dict[str, ServedNetwork] = {entry.network.name: entry.network}
    left_mb = limit_mb - size_mb[entry.network.name]
    for network in (*entry.others, *(other.network for other in others)):
        if network.name not in found and len(found) < most and size_mb[network.name] <= left_mb:
            found[network.name] = network
            left_mb -= size_mb[network.name]
    return list(found.values())
