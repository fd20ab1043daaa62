"""A result of step 3 as files that other programs run: head and tail as ONNX or TorchScript (docs/deployment.md).

chosen: the point of a result that is exported, and its two parts. boundary: what crosses between them. as_onnx,
as_torchscript: a part as the bytes of a file. check: those bytes against PyTorch on real images. int8: ONNX parts
quantised after training. files: the folder that is written, and its manifest. run: the command, from result to folder.
"""
