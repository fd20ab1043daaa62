"""What crosses the link between client and server.

frames: the bytes of one message (docs/protocol.md). integrity: what a message is checked by. handshake: proofs and
session keys. certificates: TLS's settings from files. tls: TLS of one connection. transport: bytes over one socket.
connection: messages over it. compression: zlib, and others where their packages are. formats: what a feature map may be
sent as. codec: feature maps as bytes. stream: frames flow through head, link and tail at once. blobs: received weights
and images on disk.
"""
