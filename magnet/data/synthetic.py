"""Synthetic faces from a seed: a data set without a download, with known factors of variation.

    images, factors = draw_faces(16, image_size=64, seed=0)

A face is a stack of shapes, each painted over the one before. A shape is its signed distance, negative inside, so its
edge is one pixel soft at every image size. The eyes lie where CelebA's aligned and centre-cropped faces have them.
"""

import copy

import numpy as np

VERSION = 1  # raise it if the same seed draws other pixels, so that cached arrays are made anew

# The factors, drawn independently. 0: continuous, uniform in [0, 1); n: an integer 0 ... n-1, all equally likely.
FACTORS = {
    "skin": 0,  # light .. dark
    "hair_colour": 6,  # black, dark brown, brown, red, blond, grey
    "hair_style": 5,  # bald, short, parted, curly, long
    "eye_colour": 4,  # brown, blue, green, grey
    "glasses": 2,
    "beard": 3,  # none, stubble, full
    "smile": 0,  # frown .. smile
    "mouth_open": 0,
    "eye_open": 0,
    "brows": 0,  # low .. raised
    "face_width": 0,
    "tilt": 0,  # the head leans to the left .. right
    "turn": 0,  # the head looks to the left .. right
    "light": 0,  # comes from the left .. right
    "background": 0,  # hue
    "clothes": 0,  # hue
}

SKIN = [(255, 226, 206), (243, 202, 170), (220, 169, 130), (168, 114, 80), (108, 70, 50)]  # evenly spaced on [0, 1]
HAIR = [(36, 30, 32), (66, 44, 34), (112, 74, 46), (160, 78, 40), (222, 182, 112), (172, 170, 170)]
EYES = [(92, 56, 30), (64, 124, 190), (74, 136, 78), (124, 134, 142)]
CHUNK = 16  # faces in one drawing: they stay in the processor's cache


def sample_factors(count: int, seed: int, start: int = 0) -> dict[str, np.ndarray]:
    """Samples the factors of the faces start ... start+count-1, by name: (count,) float32 in [0, 1] or int64.

    Face i depends on the seed and on i alone.
    """
    rows = [np.random.default_rng((seed, i)).random(len(FACTORS), np.float32) for i in range(start, start + count)]
    uniform = np.array(rows, np.float32).reshape(count, len(FACTORS))
    return {
        name: (uniform[:, column] * levels).astype(np.int64) if levels else uniform[:, column].copy()
        for column, (name, levels) in enumerate(FACTORS.items())
    }


def draw_faces(count: int, image_size: int, seed: int, start: int = 0) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Draws the faces start ... start+count-1 of a seed: (count, 3, S, S) uint8 RGB, and their factors."""
    factors = sample_factors(count, seed, start)
    return render_faces(factors, image_size), factors


def render_faces(factors: dict[str, np.ndarray], image_size: int) -> np.ndarray:
    """Draws the faces with these factors, all of `FACTORS`, (N,) each: (N, 3, S, S) uint8 RGB."""
    count = len(factors["skin"])
    images = np.empty((count, 3, image_size, image_size), np.uint8)
    for first in range(0, count, CHUNK):
        part = slice(first, first + CHUNK)
        drawing = _Drawing({name: values[part] for name, values in factors.items()}, image_size)
        drawing.draw_background()
        drawing.draw_hair_behind()
        drawing.draw_shoulders()
        drawing.draw_head()
        features = drawing.crop(-0.5, 0.95)
        features.draw_beard()
        features.draw_mouth()
        features.draw_nose()
        features.crop(-0.3, 0.35).draw_eyes()
        drawing.crop(-1.0, 0.75).draw_hair_in_front()
        drawing.crop(-0.3, 0.4).draw_glasses()
        images[part] = np.rint(drawing.images.clip(0, 1) * 255)
    return images


# Shapes are signed distances, up to a factor near 1.


def _ellipse(x, y, rx, ry):
    return (np.sqrt((x / rx) ** 2 + (y / ry) ** 2) - 1) * np.minimum(rx, ry)


def _stroke(x, y, width, bend, thick):
    """A line along y = bend * (x / width)^2 for |x| < width, thinner towards its ends."""
    along = (x / width) ** 2
    return np.maximum(np.abs(y - bend * along) - thick * (1.2 - 0.8 * along), np.abs(x) - width)


def _to_colour(rgb):
    """Makes (..., 3) numbers colours that broadcast to (N, 3, S, S)."""
    return np.asarray(rgb, np.float32)[..., None, None]


def _hue_to_colour(hue, saturation, value):
    """Converts hues (N,) in [0, 1]."""
    ramp = np.clip(np.abs((hue[:, None] * 6 + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    return _to_colour(value * (1 - saturation + saturation * ramp))


BLACK, WHITE = _to_colour((0.08, 0.06, 0.07)), _to_colour((0.96, 0.95, 0.93))


class _Drawing:
    """A canvas with N faces. x runs right and y down, -1 to 1; u and v are the same in the frame of the tilted head."""

    def __init__(self, factors: dict[str, np.ndarray], size: int):
        self.images = np.zeros((len(factors["skin"]), 3, size, size), np.float32)
        self.pixel = np.float32(2 / size)
        steps = (np.arange(size, dtype=np.float32) + 0.5) * self.pixel - 1
        self.x, self.y = np.broadcast_arrays(steps[None, None, :], steps[None, :, None])

        # Factors as (N, 1, 1) broadcast over pixels. Those that go both ways from 0 become -1 .. 1.
        self.f = f = {name: values.astype(np.float32)[:, None, None] for name, values in factors.items()}
        for name in ("brows", "face_width", "tilt", "turn", "light"):
            f[name] = 2 * f[name] - 1

        tone = factors["skin"] * (len(SKIN) - 1)
        channels = [np.interp(tone, range(len(SKIN)), channel) for channel in zip(*SKIN, strict=True)]
        self.skin = _to_colour(np.stack(channels, axis=1) / 255)
        self.hair = _to_colour(np.array(HAIR)[factors["hair_colour"]] / 255)
        self.iris = _to_colour(np.array(EYES)[factors["eye_colour"]] / 255)
        self.backdrop = _hue_to_colour(factors["background"], 0.30, 0.82)
        self.cloth = _hue_to_colour(factors["clothes"], 0.50, 0.62)

        angle = 0.15 * f["tilt"]  # radians, about the neck
        self.u = np.cos(angle) * self.x + np.sin(angle) * (self.y - 0.6)
        self.v = np.cos(angle) * (self.y - 0.6) - np.sin(angle) * self.x + 0.6
        self.width = 0.50 + 0.055 * f["face_width"]
        self.outline = _ellipse(self.u / (1 + 0.13 * np.maximum(self.v - 0.1, 0)), self.v - 0.10, self.width, 0.67)
        self.waves = 0.025 * np.sin(9 * np.arctan2(self.v + 0.1, self.u))
        self.light = (1 + 0.26 * f["light"] * self.u)[:, None]  # brighter on the side of the light
        self.strands = self.light * (1 + 0.08 * np.sin(24 * self.u + 5 * np.sin(3 * self.v)))[:, None]

    def crop(self, top: float, bottom: float) -> "_Drawing":
        """Returns the same canvas between two heights: painting there costs less."""
        part = copy.copy(self)
        rows = slice(*np.searchsorted(self.y[0, :, 0], (top, bottom)))
        for name in ("images", "x", "y", "u", "v", "outline", "waves", "light", "strands"):
            setattr(part, name, getattr(self, name)[..., rows, :])
        return part

    def paint(self, shape, colour, opacity=1.0, soft=0.0) -> None:
        """Covers the inside of a shape (N, S, S) with a colour, over an edge one pixel or `soft` wide."""
        mask = np.clip(0.5 - shape / max(self.pixel, np.float32(soft)), 0, 1) * np.float32(opacity)
        self.images += mask[:, None] * (colour - self.images)

    def select_by_style(self, shapes: dict):
        """Selects each face's shape by its hair style, or an empty one."""
        empty = np.ones_like(self.u)
        return np.select([self.f["hair_style"] == style for style in shapes], list(shapes.values()), empty)

    def draw_background(self):
        self.images[:] = self.backdrop * (0.92 + 0.14 * self.f["light"] * self.x - 0.16 * self.y)[:, None]
        for x, y, radius in ((0.75, -0.55, 0.40), (-0.85, 0.05, 0.34)):  # blurred spots
            self.paint(_ellipse(self.x - x, self.y - y, radius, radius), self.backdrop * 0.5 + 0.5, 0.4, soft=0.4)

    def draw_hair_behind(self):
        u, v = self.u, self.v
        curly = _ellipse(u, v + 0.10, self.width + 0.20, 0.72) + self.waves
        long = _ellipse(u / (1 + 0.12 * np.maximum(v, 0)), v - 0.28, self.width + 0.17, 1.05)
        self.paint(self.select_by_style({3: curly, 4: long}), self.hair * self.strands * 0.72)

    def draw_shoulders(self):
        x, y = self.x, self.y
        neck = np.maximum(np.abs(x) - 0.26 - 0.3 * np.maximum(y - 0.75, 0), 0.4 - y)
        self.paint(_ellipse(x, y - 1.32, 1.0, 0.52), self.cloth * self.light)
        self.paint(np.maximum(neck, _ellipse(x, y - 0.7, 0.40, 0.28)), self.skin * 0.84 * self.light)
        self.paint(np.maximum(neck, _ellipse(self.u, self.v - 0.18, self.width, 0.68)), self.skin * 0.64, 0.8, soft=0.1)

    def draw_head(self):
        ears = _ellipse(np.abs(self.u) - (self.width - 0.01), self.v - 0.10, 0.075, 0.13)
        self.paint(ears, self.skin * 0.86 * self.light)
        rim = np.clip(1 + self.outline / 0.5, 0, 1) ** 3  # 0 in the middle, 1 at the edge
        self.paint(self.outline, self.skin * (self.light - (0.18 * rim - 0.03 + 0.05 * self.v)[:, None]))
        cheeks = _ellipse(np.abs(self.u - 0.10 * self.f["turn"]) - 0.29, self.v - 0.29, 0.12, 0.09)
        self.paint(cheeks, self.skin * _to_colour((1.02, 0.82, 0.80)), 0.45, soft=0.14)

    def draw_beard(self):
        u, v = self.u - 0.08 * self.f["turn"], self.v
        jaw = np.maximum(self.outline + 0.01, 0.44 - 3.2 * np.abs(u) ** 3 - v)
        moustache = _stroke(u, v - 0.365, 0.20, 0.07, 0.035)
        opacity = np.choose(self.f["beard"].astype(int), (0.0, 0.30, 0.92))
        self.paint(np.minimum(jaw, moustache), self.hair * self.strands * 0.85, opacity, soft=0.06)

    def draw_mouth(self):
        bend = 0.05 - 0.17 * self.f["smile"]
        gape = 0.065 * self.f["mouth_open"]
        u, v = self.u - 0.10 * self.f["turn"], self.v - 0.45 + 0.4 * bend
        lips = self.skin * _to_colour((0.80, 0.54, 0.54)) + _to_colour((0.08, 0.02, 0.03))
        self.paint(_stroke(u, v, 0.185, bend, 0.034 + 0.6 * gape), lips)
        self.paint(_stroke(u, v, 0.155, bend, 0.8 * gape - 0.008), lips * 0.35)
        self.paint(_stroke(u, v + 0.4 * gape, 0.135, bend, 0.36 * gape - 0.004), WHITE)
        self.paint(_stroke(u, v, 0.18, bend, 0.010), lips * 0.5, 0.8 - 0.8 * self.f["mouth_open"])

    def draw_nose(self):
        light = self.f["light"]
        u, v = self.u - 0.15 * self.f["turn"], self.v
        self.paint(_ellipse(u, v - 0.27, 0.085, 0.05), self.skin * 0.84 * self.light, 0.8, soft=0.06)
        self.paint(_ellipse(u + 0.05 * light, v - 0.13, 0.03, 0.16), self.skin * 0.80, 0.45, soft=0.05)
        self.paint(_ellipse(u - 0.01 * light, v - 0.16, 0.028, 0.12), self.skin * 1.10, 0.5, soft=0.05)
        for side in (-1, 1):
            self.paint(_ellipse(u - side * 0.04, v - 0.285, 0.020, 0.013), self.skin * 0.5, 0.8)

    def draw_eyes(self):
        opening = 0.036 + 0.038 * self.f["eye_open"]
        gaze = 0.03 * self.f["turn"]
        raised = 0.155 + 0.03 * self.f["brows"]
        for side in (-1, 1):
            u, v = self.u - 0.10 * self.f["turn"] - side * 0.215, self.v - 0.03
            self.paint(_ellipse(u, v, 0.125, opening + 0.045), self.skin * 0.80, 0.45, soft=0.06)
            eye = _ellipse(u, v, 0.105, opening)
            self.paint(eye, WHITE)
            self.paint(np.maximum(eye, _ellipse(u - gaze, v, 0.054, 0.054)), self.iris)
            self.paint(np.maximum(eye, _ellipse(u - gaze, v, 0.026, 0.026)), BLACK)
            self.paint(_ellipse(u - gaze - 0.018, v + 0.02, 0.012, 0.012), WHITE)
            self.paint(_stroke(u, v + opening, 0.115, opening * 0.9, 0.012), BLACK, 0.85)
            self.paint(_stroke(u - side * 0.01, v + raised, 0.135, 0.045, 0.019), self.hair * 0.75, 0.9)

    def draw_hair_in_front(self):
        u, v, across = self.u, self.v, np.abs(self.u) / self.width
        cap = _ellipse(u, v - 0.06, self.width + 0.05, 0.73)
        sides = 0.45 * across**8  # sideburns
        curls = _ellipse(u, v + 0.18, self.width + 0.15, 0.62) + self.waves
        front = self.select_by_style({  # inside a cap, above a hairline
            1: np.maximum(cap, v + 0.37 - 0.10 * across**2 - sides - 0.03 * np.cos(14 * u)),
            2: np.maximum(cap, v + 0.42 - 0.42 * np.abs(u + 0.2) - sides),
            3: np.maximum(curls, v + 0.33 - 0.30 * across**2 + self.waves),
            4: np.maximum(cap, v + 0.44 - 0.90 * np.abs(u) ** 1.6),
        })  # fmt: skip
        self.paint(front, self.hair * self.strands)
        gloss = np.maximum(front + 0.05, np.abs(v + 0.46 + 0.25 * u * u) - 0.045)
        self.paint(gloss, self.hair * self.strands * 1.15 + 0.08, 0.5, soft=0.08)

    def draw_glasses(self):
        u, v = self.u - 0.10 * self.f["turn"], self.v
        has_glasses, thick = self.f["glasses"], 0.012
        bridge = np.maximum(np.abs(v - 0.01) - thick, np.abs(u) - 0.08)
        arms = np.maximum(np.abs(v) - thick, np.abs(np.abs(u) - 0.44) - 0.07)
        lenses = _ellipse(np.abs(u) - 0.225, v - 0.04, 0.155, 0.135)  # |u| mirrors one to both sides
        self.paint(lenses, WHITE, 0.12 * has_glasses)
        self.paint(np.minimum(np.minimum(np.abs(lenses) - thick, bridge), arms), BLACK, has_glasses)
