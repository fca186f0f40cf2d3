"""What only a machine with a card can tell, in some six minutes: `make gpu-check`.

Each section runs in a process of its own under a time limit, so that one that fails takes no other with it.
"""
