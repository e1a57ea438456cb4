"""A process that forks while its threads make and drop large tensors: no child waits for a lock that nobody holds."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("crossent.impl.native", reason="the compiled kernels are not installed")

CODE = """
import os, threading, time, torch
from crossent.impl import native

def make():
    return native.new((1 << 18,), None, torch.float32)

stop, torch_threads = False, torch.set_num_threads(1)
def churn():
    while not stop:
        make()

threads = [threading.Thread(target=churn) for _ in range(3)]
for thread in threads:
    thread.start()
end, forks, hung = time.monotonic() + 4, 0, 0
while time.monotonic() < end and not hung:
    child, forks = os.fork(), forks + 1
    if child == 0:
        for _ in range(6):
            make()
        os._exit(0)
    patience = time.monotonic() + 20
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        if time.monotonic() > patience:
            hung += 1
            os.kill(child, 9)
            os.waitpid(child, 0)
            break
        time.sleep(0.0005)
stop = True
print(forks, hung)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_no_child_waits_for_ever():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False, timeout=120)
    forks, hung = map(int, done.stdout.split())
    assert forks > 5
    assert hung == 0, f"{hung} of {forks} children"
