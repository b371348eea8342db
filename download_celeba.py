"""Download CelebA: check the official archive of aligned faces and unpack it to data/celeba/img_align_celeba/.

With --attributes, download the official list of the faces' 40 attributes to data/celeba/list_attr_celeba.txt instead.

    python3 download_celeba.py                                          # 1.4 GB from Google Drive
    python3 download_celeba.py --from-zip img_align_celeba.zip          # an archive that you downloaded by hand
    python3 download_celeba.py --url https://example.org/celeba.zip     # a mirror
    python3 download_celeba.py --attributes                             # 27 MB; also with --url or --from-file

You can stop it at any time: the same command resumes the download, or unpacks afresh. Work in progress stays in
data/celeba.download/. One rename makes img_align_celeba/ appear when every image of it is there.

Exit codes: 0 done or nothing to do, 1 failure (network, archive, disk), 2 wrong arguments, 130 stopped by Ctrl-C.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from magnet.data.archives import (
    FOLDER,
    MAX_UNPACKED,
    Archive,
    BadArchive,
    UnofficialArchive,
    extract_images,
    require_space,
    verify,
)
from magnet.support.errors import UserError, one_line
from magnet.support.locks import locked
from magnet.support.output import as_program
from magnet.support.paths import command_of, user_path

HOMEPAGE = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
DATA_DIR = Path("data/celeba")
MARKER = ".complete.json"
TIMEOUT = (10, 60)  # seconds to connect, and between two bytes of the answer
STALL_SECONDS = 600  # for half a megabyte: a server that keeps to the TIMEOUT can still take for ever
RETRIES = 5  # Drive cuts downloads that take an hour


@as_program
def main(argv: list[str] | None = None, archive: Archive | None = None) -> int:
    args = parse_arguments(argv)
    archive = archive or find_archive(args.attributes)
    if args.url:
        archive = dataclasses.replace(archive, url=args.url)
    if args.any_archive:
        archive = dataclasses.replace(archive, size=None, md5=None, images=None)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # it prints a traceback for a header that it cannot read
    try:
        install(archive, args)
    except KeyboardInterrupt:
        print("\nStopped; the same command goes on from here.", file=sys.stderr)
        return 130
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {one_line(str(error))}; fix that and run the same command again", file=sys.stderr)
        return 1
    return 0


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Download, check and unpack the CelebA faces.", allow_abbrev=False)
    parser.add_argument(
        "--data-dir", type=user_path, default=DATA_DIR, help="folder for the images (default: %(default)s)"
    )
    parser.add_argument("--attributes", action="store_true", help="download the list of attributes, not the images")
    source = parser.add_mutually_exclusive_group()
    about = "use this archive or list, and leave it where it is"
    source.add_argument("--from-zip", "--from-file", type=user_path, metavar="PATH", help=about)
    source.add_argument("--url", help="download from a mirror, not from Google Drive")
    parser.add_argument("--any-archive", action="store_true", help="accept any size and md5, but decode every image")
    parser.add_argument("--keep-zip", action="store_true", help="do not delete the downloaded archive when all is done")
    args = parser.parse_args(argv)
    if args.from_zip and not args.from_zip.is_file():
        parser.error(f"there is no file {args.from_zip}")
    if args.url and not args.url.startswith(("http://", "https://")):
        parser.error(f"--url: {args.url} must start with http:// or https://")
    return args


def find_archive(attributes: bool) -> Archive:
    """Describes the archive of images, or the list of attributes. torchvision has their Google Drive ids and MD5s."""
    from torchvision.datasets import CelebA  # here: its import takes seconds, and --help answers at once

    files = {name: (f"https://drive.google.com/file/d/{drive}/view", md5) for drive, md5, name in CelebA.file_list}
    if not attributes:
        url, md5 = files["img_align_celeba.zip"]
        return Archive(f"{url}?resourcekey=0-dYn9z10tMJOBAkviAcfdyQ", 1_443_490_838, md5, images=202_599)
    url, md5 = files["list_attr_celeba.txt"]
    return Archive(
        url, 26_721_026, md5, images=None, name="list_attr_celeba.txt",
        head=rb"\d+\s",  # the number of its rows
        by_hand="--attributes --from-file",
    )  # fmt: skip


def install(archive: Archive, args: argparse.Namespace) -> None:
    """Installs the images, or the list of attributes, unless they are there already. Raises UserError and OSError."""
    data_dir, target = args.data_dir, args.data_dir / archive.name
    is_done = partial(report_if_valid, target, archive) if args.attributes else partial(report_if_complete, data_dir)
    if not locate_work_folder(data_dir).exists() and is_done():  # before a lock, which a read-only disk refuses
        return
    with open_work_folder(data_dir) as work:
        if is_done():  # by the process that we waited for, or by one killed after its last rename
            if not args.keep_zip:
                locate_archive(archive, work).unlink(missing_ok=True)
            return
        if not args.attributes and (any((data_dir / FOLDER).glob("*")) or any(data_dir.glob("*.jpg"))):
            raise UserError(f"{data_dir} has other images or part of a set: use them, or move them away and run again")
        with open_archive(archive, work, args) as (path, folder, record):
            if args.attributes:
                folder.mkdir()
                os.replace(shutil.copyfile(path, folder / archive.name), target)
            else:
                record["images"] = extract_images(path, archive, folder)
                publish(folder, record, data_dir)
    if args.attributes:
        print(f"The attributes are in {target}\nNext: python3 experiments/face_features.py --help")
        return
    print(f"{record['images']:,} images are in {data_dir / FOLDER}")
    print(f"CelebA is for non-commercial research only and must not be passed on: {HOMEPAGE}")
    import torch  # here, as torchvision above

    preset = "" if torch.cuda.is_available() else " --preset cpu"
    print(f"Next: {command_of('train')}{preset}" + ("" if data_dir == DATA_DIR else f' --data "{data_dir}"'))


@contextlib.contextmanager
def open_archive(archive: Archive, work: Path, args: argparse.Namespace) -> Iterator[tuple[Path, Path, dict]]:
    """Yields the archive's file, which it has checked, the path of a temporary folder, and a record of its origin.

    BadArchive becomes UserError. Then it deletes the folder and, after a success, the download.
    """
    path = args.from_zip or download(archive, work, args.data_dir)
    folder = work / f"{FOLDER}.tmp-{os.getpid()}"
    try:
        yield path, folder, {"source": str(args.from_zip or archive.url), **verify(path, archive)}
    except BadArchive as error:
        if not args.from_zip:
            path = path.replace(path.with_name(path.name + ".bad"))
        remedy = explain_direct_use(path, error) or explain_manual_download(archive, args.data_dir)
        raise UserError(f"{path} is {error}. {remedy}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if not args.from_zip and not args.keep_zip:
        path.unlink()


def report_if_valid(target: Path, archive: Archive) -> bool:
    """Prints a sentence and returns True if the file is the archive's. Raises UserError if it is another one."""
    if not target.exists():
        return False
    try:
        verify(target, archive)
    except BadArchive as error:
        raise UserError(f"{target} is {error}: move it away and run the same command again") from error
    print(f"Nothing to do: {target} is there")
    return True


def report_if_complete(data_dir: Path) -> bool:
    """Prints a sentence and returns True if an earlier run left its marker and all its images are still there."""
    folder = data_dir / FOLDER
    try:
        record = json.loads((data_dir / MARKER).read_text(encoding="utf-8"))
        if record["images"] != sum(entry.name.endswith(".jpg") for entry in os.scandir(folder)):
            return False
        print(f"Nothing to do: {folder} holds all {record['images']:,} images of {record['source']}")
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return True


def locate_work_folder(data_dir: Path) -> Path:
    return Path(f"{data_dir.resolve()}.download")  # a rename works within one disk only, so go where a link points


@contextlib.contextmanager
def open_work_folder(data_dir: Path) -> Iterator[Path]:
    """Makes the folder of the work in progress, for one process at a time. It deletes it at the end if it is empty."""
    data_dir.mkdir(parents=True, exist_ok=True)
    work = locate_work_folder(data_dir)

    def report() -> None:
        print(f"Waiting for another process that fills {data_dir}", flush=True)

    with locked(data_dir / ".lock", wait=report):
        try:
            work.mkdir(exist_ok=True)
            for leftover in work.glob(f"{FOLDER}.tmp-*"):  # we hold the lock, so the run that made it is dead
                shutil.rmtree(leftover)
            yield work
        finally:
            with contextlib.suppress(OSError):
                work.rmdir()


def explain_manual_download(archive: Archive, data_dir: Path) -> str:
    command = f'{command_of("download_celeba")} --data-dir "{data_dir}" {archive.by_hand} PATH'
    return f"Open {archive.url} in a browser, save the file, and run: {command}"


def explain_direct_use(path: Path, error: BadArchive) -> str | None:
    """Returns the command of train.py for an unofficial archive that holds images; None for another one."""
    from magnet.data.image_files import find_images

    with contextlib.suppress(UserError):
        if isinstance(error, UnofficialArchive) and find_images(path):
            return f'train.py takes any .zip of images as it is: {command_of("train")} --data "{path}"'
    return None


def locate_archive(archive: Archive, work: Path) -> Path:
    """Returns the path that a download of the archive has."""
    # Without an md5 nothing would notice that the halves of two different files were joined: one name per address.
    stem = Path(archive.name).stem if archive.md5 else hashlib.sha256(archive.url.encode()).hexdigest()[:16]
    return work / f"{stem}{Path(archive.name).suffix}"


def download(archive: Archive, work: Path, data_dir: Path) -> Path:
    """Downloads the archive into `work`, from where an earlier run stopped. Returns its path."""
    import gdown  # here, as below: it takes half a second, in which Ctrl-C would be a traceback

    path = locate_archive(archive, work)
    if path.exists():
        return path
    if archive.size:
        needed = 2.5 * archive.size  # the archive, and the images in whole blocks of a disk
        require_space(work, needed - sum(part.stat().st_size for part in work.glob(f"{path.name}*.part")))

    def delete_parts() -> None:
        for part in work.glob(f"{path.name}*.part"):
            part.unlink()

    for attempt in (1, 2):
        try:
            with limit_download(archive, data_dir) as options:
                gdown.download(
                    archive.url, str(path), resume=True, retries=RETRIES, timeout=TIMEOUT, use_cookies=False, **options
                )
            break
        except UserError:
            delete_parts()
            raise
        except gdown.FileURLRetrievalError as error:
            remedy = explain_manual_download(archive, data_dir)
            raise UserError(f"Google Drive refuses, often for its daily quota. {remedy}") from error
        except (gdown.DownloadError, OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            if attempt == 2 or "byte range" not in reason:
                raise UserError(f"{archive.url} stopped ({reason}): run the same command again to go on") from error
            delete_parts()  # the server cannot resume in the middle
    return path


@contextlib.contextmanager
def limit_download(archive: Archive, data_dir: Path) -> Iterator[dict]:
    """Yields options for gdown.download: UserError if it gets more than the archive, OSError if it all but stalls."""
    import gdown

    stalled, timer = threading.Event(), None
    most = archive.size or MAX_UNPACKED

    def watch(received: int, total: int | None = None) -> None:  # gdown calls it after each half a megabyte
        nonlocal timer
        if received > most:
            remedy = explain_manual_download(archive, data_dir)
            raise UserError(f"{archive.url} sends more than {most:,} bytes: not the file. {remedy}")
        if timer:
            timer.cancel()
        timer = threading.Timer(STALL_SECONDS, stalled.set)
        timer.daemon = True
        timer.start()

    watch(0)
    try:
        yield {"progress": watch, "cancel": stalled}
    except gdown.DownloadCancelled as error:
        raise TimeoutError(f"less than half a megabyte in {STALL_SECONDS} seconds") from error
    finally:
        timer.cancel()


def publish(folder: Path, record: dict, data_dir: Path) -> None:
    """Gives the complete folder its final name."""
    record["date"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    marker = folder.with_suffix(".json")
    marker.write_text(json.dumps(record, indent=2), encoding="utf-8")
    # The marker goes first: without its images it means nothing. Images without it would look like somebody else's
    # after a kill between the two renames.
    os.replace(marker, data_dir / MARKER)
    with contextlib.suppress(FileNotFoundError):
        (data_dir / FOLDER).rmdir()  # it is empty, but Windows does not rename onto it
    os.replace(folder, data_dir / FOLDER)


if __name__ == "__main__":
    sys.exit(main())
