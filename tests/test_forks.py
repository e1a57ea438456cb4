"""A process that forks while another thread holds the lock of the recycled memory: no child waits for it for ever."""

import os
import shutil
import subprocess
import sys

import pytest

pytest.importorskip("crossent.impl.native", reason="the compiled kernels are not installed")

# The lock is held for some nanoseconds. This, loaded before everything else, lets the kernels hold theirs as long as is asked for.
SLOW_LOCKS = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

int microseconds = 0;

int pthread_mutex_lock(pthread_mutex_t* mutex) {
    static int (*lock)(pthread_mutex_t*);
    Dl_info caller;
    if (!lock) lock = (int (*)(pthread_mutex_t*))dlsym(RTLD_NEXT, "pthread_mutex_lock");
    int result = lock(mutex);
    if (microseconds && dladdr(__builtin_return_address(0), &caller) && strstr(caller.dli_fname, "_native"))
        usleep(microseconds);
    return result;
}
"""
# A tensor is dropped without the GIL, as torch drops one: by the deleter of its DLPack struct, which lies behind 56 bytes.
CODE = """
import ctypes, os, sys, threading, time
from crossent import _native

get, name, held = ctypes.pythonapi.PyCapsule_GetPointer, ctypes.pythonapi.PyCapsule_SetName, ctypes.CDLL(sys.argv[1])
get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
name.argtypes = [ctypes.py_object, ctypes.c_char_p]
microseconds = ctypes.c_int.in_dll(held, "microseconds")

def make():
    return _native.recycled((4,), (1,), 2, 32)

def drop(capsule):
    managed = get(capsule, b"dltensor")
    name(capsule, b"used_dltensor")
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(ctypes.c_void_p.from_address(managed + 56).value)(managed)

capsule = make()
microseconds.value = 300_000
holder = threading.Thread(target=drop, args=(capsule,))
holder.start()
time.sleep(0.1)
assert holder.is_alive(), "the lock was not held"
child = os.fork()
microseconds.value = 0
if child == 0:
    make()
    os._exit(0)
patience = time.monotonic() + 10
while os.waitpid(child, os.WNOHANG)[0] == 0:
    if time.monotonic() > patience:
        os.kill(child, 9)
        sys.exit("the child waits for ever")
    time.sleep(0.01)
holder.join()
make()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is recycled on Linux only")
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_no_child_waits_for_ever(tmp_path):
    library = tmp_path / "slow_locks.so"
    compiled = ["cc", "-shared", "-fPIC", "-O1", "-x", "c", "-o", str(library), "-", "-ldl"]
    subprocess.run(compiled, input=SLOW_LOCKS, text=True, check=True)
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(library)],
        capture_output=True, text=True, check=False, timeout=120, env=os.environ | {"LD_PRELOAD": str(library)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
