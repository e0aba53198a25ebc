"""Draws the pictures that the bundled checkpoint knows, and says what is in them.

A scene is one to three coloured shapes, or one large number, on a plain, graded or noisy background. Everything comes from
a NumPy generator and Pillow (its own font included), so a seed gives the same scene on every machine.
Coordinates are fractions of the picture's width and height, (0, 0) at the top left.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image, ImageDraw, ImageFont

COLORS = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (240, 210, 40),
    "orange": (245, 135, 25),
    "purple": (130, 50, 170),
    "pink": (250, 150, 195),
    "black": (20, 20, 20),
}
KINDS = ("circle", "square", "triangle", "star", "heart", "cross")
DIGITS = tuple("0123456789")
SUPERSAMPLE = 3  # shapes are drawn this much larger, then averaged, for smooth edges
COLOR_SPREAD = 12  # a colour's channels vary by this much
CONTRAST = 85  # least Euclidean RGB distance between a shape and its background
GAP = 0.02  # least distance between two boxes
COLUMN_GAP = 0.07  # least horizontal distance between two centres, so that "left to right" is plain

Point = tuple[float, float]
Box = tuple[float, float, float, float]  # x0, y0, x1, y1


@dataclass(frozen=True)
class Shape:
    """One drawn object: a kind and colour with its outline, or a digit with its box."""

    kind: str
    color: str
    outline: tuple[Point, ...]

    @cached_property
    def box(self) -> Box:
        """The tight box around the outline."""
        xs, ys = zip(*self.outline, strict=True)
        return min(xs), min(ys), max(xs), max(ys)

    @property
    def center_x(self) -> float:
        """Middle of the box."""
        return (self.box[0] + self.box[2]) / 2

    def mask(self, width: int, height: int) -> np.ndarray:
        """Bool [height, width], True inside the outline."""
        return np.asarray(coverage(self.outline, width, height)) >= 128

    def crop(self, size: int = 64) -> np.ndarray:
        """Float32 [size, size] in [0, 1]: how much of each cell of its box the shape covers. Input of the mask codec."""
        x0, y0, x1, y1 = self.box
        outline = tuple(((x - x0) / (x1 - x0), (y - y0) / (y1 - y0)) for x, y in self.outline)
        return np.asarray(coverage(outline, size, size), dtype=np.float32) / 255


@dataclass(frozen=True)
class Scene:
    """A picture and what is in it. `shapes` run from left to right; a number scene has none."""

    image: Image.Image
    shapes: tuple[Shape, ...]
    digits: tuple[Shape, ...] = ()

    @property
    def number(self) -> str:
        """The digits as text, "" in a scene of shapes."""
        return "".join(digit.kind for digit in self.digits)


def draw_scene(rng: np.random.Generator, size: int | None = None, count: int | None = None, number: bool | None = None) -> Scene:
    """A random scene.

    size: pixels of the longer side (default: 112 to 224); count: shapes, 1 to 4 (default: 1 to 3);
    number: True for a number, False for shapes (default: one scene in six is a number).
    """
    number = bool(rng.random() < 1 / 6) if number is None else number
    width, height = _canvas_size(rng, size)
    background, mean = _background(rng, width, height)
    if number:
        return _draw_number(rng, background, mean)
    shapes = _place_shapes(rng, width / height, count or int(rng.integers(1, 4)), mean)
    image = background
    for shape in shapes:
        image = _paint(image, coverage(shape.outline, width, height), _vary(rng, shape.color))
    return Scene(image, tuple(sorted(shapes, key=lambda shape: shape.center_x)))


def _canvas_size(rng: np.random.Generator, size: int | None) -> tuple[int, int]:
    longer = size or int(rng.integers(112, 225))
    shorter = longer if rng.random() < 0.6 else round(longer * rng.uniform(0.8, 1.0))
    return (longer, shorter) if rng.random() < 0.5 else (shorter, longer)


def _background(rng: np.random.Generator, width: int, height: int) -> tuple[Image.Image, np.ndarray]:
    """A background and its mean colour."""
    low, high = ((195, 250), (105, 165), (35, 80))[rng.integers(0, 3)]
    mean = rng.uniform(low, high) + rng.uniform(-8, 8, size=3)
    pixels = np.broadcast_to(mean, (height, width, 3)).copy()
    style = rng.random()
    if style < 0.33:  # graded, in any direction
        angle, strength = rng.uniform(0, 2 * math.pi), rng.uniform(10, 30)
        slope = np.linspace(-0.5, 0.5, width)[None, :] * math.cos(angle) + np.linspace(-0.5, 0.5, height)[:, None] * math.sin(angle)
        pixels += (strength * slope)[..., None]
    elif style < 0.66:
        pixels += rng.normal(0, rng.uniform(3, 10), size=(height, width, 1))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)), mean


def _place_shapes(rng: np.random.Generator, aspect: float, count: int, background: np.ndarray) -> list[Shape]:
    """`count` shapes that keep their distance; starts over when one finds no room."""
    while True:
        shapes: list[Shape] = []
        for _ in range(count * 12):
            shape = _random_shape(rng, aspect, background, largest=(0.45, 0.45, 0.42, 0.36)[count - 1])
            if all(_apart(shape, other) for other in shapes):
                shapes.append(shape)
            if len(shapes) == count:
                return shapes


def _random_shape(rng: np.random.Generator, aspect: float, background: np.ndarray, largest: float) -> Shape:
    kind = KINDS[rng.integers(0, len(KINDS))]
    angle = 0.0 if rng.random() < 0.5 else math.radians(rng.uniform(-20, 20))
    points = [
        (x * math.cos(angle) - y * math.sin(angle), x * math.sin(angle) + y * math.cos(angle)) for x, y in _unit_outline(kind)
    ]
    xs, ys = zip(*points, strict=True)
    scale = rng.uniform(0.18, largest) / max(max(xs) - min(xs), max(ys) - min(ys))
    scale_x, scale_y = scale / max(aspect, 1), scale / max(1 / aspect, 1)  # of the shorter side
    x0 = rng.uniform(0.01, 0.99 - scale_x * (max(xs) - min(xs)))
    y0 = rng.uniform(0.01, 0.99 - scale_y * (max(ys) - min(ys)))
    outline = tuple((float(x0 + scale_x * (x - min(xs))), float(y0 + scale_y * (y - min(ys)))) for x, y in points)
    return Shape(kind, _contrasting_color(rng, background), outline)


def _unit_outline(kind: str) -> list[Point]:
    """Outline around the origin, y down."""
    if kind == "circle":
        return [_on_circle(i / 72, 1.0) for i in range(72)]
    if kind == "square":
        return [(-1, -1), (1, -1), (1, 1), (-1, 1)]
    if kind == "triangle":
        return [_on_circle(i / 3, 1.0) for i in range(3)]
    if kind == "star":
        return [_on_circle(i / 10, 1.0 if i % 2 == 0 else 0.42) for i in range(10)]
    if kind == "heart":
        turns = [2 * math.pi * i / 72 for i in range(72)]
        return [
            (16 * math.sin(t) ** 3, -13 * math.cos(t) + 5 * math.cos(2 * t) + 2 * math.cos(3 * t) + math.cos(4 * t)) for t in turns
        ]
    a = 0.34  # cross: half the width of a bar
    return [(-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a), (a, 1), (-a, 1), (-a, a), (-1, a), (-1, -a), (-a, -a)]


def _on_circle(turn: float, radius: float) -> Point:
    """Point at a fraction of a turn, clockwise from the top."""
    return radius * math.sin(2 * math.pi * turn), -radius * math.cos(2 * math.pi * turn)


def _contrasting_color(rng: np.random.Generator, background: np.ndarray) -> str:
    names = [name for name, color in COLORS.items() if np.linalg.norm(np.array(color) - background) > CONTRAST]
    return names[rng.integers(0, len(names))]


def _apart(a: Shape, b: Shape) -> bool:
    ax0, ay0, ax1, ay1 = a.box
    bx0, by0, bx1, by1 = b.box
    free = max(ax0 - bx1, bx0 - ax1, ay0 - by1, by0 - ay1)
    return free > GAP and abs(a.center_x - b.center_x) > COLUMN_GAP


def coverage(outline: tuple[Point, ...], width: int, height: int) -> Image.Image:
    """An "L" picture: 255 where the outline covers a pixel wholly, less at its edge. Only its box is drawn."""
    xs, ys = zip(*outline, strict=True)
    left, top = max(math.floor(min(xs) * width), 0), max(math.floor(min(ys) * height), 0)
    right, bottom = min(math.ceil(max(xs) * width), width), min(math.ceil(max(ys) * height), height)
    large = Image.new("L", (max(right - left, 1) * SUPERSAMPLE, max(bottom - top, 1) * SUPERSAMPLE))
    points = [((x * width - left) * SUPERSAMPLE - 0.5, (y * height - top) * SUPERSAMPLE - 0.5) for x, y in outline]
    ImageDraw.Draw(large).polygon(points, fill=255)
    coverage = Image.new("L", (width, height))
    coverage.paste(large.reduce(SUPERSAMPLE), (left, top))
    return coverage


def _paint(image: Image.Image, coverage: Image.Image, color: tuple[int, int, int]) -> Image.Image:
    return Image.composite(Image.new("RGB", image.size, color), image, coverage)


def _vary(rng: np.random.Generator, color: str) -> tuple[int, int, int]:
    red, green, blue = np.clip(np.array(COLORS[color]) + rng.integers(-COLOR_SPREAD, COLOR_SPREAD + 1, size=3), 0, 255)
    return int(red), int(green), int(blue)


def _draw_number(rng: np.random.Generator, background: Image.Image, mean: np.ndarray) -> Scene:
    text = str(rng.integers(0, 10 ** int(rng.integers(1, 4))))
    width, height = background.size
    color = _contrasting_color(rng, mean)
    widest = ImageFont.load_default(100).getlength(text) / 100
    pixels = min(rng.uniform(0.4, 0.75) * min(width, height), 0.88 * width / widest)
    font = ImageFont.load_default(pixels)
    left, top, right, bottom = font.getbbox(text)
    x = rng.uniform(0.03 * width, 0.97 * width - (right - left)) - left
    y = rng.uniform(0.03 * height, 0.97 * height - (bottom - top)) - top
    coverage = Image.new("L", background.size)
    ImageDraw.Draw(coverage).text((x, y), text, fill=255, font=font)
    digits = []
    for i, digit in enumerate(text):
        x0, y0, x1, y1 = font.getbbox(digit)
        start = x + font.getlength(text[:i])
        corners = ((start + x0, y + y0), (start + x1, y + y0), (start + x1, y + y1), (start + x0, y + y1))
        digits.append(Shape(digit, color, tuple((cx / width, cy / height) for cx, cy in corners)))
    return Scene(_paint(background, coverage, _vary(rng, color)), (), tuple(digits))
