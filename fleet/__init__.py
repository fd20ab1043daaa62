"""A fleet: many clients, a few servers, who does what.

What is planned. links: how fast a client's link is, now and over time. fleet_file: clients and servers as people write
them down. points: what a client may run, and what that takes of it, its link and its server. problem: all of it as
arrays.

How. programme: linear and integer programmes (SciPy). rounding: whole clients on single servers. choices: what clients
may take at given rates. objectives: the four objectives, each with a bound that no plan can beat. waiting: how long
frames wait at a loaded server. plan, plan_file: a plan, and how it is written and read back. planning: from a fleet's
file to a plan, or to the client that asks for too much.

While it runs. decisions: admission, shedding, switching, fallback, a failed server, as pure functions. simulation: a
plan played frame by frame. outcome: what came of that, held against the plan.
"""
