"""What a tier runs, on the server or on the device.

devices: the device that computes. onnx_graph: a part of the network as an ONNX graph. rounding, onnx_int8: the same in
int8. onnx_session: the engine onnxruntime. part: a contiguous part of the network. block_timing: the time of every
block under every γ; onnx_timing: in onnxruntime. roofline: peak rate and bandwidth. tasks: what the client does when
the server asks. worker: its main loop. sources: where a camera's frames come from. feed: a connection to a service.
camera: the client of a service.
"""
