"""One lab at a time on a machine."""
import pytest

from cluster import cgroups, lock


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "FOLDER", tmp_path)
    monkeypatch.setattr(lock, "OWNER", tmp_path / "owner.json")


def test_a_second_driver_is_refused_and_told_which_process_is_the_first():
    import os

    with lock.driving():
        with pytest.raises(lock.Taken, match=str(os.getpid())):
            with lock.driving():
                pass
    with lock.driving():
        pass


def test_a_lab_whose_driver_was_killed_before_it_was_up_is_abandoned(tmp_path, monkeypatch):
    monkeypatch.setattr(cgroups, "daemons", lambda: ["etcd, still running"])
    lock.take(tmp_path)
    assert not lock.abandoned(lock.owner())
    assert lock.abandoned({**lock.owner(), "began": 1})


def test_a_lab_that_is_up_needs_no_driver(tmp_path, monkeypatch):
    lock.take(tmp_path)
    lock.finished()
    orphan = {**lock.owner(), "began": 1}
    monkeypatch.setattr(cgroups, "daemons", lambda: ["one"])
    assert not lock.abandoned(orphan)
    monkeypatch.setattr(cgroups, "daemons", lambda: [])
    assert lock.abandoned(orphan)


def test_after_the_end_there_is_no_owner(tmp_path):
    lock.take(tmp_path)
    lock.release()
    lock.release()
    assert lock.owner() is None
