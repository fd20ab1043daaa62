"""What a configuration costs: times, work, memory, limits. No PyTorch.

cost_model: the table of measured times, and the times of a configuration. correction: what sums of its entries miss.
queueing: the wait for other clients. energy: millijoules a frame. power_sensors: watts, read from this machine.
goal: J, which weighs time against accuracy. verdict: does splitting pay? work: FLOP and bytes. wire_costs: of wire
formats. importance: |α| per
FLOP. memory: what a tier must hold. device_profiles: simulated clients. checks: settings, before any work. limits:
bounds on times, memory, bytes and energy. knapsack: the fastest γ within a memory bound.
"""
