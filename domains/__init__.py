"""The data domains: where images come from and which belong where.

source_base: what an image source is. image_sources: the data sets; torchvision_sources: those that torchvision reads;
folders: trees of image folders. loading: many images at once. trained_images: the images that the weights have seen.
division: how images are divided. partition: the images of every subset and domain, and their file. image_formats: PNG
and JPEG. image_sets: images in memory.
"""
