"""Several downloads into one folder: one works, the others wait, and there is one good result."""

import pytest
from downloads import assert_installed, start

pytest_plugins = ["downloads"]


def test_two_at_once(mirror, data_dir):
    mirror.gate.clear()
    with start(data_dir, "--url", mirror.url) as first:
        assert mirror.called.wait(60)
        with start(data_dir, "--url", mirror.url) as second:
            assert second.stdout.readline().startswith("Waiting")
            mirror.gate.set()
            assert "6 images" in first.communicate(timeout=60)[0]
            assert "Nothing to do" in second.communicate(timeout=60)[0]
    assert (first.returncode, second.returncode, len(mirror.ranges)) == (0, 0, 1)
    assert_installed(data_dir)


def test_one_that_waits_takes_over_from_one_that_is_killed(mirror, data_dir):
    mirror.gate.clear()
    with start(data_dir, "--url", mirror.url) as first:
        assert mirror.called.wait(60)
        with start(data_dir, "--url", mirror.url) as second:
            assert second.stdout.readline().startswith("Waiting")
            first.kill()
            first.wait()
            mirror.gate.set()
            assert "6 images" in second.communicate(timeout=60)[0]
    assert second.returncode == 0
    assert_installed(data_dir)


@pytest.mark.long
def test_eight_at_once_fetch_the_archive_once(mirror, data_dir):
    processes = [start(data_dir, "--url", mirror.url) for _ in range(8)]
    output = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 8
    assert sum("6 images are in" in text for text in output) == len(mirror.ranges) == 1
    assert sum("Nothing to do" in text for text in output) == 7
    assert_installed(data_dir)
