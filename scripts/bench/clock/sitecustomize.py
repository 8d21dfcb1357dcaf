"""`time.perf_counter` stands still while the process is stopped: Python imports this first where `turns.py` says so."""

import mmap
import os
import struct
import time

with open(os.environ["TURNS_STOPPED"], "rb") as file:  # noqa: PTH123
    stopped = mmap.mmap(file.fileno(), 8, access=mmap.ACCESS_READ)
running = time.perf_counter

time.perf_counter = lambda: running() - struct.unpack("d", stopped)[0]
