"""Base networks from images: training that leaves a network which later does without many of its branches.

branches: a network run with some of its branches, and BatchNorm statistics. augmentation: what training makes of an
image. photographs: the recipe for photographs, epoch by epoch, resumable. progress: the file that a killed training
goes on from. (The recipe of the built-in digits: steps/base_model_training.py.)
"""
