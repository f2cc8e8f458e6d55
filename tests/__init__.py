"""The tests run in two processes on two cores, so that libraries get one thread each."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # read when they load
