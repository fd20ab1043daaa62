"""The data domains: where images come from and which belong where.

image_sources: the data sets. partition: the domains' images, with label skew. image_sets: images in memory.
"""
