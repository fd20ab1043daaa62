"""The data domains: where images come from and which belong where.

source_base: what an image source is. image_sources: the data sets; torchvision_sources: those that torchvision reads;
folders: trees of image folders. trained_images: the images that the weights have seen. partition: the domains' images,
with label skew. image_sets: images in memory.
"""
