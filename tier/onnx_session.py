"""The engine `onnxruntime`: a graph (tier/onnx_graph.py) run on the CPU."""
from __future__ import annotations

from types import ModuleType
from typing import List

import torch

import cli


def onnxruntime_package() -> ModuleType:
    """The package `onnxruntime`. Raises `UserError` where it is missing."""
    return cli.optional('onnxruntime', 'onnx onnxruntime', 'ONNX graphs')


class Session:
    """A graph, ready to run: tensors in, tensors out, in the graph's order."""

    def __init__(self, graph: bytes, threads: int = 0, profile: str = '') -> None:
        """`threads`: 0 means those of PyTorch. `profile`: the beginning of the path of a profile to write."""
        package = onnxruntime_package()
        options = package.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.inter_op_num_threads = 1
        if profile:
            options.enable_profiling, options.profile_file_prefix = True, profile
        self._session = package.InferenceSession(graph, options, providers=['CPUExecutionProvider'])
        self.inputs = [value.name for value in self._session.get_inputs()]

    def run(self, *tensors: torch.Tensor) -> List[torch.Tensor]:
        """All outputs for these inputs."""
        given = {name: tensor.numpy() for name, tensor in zip(self.inputs, tensors)}
        return [torch.from_numpy(array) for array in self._session.run(None, given)]

    def end_profile(self) -> str:
        """The path of the profile, which ends here."""
        return self._session.end_profiling()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The only output for the only input."""
        return self.run(x)[0]
