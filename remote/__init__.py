"""The client as the server sees it.

client: requests that survive broken connections. replies: what a client may answer. link: its bandwidth and round trip.
split_network: a network whose first or last part runs there. streaming: a stream of frames. session: a connected
client, and the table measured through it.
"""
