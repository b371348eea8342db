"""download_celeba.py where all goes well, is there already, or is killed; the server is on 127.0.0.1."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import gdown
import pytest
import torch
from downloads import BODY, IMAGES, LIST, ROOT, ROWS, TINY, assert_installed, picture, start, tree, zipped

import download_celeba as celeba
from magnet.data.image_dataset import load_faces

pytest_plugins = ["downloads"]

SAMPLE = ROOT.parent / "shared" / "celeba" / "full_size_sample.zip"


# The download


def test_download_and_second_run(mirror, run, data_dir, monkeypatch):
    code, said = run("--url", mirror.url)
    assert code == 0 and "6 images" in said and "non-commercial research only" in said
    assert_installed(data_dir)
    monkeypatch.setattr(celeba, "locked", lambda *_, **__: pytest.fail("a read-only folder has no lock"))
    code, said = run("--url", mirror.url)
    assert code == 0 and said.startswith("Nothing to do") and len(mirror.ranges) == 1


@pytest.mark.parametrize("gpu", [True, False])
def test_the_next_command_fits_the_machine(run, hand_made, data_dir, monkeypatch, gpu):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    _, said = run("--from-zip", hand_made)
    preset = "" if gpu else " --preset cpu"
    assert said.splitlines()[-1] == f'Next: python3 train.py{preset} --data "{data_dir}"'


def test_kept_archive_is_used_again(mirror, run, data_dir):
    assert run("--url", mirror.url, "--keep-zip")[0] == 0
    assert Path(f"{data_dir}.download", "img_align_celeba.zip").read_bytes() == BODY
    shutil.rmtree(data_dir)
    assert run("--url", mirror.url, "--keep-zip")[0] == 0 and len(mirror.ranges) == 1
    assert run("--url", mirror.url)[0] == 0  # nothing to do but to delete it, as after a kill
    assert_installed(data_dir)


ENDS = {
    "quota": (gdown.FileURLRetrievalError("Too many users"), 1, f"quota. Open {TINY.url} in a browser, save the file"),
    "Ctrl-C": (KeyboardInterrupt(), 130, "Stopped; the same command goes on from here"),
}


@pytest.mark.parametrize(("error", "code", "said"), ENDS.values(), ids=ENDS.keys())
def test_drive_download_that_ends_early(run, data_dir, monkeypatch, error, code, said):
    def download(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(gdown, "download", download)
    exit_code, text = run()
    assert exit_code == code and said in text and ("--from-zip" in text) == (code == 1)
    assert tree(data_dir.parent) == {}


MISTAKES = {
    "no such file": ["--from-zip", "missing.zip"],
    "no web address": ["--url", "ftp://example.org/celeba.zip"],
    "two sources": ["--url", "https://example.org/celeba.zip", "--from-zip", __file__],
}


@pytest.mark.parametrize("options", MISTAKES.values(), ids=MISTAKES.keys())
def test_wrong_arguments(run, options, data_dir):
    with pytest.raises(SystemExit, match="2"):
        run(*options)
    assert not data_dir.exists()


# What is there already, and who else is there


@pytest.mark.parametrize("name", ["img_align_celeba/mine.jpg", "img_align_celeba/img_align_celeba/1.jpg", "mine.jpg"])
def test_images_of_somebody_else_stay(run, hand_made, data_dir, name):
    (data_dir / name).parent.mkdir(parents=True)
    (data_dir / name).write_bytes(b"mine")
    code, error = run("--from-zip", hand_made)
    assert code == 1 and str(data_dir) in error and "move them away" in error
    assert tree(data_dir) == {name: b"mine"}


ELSEWHERE = {  # archives as other people made them
    "nested": {"celeba/img_align_celeba/000001.jpg": picture(24), "celeba/list_attr_celeba.csv": b"a,b"},
    "kaggle": {"img_align_celeba/img_align_celeba/000001.jpg": picture(24), "list_eval_partition.csv": b"a,b"},
    "other names": {f"photo {i}.jpg": picture(24) for i in range(3)},
    "fewer images": dict(list(IMAGES.items())[:3]),
}


@pytest.mark.parametrize("flags", [[], ["--any-archive"]])
@pytest.mark.parametrize("kind", ELSEWHERE)
def test_an_archive_from_elsewhere_is_for_train_py_as_it_is(run, tmp_path, monkeypatch, kind, flags):
    path = tmp_path / "archive from elsewhere.zip"
    path.write_bytes(zipped(*ELSEWHERE[kind].items()))
    monkeypatch.chdir(tmp_path)
    code, said = run("--from-zip", path, *flags)
    if code == 0:
        assert (kind, flags) == ("fewer images", ["--any-archive"])
        return
    assert code == 1 and "--from-zip" not in said and "--any-archive" not in said
    program, *words = shlex.split(re.search("python3 (train.py .*)", said)[1])
    assert program == "train.py" and len(load_faces(words[1], 32, cache_dir=tmp_path / "cache")) >= 1


def test_lost_image_is_noticed(run, hand_made, data_dir):
    assert run("--from-zip", hand_made)[0] == 0
    (data_dir / "img_align_celeba" / "000003.jpg").unlink()
    code, error = run("--from-zip", hand_made)
    assert code == 1 and "part of a set" in error
    assert len(tree(data_dir)) == 6  # five images and the marker


STOP = "print('now', flush=True); time.sleep(60)"
KILLED_WHILE = {
    "unpacking": f"def copy(source, target): target.write(b'half'); target.flush(); {STOP}\n"
    "celeba.shutil.copyfileobj = copy",
    "renaming": f"def replace(source, target, rename=os.replace): rename(source, target); {STOP}\nos.replace = replace",
}


@pytest.mark.parametrize("patch", KILLED_WHILE.values(), ids=KILLED_WHILE.keys())
def test_kill_and_rerun(run, hand_made, data_dir, patch):
    with start(data_dir, "--from-zip", hand_made, patch=patch) as process:
        assert process.stdout.readline() == "now\n"
        process.kill()
    assert not (data_dir / "img_align_celeba").exists()
    assert list(Path(f"{data_dir}.download").glob("*.tmp-*"))
    assert run("--from-zip", hand_made)[0] == 0
    assert_installed(data_dir)


# The list of attributes


@pytest.mark.parametrize("source", ["--url", "--from-file"])
def test_attributes_lie_beside_the_images(mirror, run, hand_made, data_dir, source):
    assert run("--from-zip", hand_made)[0] == 0
    images = tree(data_dir)
    mirror.body = ROWS
    hand_made.write_bytes(ROWS)
    options = ["--attributes", source, mirror.url if source == "--url" else hand_made]
    code, said = run(*options, archive=LIST)
    assert code == 0 and str(data_dir / "list_attr_celeba.txt") in said
    assert tree(data_dir) == images | {"list_attr_celeba.txt": ROWS}
    assert hand_made.read_bytes() == ROWS and not Path(f"{data_dir}.download").exists()
    code, said = run(*options, archive=LIST)
    assert code == 0 and said.startswith("Nothing to do") and len(mirror.ranges) == (source == "--url")


def test_wrong_list_is_set_aside(mirror, run, data_dir):
    mirror.body = b"<title>Quota exceeded</title>"
    code, error = run("--attributes", "--url", mirror.url, archive=LIST)
    assert code == 1 and "not list_attr_celeba.txt but perhaps a web page (Quota exceeded)" in error
    assert f'--data-dir "{data_dir}" --attributes --from-file PATH' in error
    assert tree(data_dir.parent) == {"celeba.download/list_attr_celeba.txt.bad": mirror.body}


def test_wrong_list_in_place_is_named_and_stays(run, data_dir):
    data_dir.mkdir(parents=True)
    (data_dir / "list_attr_celeba.txt").write_bytes(ROWS[:-9])
    code, error = run("--attributes", archive=LIST)
    assert code == 1 and "list_attr_celeba.txt is not the right file" in error and "move it away" in error
    assert tree(data_dir) == {"list_attr_celeba.txt": ROWS[:-9]}


def test_torchvision_knows_both_archives():
    images, attributes = celeba.find_archive(attributes=False), celeba.find_archive(attributes=True)
    assert "/0B7EVK8r0v71pZjFTYXZWM3FlRnM/" in images.url and images.md5 == "00d2c5bc6d35e252742224ab0c1e8fcb"
    assert "/0B7EVK8r0v71pblRyaVFSWGxPY0U/" in attributes.url and attributes.md5 == "75e246fa4810816ffd6ee81facbd244c"


def test_import_does_no_work(tmp_path):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import download_celeba; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not SAMPLE.exists(), reason=f"no real faces at {SAMPLE}")
def test_real_faces(run, data_dir):
    assert run("--from-zip", SAMPLE, "--any-archive")[0] == 0
    assert len(list((data_dir / "img_align_celeba").iterdir())) == 505
    assert SAMPLE.exists()
