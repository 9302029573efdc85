"""Starts processes that find each other on loopback; tests load it with `runpy`."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def spawn(command, port, process_id):
    """One process of two, with a bare environment beside what names the others."""
    unwanted = ("JAX_", "SLURM_", "OMPI_", "TPU_")
    environ = {k: v for k, v in os.environ.items() if not k.startswith(unwanted)}
    environ |= {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        "JAXLAB_COORDINATOR": f"127.0.0.1:{port}",
        "JAXLAB_NUM_PROCESSES": "2",
        "JAXLAB_PROCESS_ID": str(process_id),
    }
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
