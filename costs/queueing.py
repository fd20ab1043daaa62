"""How long a frame waits where several clients share one resource: the server, or the link."""
from __future__ import annotations

import numpy as np

NEGLIGIBLE = 1e-12  # of the service time


def mean_wait_ms(service_ms: np.ndarray, period_ms: np.ndarray, clients: int) -> np.ndarray:
    """Mean wait, ms, of the frames of clients that each send one every `period_ms`, not in step with each other, to a
    resource that takes `service_ms` for each and serves them in the order of arrival; arrays, or scalars.

    This is the queue N·D/D/1 (Eckberg, IEEE Transactions on Communications, 1979) with uniform phases. For a service
    time s and a period T >= N·s the mean wait is s/2 · Σ_k (N-1)(N-2)...(N-k) · (s/T)^k, as the mean displacement of
    linear probing (Knuth, The Art of Computer Programming, volume 3, section 6.4), with arrivals at any time instead of
    whole ones. It is finite where the resource is always busy (T = N·s: about s·sqrt(πN/8)); with N → ∞ at the same
    load it is the wait of M/D/1. It falls by less than T grows, so T + wait is least where T is.
    """
    share = np.divide(service_ms, period_ms, out=np.zeros(np.broadcast(service_ms, period_ms).shape),
                      where=np.asarray(period_ms) > 0)
    product, total = np.ones(share.shape), np.zeros(share.shape)
    for others in range(clients - 1, 0, -1):
        product = product * others * share
        total = total + product
        if product.max(initial=0.0) < NEGLIGIBLE:
            break
    return service_ms / 2 * total
