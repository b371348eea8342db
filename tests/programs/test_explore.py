"""examples/explore.py: what each tab computes, and that the page shows it in a browser.

The page needs gradio; the browser is driven by selenium, with Debian's chromium and chromium-driver:
`pip3 install gradio selenium; apt-get install chromium chromium-driver`. Without them these tests are skipped.
"""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from PIL import Image
from test_taste import WEIGHTS, is_dark_haired

import export
import magnet
import train
from examples import explore
from examples.taste import FRAME, PAGE
from magnet.data.image_files import load_image
from magnet.support.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working folder with images in faces/, in models/ a run of MAGNET, its weights in w.pt, and a plain GAN."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "faces").mkdir()
    for i, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (40, 48, 40, 3), np.uint8)):
        Image.fromarray(pixels).save(folder / "faces" / f"{i:02d}.png")
    flags = "--preset cpu --width 4 --nz 6 --batch-size 8 --steps 4 --sample-every 2 --precision fp32 --data faces"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, algorithm in (("run", "magnet"), ("gan", "gan")):
            assert train.main([*flags.split(), "--name", name, "--algorithm", algorithm]) == 0
        assert export.main(["models/run", "--out", "models/w.pt"]) == 0
    (folder / "models" / "notes.txt").write_text("no run")
    (folder / "models" / "bad.pt").write_bytes(b"no weights")
    return folder


@pytest.fixture
def model(folder, monkeypatch):
    """The Model of the run, in its working folder."""
    monkeypatch.chdir(folder)
    return magnet.load("models/run", "cpu")


def tiles(picture, count: int, row: int = 8) -> torch.Tensor:
    """The first `count` images (count, 3, 32, 32) of a picture with `row` in a row."""
    scale = picture.shape[1] // (2 + 34 * row)
    small = picture[::scale, ::scale]
    assert scale > 1 and np.array_equal(small.repeat(scale, 0).repeat(scale, 1), picture)  # all pixels are squares
    corners = [(2 + 34 * (i // row), 2 + 34 * (i % row)) for i in range(count)]
    return torch.from_numpy(np.stack([small[y : y + 32, x : x + 32].transpose(2, 0, 1) for y, x in corners]))


def single(picture) -> torch.Tensor:
    """The image (3, 32, 32) of a picture of one."""
    return torch.from_numpy(np.asarray(picture)[::25, ::25].transpose(2, 0, 1))


def test_samples_are_those_of_the_seed(model):
    assert torch.equal(tiles(explore.draw_samples(model, 3, 10), 10), model.sample(10, seed=3))


def test_a_walk_leads_from_face_to_face(model):
    for place, seed in ((0, 5), (1, 6)):
        face, way = explore.draw_walk(model, 5, 6, place)
        assert (single(face).int() - model.sample(1, seed)[0].int()).abs().max() <= 1
        assert (single(face).int() - tiles(way, 9, row=9)[8 * place].int()).abs().max() <= 1
    face, way = explore.draw_walk(model, 5, 6, 0.25)
    assert (single(face).int() - tiles(way, 9, row=9)[2].int()).abs().max() <= 1
    assert len(tiles(way, 9, row=9).unique(dim=0)) == 9


def test_an_answer_stands_beside_what_was_seen(model):
    state, generated = tiles(explore.draw_answer(model, "faces/07.png"), 2, row=2)
    assert np.array_equal(state, load_image(Path("faces/07.png"), 32))
    assert torch.equal(generated, model.answer(["faces/07.png"])[0])
    assert explore.draw_answer(model, None) is None
    with pytest.raises(UserError, match="bad.pt.*another image"):
        explore.draw_answer(model, "models/bad.pt")


def test_the_grids_of_a_run_by_step(folder):
    run = folder / "models" / "run"
    grids = explore.find_grids(run)
    assert [step for step, _, _ in grids] == [0, 2, 4] and not explore.find_grids(run.parent / "w.pt")
    assert grids == explore.find_grids(run / "checkpoints" / "000004.pt")
    for index, name in ((1, "000002"), (2, "000004"), (3, "000004")):
        words, *pictures = explore.draw_grids(run, index)
        assert f"**{int(name)}**" in words
        for picture, path in zip(pictures, (f"{name}.png", f"{name}-policy.png"), strict=True):
            assert np.array_equal(picture[::3, ::3], np.asarray(Image.open(run / "samples" / path)))
    assert explore.draw_grids(folder / "models" / "gan", 1)[2] is None


def test_two_runs_side_by_side(model):
    run, models = Path("models/run"), Path("models")
    assert explore.list_runs(models) == ["bad.pt", "gan", "run", "w.pt"]
    ours, theirs = explore.compare(magnet.load, run, models, "gan", 3, 8)
    assert torch.equal(tiles(ours, 8), model.sample(8, seed=3))
    assert torch.equal(tiles(theirs, 8), magnet.load("models/gan").sample(8, seed=3))
    assert explore.compare(magnet.load, run, models, None, 3, 8)[1] is None


def test_without_gradio_the_sentence_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert explore.main([]) == 2
    assert capsys.readouterr().err == "explore.py: the page needs Gradio: `pip3 install gradio` installs it.\n"


@pytest.mark.parametrize(
    "arguments, words", [(["nothing"], "nothing"), (["models/run", "--port", "99999"], "port 99999")]
)
def test_mistakes_are_a_sentence(model, capsys, arguments, words):
    pytest.importorskip("gradio")
    assert explore.main([*arguments, "--device", "cpu"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("explore.py: ") and words in told and told.count("\n") == 1


def test_a_plain_gan_is_said_to_have_no_answers(model):
    gr = pytest.importorskip("gradio")
    for name, expected in (("gan", True), ("run", False)):
        page = explore.build_page(gr, Path("models") / name, Path("models"), magnet.load)
        texts = [str(part["props"].get("value")) for part in page.get_config_file()["components"]]
        assert any("is a plain GAN" in text for text in texts) == expected


class Page:
    """A browser on a page that a process serves at `address`."""

    def __init__(self, driver, address: str):
        self.driver, self.address = driver, address
        driver.get(address)

    def until(self, condition):
        """What `condition` gives once that is true."""
        from selenium.common.exceptions import WebDriverException

        deadline = time.monotonic() + 120
        while True:
            try:
                if found := condition():
                    return found
            except (WebDriverException, OSError):
                pass  # the page is being drawn
            assert time.monotonic() < deadline, self.driver.find_element("css selector", "body").text
            time.sleep(0.1)

    def act(self, selector: str, action, text: str | None = None) -> None:
        """Does `action` to the first visible element of a selector, of that text; again if it was redrawn meanwhile."""

        def done() -> bool:
            for element in self.driver.find_elements("css selector", selector):
                if element.is_displayed() and text in (None, element.text):
                    action(element)
                    return True
            return False

        self.until(done)

    def tab(self, name: str) -> None:
        """Opens a tab."""
        self.act("button[role=tab]", lambda tab: tab.click(), name)

    def enter(self, label: str, number: float) -> None:
        """Writes a number beside the slider of that label."""
        keys = ("\ue009a\ue000", str(number), "\ue004")  # Ctrl-A, the number, Tab
        self.act(f"input[aria-label='number input for {label}']", lambda field: field.send_keys(*keys))

    def pictures(self) -> list[np.ndarray]:
        """The pictures of the open tab."""
        shown = [e for e in self.driver.find_elements("css selector", "img") if e.is_displayed()]
        sources = [e.get_attribute("src") for e in shown]
        files = [urllib.request.urlopen(source).read() for source in sources]
        return [np.asarray(Image.open(io.BytesIO(file))).astype(int) for file in files]

    def shows(self, *expected: np.ndarray) -> None:
        """Waits until the pictures are those, but for rounding: here and there other numbers of threads compute."""

        def alike() -> bool:
            found = self.pictures()
            return [a.shape for a in found] == [b.shape for b in expected] and all(
                np.abs(a - b.astype(int)).max() <= 1 for a, b in zip(found, expected, strict=True)
            )

        self.until(alike)


@pytest.fixture
def browser():
    """Headless Chromium, which notes what it fetches."""
    webdriver = pytest.importorskip("selenium.webdriver")
    driver, chromium = shutil.which("chromedriver"), shutil.which("chromium")
    if not (driver and chromium):
        pytest.skip("needs chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    with webdriver.Chrome(options, webdriver.ChromeService(driver)) as driver:
        yield driver


@contextmanager
def serve(run: str, temporary: Path):
    """Where the program serves the page of a run."""
    pytest.importorskip("gradio")
    command = [sys.executable, explore.__file__, run, "--device", "cpu"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", "GRADIO_TEMP_DIR": str(temporary)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as program:
        try:
            yield next(line for line in program.stdout if "http" in line).split()[-1]
        finally:
            program.terminate()


@pytest.fixture
def address(model, tmp_path):
    """Where the program serves the page of the run."""
    with serve("models/run", tmp_path / "t") as address:
        yield address


def test_the_page_in_a_browser(browser, address, model, tmp_path):
    page, run, models = Page(browser, address), Path("models/run"), Path("models")
    page.shows(explore.draw_samples(model, 0, 64))
    page.enter("Seed", 7)
    page.enter("Images", 12)
    page.shows(explore.draw_samples(model, 7, 12))

    page.tab("Walk")
    page.shows(*explore.draw_walk(model, 0, 1, 0.5))
    page.enter("Second seed", 9)
    page.enter("Place between them", 0.2)
    page.shows(*explore.draw_walk(model, 0, 9, 0.2))

    page.tab("Answer")
    (tmp_path / "bad.png").write_bytes(b"no image")
    for name in (tmp_path / "bad.png", Path("faces/07.png").resolve()):
        page.until(lambda: browser.find_elements("css selector", "input[type=file]"))[0].send_keys(str(name))
        if name.stem == "bad":
            page.until(lambda: "give another image" in browser.find_element("css selector", "body").text)
            page.act("button[aria-label='Clear'], button[aria-label='Remove this file']", lambda button: button.click())
    page.shows(explore.draw_answer(model, "faces/07.png"))

    page.tab("Training")
    page.shows(*explore.draw_grids(run, 2)[1:])
    page.enter("Grid", 0)
    page.shows(*explore.draw_grids(run, 0)[1:])
    assert "After 0 steps" in browser.find_element("css selector", "body").text

    page.tab("Compare")
    page.shows(explore.draw_samples(model, 0, 64))
    page.act("input[aria-label='Other run']", lambda field: field.send_keys("gan", "\ue007"))  # Enter
    page.enter("Seed", 3)
    page.shows(*explore.compare(magnet.load, run, models, "gan", 3, 64))

    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    fetched = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    hosts = {urlsplit(url).hostname for url in fetched if url.startswith(("http", "ws"))}
    assert hosts == {"127.0.0.1"}


def read_faces(picture: np.ndarray, row: int) -> torch.Tensor:
    """The faces (N, 3, 32, 32) uint8 of a picture of the tab Teach, with `row` in a row: enlarged, with gaps of 2."""
    pixels = torch.from_numpy(picture[2:, 2:]).permute(2, 0, 1)
    side = pixels.shape[2] // row
    faces = pixels.unfold(1, side, side).unfold(2, side, side).permute(1, 2, 0, 3, 4).flatten(0, 1)
    return torch.nn.functional.adaptive_avg_pool2d(faces[..., :-2, :-2].float(), 32).round().byte()


def press_face(driver, index: int) -> None:
    """Clicks the middle of a face on the page of marks."""
    from selenium.webdriver import ActionChains

    image = driver.find_element("css selector", "#faces img")
    width, height, natural = driver.execute_script(
        "const i = arguments[0]; return [i.clientWidth, i.clientHeight, i.naturalWidth]", image
    )
    side = min(width, height, natural) / 4
    offsets = [round((place - 1.5) * side) for place in (index % 4, index // 4)]  # from the middle
    ActionChains(driver).move_to_element_with_offset(image, *offsets).click().perform()


def test_a_taste_is_taught_in_a_browser(browser, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    browser.set_window_size(1400, 1600)
    with serve(str(WEIGHTS), tmp_path / "t") as address:
        page = Page(browser, address)
        page.tab("Teach")
        body = browser.find_element("css selector", "body")

        def framed_faces() -> list[int]:
            """The faces that have a frame."""
            picture = page.pictures()[0]
            tops = picture[3 :: len(picture) // 4, len(picture) // 8 :: len(picture) // 4][:4].reshape(PAGE, 3)
            return (np.abs(tops - FRAME).sum(axis=1) < 9).nonzero()[0].tolist()

        def made_steps() -> int:
            """How many steps the page says that it has made, 0 if nothing."""
            return max([int(n.replace(",", "")) for n in re.findall(r" s, ([0-9,]+) steps", body.text)], default=0)

        first: list[int] = []
        for number in range(7):
            page.until(lambda n=number: f"Marked: {n * PAGE} faces" in body.text and not framed_faces())
            dark = is_dark_haired(read_faces(page.pictures()[0], 4)).nonzero().flatten().tolist()
            for i in dark:
                press_face(browser, i)
            page.until(lambda dark=dark: framed_faces() == dark)
            if number == 1:  # back to the page before, with its marks, and on again
                page.act("button", lambda button: button.click(), "Undo the last page")
                page.until(lambda first=first: "Marked: 0 faces" in body.text and framed_faces() == first)
                page.act("button", lambda button: button.click(), "Next faces")
                page.until(lambda: "Marked: 16 faces" in body.text and not framed_faces())
                for i in dark:
                    press_face(browser, i)
                page.until(lambda dark=dark: framed_faces() == dark)
            first = dark
            page.act("button", lambda button: button.click(), "Next faces")
        page.enter("Seconds", 600)
        page.enter("Weight of your taste", 8)
        page.act("button", lambda button: button.click(), "Train")
        page.until(lambda: made_steps() >= 400)
        page.act("button", lambda button: button.click(), "Stop")
        page.until(lambda: "Trained for" in body.text and len(page.pictures()) == 6)
        pictures = [read_faces(picture, 8) for picture in page.pictures()[1:]]
        names = ("noise_before", "noise_after", "noise_best_of_4", "answers_before", "answers_after")
        shares = {n: is_dark_haired(faces).float().mean().item() for n, faces in zip(names, pictures, strict=True)}
        before, after = (shares[f"noise_{when}"] + shares[f"answers_{when}"] for when in ("before", "after"))
        assert after / 2 > before / 2 + 0.15, shares
        assert shares["noise_best_of_4"] > shares["noise_before"] + 0.15, shares  # what picking by the model brings
        table = page.driver.find_element("css selector", "table").text
        assert "best of 4 best of 16 after" in table and len(re.findall(r"\d+%", table)) == 8

        page.act("button", lambda button: button.click(), "Save as a run")
        page.until(lambda: "Go on with" in body.text)
        (run,) = Path("models").iterdir()
        assert (run / "reward.py").exists() and magnet.load(run, "cpu").sample(4).shape == (4, 3, 32, 32)
        page.act("button", lambda button: button.click(), "Undo the training")
        page.until(lambda: "The training is undone" in body.text and len(page.pictures()) == 1)
