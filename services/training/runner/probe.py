"""A child's answer to whether PyTorch and bitsandbytes can use the GPU: asked in a process of its own, since to ask is to take hold of it."""

import importlib
import json
import socket


def run(sock: socket.socket, spec: object) -> None:
    import torch

    found = {"cuda": torch.cuda.is_available(), "bnb": False, "torch_cuda": torch.version.cuda}
    if found["cuda"]:
        try:
            importlib.import_module("bitsandbytes")
            found["bnb"] = True
        except (ImportError, OSError, RuntimeError):
            found["bnb"] = False
    sock.sendall(json.dumps(found).encode())
    sock.close()
