"""Files of the pipeline: where they lie, how they are read and written, and when they are made again.

kinds: each kind of file, the command that makes it, what it is made from. documents: reading with every field
checked. fingerprints: is an output still current? writing: replacing a file in one step. provenance: is a file of these
settings and inputs? measured: what was measured on a device stays.
"""
