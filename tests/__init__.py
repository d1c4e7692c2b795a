"""Tests, which mirror the packages. `pytest -n 2 --dist loadfile` shares the files out between two processes."""

import os

if worker := os.environ.get("PYTEST_XDIST_WORKER"):  # "gw0", "gw1", …
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: each process, and what it starts, gets one core
    os.environ["GRADIO_SERVER_PORT"] = str(7860 + 100 * int(worker[2:]))  # where Gradio looks for a free port
