"""Ending processes: only ours, and surely."""
import os
import subprocess
import sys

from cluster import processes
from cluster.processes import Process


def child(code):
    started = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    started.stdout.read(1)
    return started, processes.running(started.pid, "child")


def test_a_process_that_ignores_sigterm_is_killed():
    started, process = child("import signal,time; signal.signal(15, signal.SIG_IGN); print('x', flush=True); time.sleep(60)")
    processes.stop([process], 0.2)
    assert started.wait(5) == -9
    assert not process.alive()


def test_a_process_that_has_the_pid_of_an_older_one_is_left_alone():
    started, process = child("import time; print('x', flush=True); time.sleep(60)")
    older = Process("older", process.pid, process.began - 1)
    assert not older.alive()
    processes.kill([older])
    assert started.poll() is None
    processes.kill([process])
    started.wait(5)


def test_a_zombie_is_not_alive():
    started, process = child("print('x', flush=True)")
    os.waitid(os.P_PID, started.pid, os.WEXITED | os.WNOWAIT)
    assert processes.running(started.pid) is None
    started.wait()


def test_a_line_that_was_cut_short_hides_no_other_process(tmp_path):
    started, process = child("import time; print('x', flush=True); time.sleep(60)")
    (tmp_path / "pids").write_text(f'{{"name": "a", "pid": {process.pid}, "began": {process.began}}}\n{{"name": "b", "pi')
    assert [one.pid for one in processes.Registry(tmp_path).all()] == [process.pid]
    processes.kill([process])
    started.wait(5)
