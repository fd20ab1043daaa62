"""Files of the pipeline: where they lie, how they are read and written, and when they are made again.

kinds: each kind of file, the command that makes it, what it is made from. documents: reading with every field
checked. writing: replacing a file in one step. fingerprints: is an output still current?
"""
