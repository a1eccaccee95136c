"""Mounted as sitecustomize.py: notes in /seen/events what Python opens, unpickles and asks of the network."""

import os
import sys

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")
OWN = "/tokens.bin"  # Lorry's token cache: plain numbers
NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.sendmsg")
events = os.open("/seen/events", os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def note(event, arguments):
    """Write a line for an event that a run must not cause; and for one that it must, to show that the hook works."""
    name = os.fsdecode(arguments[0]) if event == "open" and isinstance(arguments[0], (str, bytes)) else ""
    if event == "pickle.find_class" or event in NETWORK or (name.endswith(PICKLES) and not name.endswith(OWN)):
        os.write(events, f"{event} {arguments!r}\n".encode())
    elif name.endswith("config.json"):
        os.write(events, f"watched {name}\n".encode())


sys.addaudithook(note)
