"""Run a split that export_split.py wrote (--format onnx), over a plain socket. Needs NumPy and onnxruntime, and no file
of the project: copy this one and the folder to both machines.

    server$ python3 run_exported.py deployed --serve 7000                                  # the tail
    device$ python3 run_exported.py deployed --connect 192.168.1.10:7000                   # the head; check_images.npz
    device$ python3 run_exported.py deployed --connect 192.168.1.10:7000 --images my.npy   # uint8 [n, 3, S, S]

The device prints a line an image: its number, class and name. A frame is the raw bytes of the tensors that
manifest.json lists under `sent`, in that order; the answer is the class as four bytes.
"""
import argparse
import json
import os
import socket

import numpy as np
import onnxruntime


def load(folder, part):
    """A function from a list of arrays to a list of arrays; a part without a file passes on what it gets."""
    if manifest['files'][part] is None:
        return lambda arrays: arrays
    session = onnxruntime.InferenceSession(os.path.join(folder, manifest['files'][part]['file']),
                                           providers=onnxruntime.get_available_providers())
    names = [value.name for value in session.get_inputs()]
    return lambda arrays: session.run(None, dict(zip(names, arrays)))


def receive(connection, n_bytes):
    """Exactly so many bytes; b'' when the other end has closed."""
    data = bytearray()
    while len(data) < n_bytes:
        piece = connection.recv(n_bytes - len(data))
        if not piece:
            return b''
        data += piece
    return bytes(data)


def serve(port, tail):
    """Answer the frames of one device after the other."""
    specs = [(np.dtype(one['dtype']), one['shape'][1:]) for one in manifest['sent']]
    sizes = [dtype.itemsize * int(np.prod(shape)) for dtype, shape in specs]
    with socket.create_server(('', port)) as listener:
        print(f'listening on port {listener.getsockname()[1]}', flush=True)
        while True:
            connection = listener.accept()[0]
            with connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                while True:
                    frame = receive(connection, sum(sizes))
                    if not frame:
                        break
                    pieces = np.split(np.frombuffer(frame, np.uint8), np.cumsum(sizes)[:-1])
                    arrays = [piece.view(dtype).reshape(1, *shape) for piece, (dtype, shape) in zip(pieces, specs)]
                    connection.sendall(np.int32(tail(arrays)[0].argmax()).tobytes())


def run_device(address, head, images):
    """Send every image through the head and the socket."""
    host, port = address.rsplit(':', 1)
    with socket.create_connection((host, int(port))) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number, image in enumerate(images):
            connection.sendall(b''.join(np.ascontiguousarray(array).tobytes() for array in head([image[None]])))
            label = int(np.frombuffer(receive(connection, 4), np.int32)[0])
            print(number, label, *manifest['class_names'][label:label + 1], flush=True)


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument('folder')
parser.add_argument('--serve', metavar='PORT', type=int)
parser.add_argument('--connect', metavar='HOST:PORT')
parser.add_argument('--images', metavar='FILE', help='.npy (default: the images that the files were checked on)')
if __name__ == '__main__':
    args = parser.parse_args()
    with open(os.path.join(args.folder, 'manifest.json'), encoding='utf-8') as stream:
        manifest = json.load(stream)
    if args.serve is not None:
        serve(args.serve, load(args.folder, 'tail'))
    loaded = np.load(args.images or os.path.join(args.folder, 'check_images.npz'))
    run_device(args.connect, load(args.folder, 'head'), loaded if args.images else loaded['images'])
