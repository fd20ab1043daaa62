"""Many domains at once, with the same results whatever runs them.

jobs: the work on one domain. processes: worker processes of this machine. parcel: what travels to a machine that shares
no files. ray_cluster: a Ray cluster. many_domains: the flags that choose, and the loop over domains.
"""
