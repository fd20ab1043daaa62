"""The service: many clients stream frames to one server, each through a network of its own.

fair_queue: whose frame is next, and which frames share a batch. batches: how many frames pay in one batch, learned
while serving. arena: memory that the front and its workers share. entries: what may be served, read from the result
files. holding: which networks a device holds ready. tails: what a worker does. workers: worker processes, and what
the front sees of any worker. ray_workers: workers on a Ray cluster. admission: who is let in, and whose share is how
large. adapting: is another configuration better now? shift, looks: which domain do frames look like? client: one
client at the server's end. dispatch: frames on their way through the workers. server: all clients. figures, watching:
what is known, and where it is shown. running: all of it together.
"""
