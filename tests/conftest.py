"""Tests import the modules at the top of the repository. No test has a deadline: machines differ."""
import os
import sys

import torch
from hypothesis import settings

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
torch.set_num_threads(1)  # the models here are too small to gain by more
settings.register_profile('repository', deadline=None)
settings.load_profile('repository')
