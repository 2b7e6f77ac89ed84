"""A picture for a prompt: a landscape in colours of its own, and in it what the prompt names."""

import hashlib
import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from demo.canvas import Canvas, Colour, Outline, mix


class Theme(NamedTuple):
    """The colours that one picture is made of."""

    zenith: Colour
    horizon: Colour
    far: Colour
    near: Colour
    light: Colour


def rgb(code: str) -> Colour:
    """Return the colour of six hexadecimal digits."""
    red, green, blue = bytes.fromhex(code)
    return red, green, blue


def theme(codes: str) -> Theme:
    """Return the theme of five colours, in the order of its fields."""
    return Theme(*map(rgb, codes.split()))


DAYS = [
    theme("7fb2e0 fde3cb b4b9d8 34547c fff3cf"),
    theme("6a5a9c ffc29a c98bab 3d2d58 ffe9b8"),
    theme("8fd0d6 f6f7e4 9ccbbd 1f565a fff6d0"),
    theme("f2b880 fff2dc e2a988 6d3f52 fffbea"),
    theme("b9a3d6 ffe7ea dba9c4 5a3b6b fff4e2"),
    theme("3f7f93 f7dfb0 8db3a2 21443f fff0bd"),
]
NIGHTS = [
    theme("0a1233 52659f 4c5c94 0b1230 fdf6dc"),
    theme("160f35 75558f 5c4a88 150f2e fff1d6"),
    theme("06202f 3f7c88 356f7c 06202b f6fbe4"),
]
COLOURS = {
    "red": rgb("d92b2b"),
    "green": rgb("6fae3a"),
    "blue": rgb("3b78d0"),
    "yellow": rgb("f5c833"),
    "orange": rgb("f28a2a"),
    "purple": rgb("8a4bbd"),
    "pink": rgb("f28ab2"),
    "white": rgb("f2f0ea"),
    "black": rgb("33323c"),
}
WHITE, INK, BARK = rgb("ffffff"), rgb("1c1030"), rgb("5b3a29")
SUN, MOON, SEA = "suns?", "moons?", "seas?|ocean|lake|bay|waves?"
HARBOUR = "harbou?rs?|port|marina|boats?|sail(?:boat|ing)?|ships?"
NIGHT = f"{MOON}|night|midnight|stars?|starry|dark|moonlit|moonlight"


@dataclass(frozen=True)
class Scene:
    """All that a part of the picture may depend on."""

    prompt: str
    canvas: Canvas
    dice: random.Random
    colours: Theme
    is_night: bool

    def colour_of(self, words: str, usual: Colour) -> Colour:
        """Return a thing's colour in the prompt: "red apple", "red juicy apple", "apple is red"."""
        hue = rf"\b({'|'.join(COLOURS)})\b"
        before = rf"{hue}\W+(?:\w+\W+)?(?:{words})\b"
        after = rf"\b(?:{words})\W+(?:(?:is|in)\W+)?{hue}"
        for pattern in (before, after):
            if found := re.search(pattern, self.prompt, re.IGNORECASE):
                return COLOURS[found[1].lower()]
        return usual

    def things(self) -> list[str]:
        """Return which of THINGS the prompt names."""
        return [words for words in THINGS if names(self.prompt, words)]


def names(prompt: str, words: str) -> bool:
    """Whether the prompt holds one of these words (a pattern) as a whole word."""
    return re.search(rf"\b(?:{words})\b", prompt, re.IGNORECASE) is not None


def ellipse(x: float, y: float, across: float, down: float | None = None) -> Outline:
    """Return an ellipse by its centre and its two radii; a circle where there is one."""
    height = across if down is None else down
    corners = 12 + int(6 * math.sqrt(max(across, height)))
    turns = [math.tau * step / corners for step in range(corners)]
    return [(x + across * math.cos(turn), y + height * math.sin(turn)) for turn in turns]


def points(text: str) -> Outline:
    """Read "x,y x,y" as an SVG polygon has it, in hundredths of the thing's size."""
    pairs = (pair.split(",") for pair in text.split())
    return [(int(x) / 100, int(y) / 100) for x, y in pairs]


def smooth(knots: Outline) -> Outline:
    """Return a closed curve through the knots (a Catmull-Rom spline)."""
    turned = [knots[start:] + knots[:start] for start in (-1, 0, 1, 2)]
    curve: Outline = []
    for near in zip(*turned, strict=True):
        for t in (step / 10 for step in range(10)):
            x, y = (
                b + (c - a + (2 * a - 5 * b + 4 * c - d + (3 * b - a - 3 * c + d) * t) * t) * t / 2
                for a, b, c, d in zip(*near, strict=True)
            )
            curve.append((x, y))
    return curve


def mirrored(half: Outline) -> Outline:
    """Return the outline whose right half this is."""
    return half + [(-x, y) for x, y in reversed(half)]


def placed(outline: Outline, x: float, y: float, size: float) -> Outline:
    """Return an outline moved to a place, `size` pixels for each of its units."""
    return [(x + size * a, y + size * b) for a, b in outline]


APPLE = smooth(mirrored(points("8,-66 30,-80 66,-82 97,-50 100,0 84,50 55,88 22,95 6,90")))
STEM = smooth(points("-4,-56 -2,-85 10,-112 19,-108 6,-82 4,-56"))
LEAF = smooth(points("5,-86 25,-114 55,-122 82,-110 62,-90 30,-82"))
VEIN = points("6,-87 45,-103 78,-109 45,-100")
GLEAM = smooth(points("-72,-10 -66,-42 -42,-62 -40,-50 -56,-30"))
TRUNK = mirrored(points("9,-20 8,50 12,86 26,102"))
WINGS = mirrored(points("0,10 30,-28 60,-36 100,-20 60,-28 30,-14 0,24"))
MAST = points("-2,-118 1,-118 1,0 -2,0")
MAINSAIL = points("1,-112 14,-80 28,-46 37,-13 2,-10")
JIB = points("-4,-100 -4,-12 -40,-10 -20,-50")
MIRRORED_SAIL = points("-3,10 30,14 2,75")
BOATS = ((0.3, 0.7, 0.15), (0.62, 0.66, 0.1), (0.48, 0.83, 0.24))  # x, y, size
HULL = points("-50,-8 50,-8 36,10 -34,10")


def fill_solid(canvas: Canvas, outline: Outline, focus: tuple[float, float], body: Colour) -> None:
    """Paint a rounded thing, dark at its rim and lighter towards the focus."""
    dark, light = mix(body, INK, 0.38), mix(body, rgb("fff0d8"), 0.16)
    (a, b), count = focus, 30
    for step in range(count):
        shrink = 1 - step / count
        inner = [(a + (x - a) * shrink, b + (y - b) * shrink) for x, y in outline]
        canvas.fill(inner, mix(dark, light, 1 - shrink**2))


def fill_soft(
    canvas: Canvas, x: float, y: float, across: float, down: float, colour: Colour, most: float
) -> None:
    """Paint an ellipse that fades out towards its rim, at its middle as opaque as `most` (0..1)."""
    for step in range(16):
        spot = ellipse(x, y, across * (1 - step / 16), down * (1 - step / 16))
        canvas.fill(spot, colour, alpha=most / 8 * (0.2 + step / 16))


def draw_glow(canvas: Canvas, x: float, y: float, size: float, colour: Colour) -> None:
    """Paint the light around a disc of this radius."""
    for step in range(26):
        reach = 1 + 1.9 * (1 - step / 26) ** 1.2
        canvas.fill(ellipse(x, y, size * reach), colour, alpha=0.008 + 0.001 * step)


def draw_sky(scene: Scene) -> None:
    """Paint the sky down to where it is sure to be hidden, with stars at night."""
    canvas, dice, colours = scene.canvas, scene.dice, scene.colours
    wide, end = float(canvas.width), canvas.height * 0.8
    canvas.fill([(0.0, 0.0), (wide, 0.0), (wide, end), (0.0, end)], colours.zenith, colours.horizon)
    for _ in range(90 if scene.is_night else 0):
        x, y = wide * dice.random(), canvas.height * 0.6 * dice.random()
        star = ellipse(x, y, canvas.unit * dice.uniform(0.0008, 0.0028))
        canvas.fill(star, WHITE, alpha=dice.uniform(0.3, 0.95))


def draw_sun(canvas: Canvas, x: float, y: float, size: float, body: Colour) -> None:
    """Paint the sun; its rays show where it is big."""
    draw_glow(canvas, x, y, size, mix(body, WHITE, 0.25))
    for step in range(20 if size > canvas.unit * 0.1 else 0):
        turn, side = math.tau * step / 20, math.tau / 52
        ray = ((1.15, turn - side), (1.75 if step % 2 else 1.5, turn), (1.15, turn + side))
        outline = [(reach * math.cos(angle), reach * math.sin(angle)) for reach, angle in ray]
        canvas.fill(placed(outline, x, y, size), body, alpha=0.75)
    canvas.fill(ellipse(x, y, size), mix(body, WHITE, 0.35), body)


def draw_moon(canvas: Canvas, x: float, y: float, size: float, body: Colour) -> None:
    """Paint a full moon with its grey seas."""
    draw_glow(canvas, x, y, size, body)
    canvas.fill(ellipse(x, y, size), mix(body, WHITE, 0.3), mix(body, INK, 0.08))
    centres = points("-35,-35 5,-50 35,-10 -45,20 10,45 55,35 -10,0")
    for (a, b), across in zip(centres, (30, 17, 22, 20, 26, 12, 13), strict=True):
        for reach in (across / 100, across / 125):
            spot = ellipse(x + a * size, y + b * size, reach * size)
            canvas.fill(spot, mix(body, INK, 0.5), alpha=0.1)


def draw_light(scene: Scene) -> float:
    """Paint the sun or the moon, big where the prompt names it; return its x."""
    canvas = scene.canvas
    words, draw_it = (MOON, draw_moon) if scene.is_night else (SUN, draw_sun)
    is_named = names(scene.prompt, words)
    usual = rgb("ffc93c") if is_named and not scene.is_night else scene.colours.light
    is_alone = is_named and not scene.things()
    x = canvas.width * (0.5 if is_alone else scene.dice.choice((0.22, 0.78)))
    size = canvas.unit * (0.17 if is_named else 0.06)
    y = max(canvas.height * 0.27, size * 1.75)
    draw_it(canvas, x, y, size, scene.colour_of(words, usual))
    return x


def draw_clouds(scene: Scene) -> None:
    """Paint three clouds: flat below, and above as high as the highest of their puffs."""
    canvas, dice = scene.canvas, scene.dice
    for place in range(3):
        x = canvas.width * (place + dice.random()) / 3
        y = canvas.height * (dice.uniform(0.1, 0.18) + 0.12 * (place * 2 % 3))
        tallest = dice.choice((-0.2, 0.0, 0.2))
        puffs = [(b / 5, dice.uniform(0.22, 0.36)) for b in range(-5, 6, 2)] + [(tallest, 0.52)]
        crest = [
            (a, -math.sqrt(max(0.0, *(reach**2 - (a - b) ** 2 for b, reach in puffs))))
            for a in (step / 40 for step in range(-60, 61))
        ]
        size = canvas.unit * dice.uniform(0.09, 0.16)
        canvas.fill(placed(crest, x, y, size), mix(scene.colours.horizon, WHITE, 0.55), alpha=0.8)


def draw_birds(scene: Scene) -> None:
    """Paint a small flock."""
    canvas, dice = scene.canvas, scene.dice
    x, y = canvas.width * dice.uniform(0.2, 0.7), canvas.height * dice.uniform(0.15, 0.3)
    for _ in range(5):
        spot = x + canvas.unit * dice.gauss(0, 0.09), y + canvas.unit * dice.gauss(0, 0.05)
        bird = placed(WINGS, *spot, canvas.unit * dice.uniform(0.013, 0.026))
        canvas.fill(bird, mix(scene.colours.near, INK, 0.3), alpha=0.7)


def draw_hills(scene: Scene, levels: list[float], swell: float = 0.055) -> None:
    """Paint a range of hills at each level (shares of the height), the far ones first."""
    width, height, dice = scene.canvas.width, scene.canvas.height, scene.dice
    stretch = 4.5 * math.sqrt(width / height)
    lift = swell * min(height, width * 1.3)
    for place, level in enumerate(levels, 1):
        waves = [
            (lift * dice.uniform(0.4, 1) / pace, stretch * pace * dice.uniform(0.7, 1.3), shift)
            for pace, shift in ((1, dice.random() * 9), (2, dice.random() * 9), (4.5, 0.0))
        ]
        crest = [
            (width * at, height * level + sum(a * math.sin(f * at + p) for a, f, p in waves))
            for at in (step / 160 for step in range(161))
        ]
        depth = place / len(levels)
        top = mix(scene.colours.far, scene.colours.near, depth)
        mist = mix(top, scene.colours.horizon, 0.53 - 0.45 * depth)
        scene.canvas.fill([*crest, (width, height + 1.0), (0.0, height + 1.0)], top, mist)


def draw_sea(scene: Scene, body: Colour, light_x: float) -> None:
    """Paint the water with its waves, and on it the path of the light."""
    canvas, dice, unit = scene.canvas, scene.dice, scene.canvas.unit
    width, height = float(canvas.width), canvas.height + 1.0
    shore, far = canvas.height * 0.6, mix(body, scene.colours.horizon, 0.6)
    canvas.fill([(0.0, shore), (width, shore), (width, height), (0.0, height)], far, body)
    for step in range(110):
        near = (step / 110) ** 1.4
        x, y = width * dice.random(), shore + (height - shore) * near
        across, thick = unit * (0.03 + 0.12 * near), unit * (0.0008 + 0.0045 * near)
        shade = dice.choice((mix(body, INK, 0.45), mix(far, WHITE, 0.3)))
        canvas.fill(ellipse(x, y, across * dice.uniform(0.5, 1.6), thick), shade, alpha=0.28)
        if step % 2:
            x = light_x + unit * (0.012 + 0.09 * near) * dice.gauss(0, 1)
            glint = ellipse(x, y, across * dice.uniform(0.2, 0.6), thick)
            canvas.fill(glint, scene.colours.light, alpha=0.6)


def draw_boat(scene: Scene, x: float, y: float, size: float) -> None:
    """Paint a sailing boat that floats at a place, with its reflection."""
    canvas, colours = scene.canvas, scene.colours
    hull, sail = mix(colours.near, INK, 0.4), mix(colours.light, WHITE, 0.4)
    shaded = mix(sail, colours.far, 0.35)
    canvas.fill(ellipse(x, y + size * 0.1, size * 0.5, size * 0.06), hull, alpha=0.35)
    canvas.fill(placed(MIRRORED_SAIL, x, y, size), sail, alpha=0.22)
    canvas.fill(placed(MAST, x, y, size), hull)
    canvas.fill(placed(MAINSAIL, x, y, size), sail, shaded)
    canvas.fill(placed(JIB, x, y, size), shaded, mix(sail, colours.far, 0.5))
    canvas.fill(placed(HULL, x, y, size), hull)


def draw_apple(canvas: Canvas, x: float, y: float, size: float, body: Colour) -> None:
    """Paint an apple with its stem and a leaf."""
    fill_solid(canvas, placed(APPLE, x, y, size), (x - size * 0.2, y - size * 0.15), body)
    fill_soft(canvas, x, y - size * 0.58, size * 0.32, size * 0.11, mix(body, INK, 0.7), 0.7)
    canvas.fill(placed(STEM, x, y, size), mix(BARK, WHITE, 0.15), BARK)
    canvas.fill(placed(LEAF, x, y, size), rgb("9ccb56"), rgb("4d8a35"))
    canvas.fill(placed(VEIN, x, y, size), rgb("dcefa8"), alpha=0.7)
    canvas.fill(placed(GLEAM, x, y, size), WHITE, alpha=0.5)


def draw_heart(canvas: Canvas, x: float, y: float, size: float, body: Colour) -> None:
    """Paint a heart: x = sin^3 t, y = -(13 cos t - 5 cos 2t - 2 cos 3t - cos 4t) / 16."""
    waves = ((-13, 1), (5, 2), (2, 3), (1, 4))
    heart = [
        (math.sin(t) ** 3, sum(a * math.cos(f * t) for a, f in waves) / 16)
        for t in (math.tau * step / 160 for step in range(160))
    ]
    fill_solid(canvas, placed(heart, x, y, size), (x - size * 0.08, y - size * 0.1), body)
    canvas.fill(placed(GLEAM, x - size * 0.1, y - size * 0.05, size * 0.9), WHITE, alpha=0.45)


def draw_tree(canvas: Canvas, x: float, y: float, size: float, body: Colour) -> None:
    """Paint a leafy tree."""
    canvas.fill(placed(TRUNK, x, y, size), mix(BARK, INK, 0.3), BARK)
    crown = points("-50,8 50,6 0,12 -56,-32 56,-34 0,-20 -30,-64 30,-66 0,-85 -5,-42")
    leaves = placed(crown, x, y, size)
    for shift, reach, shade in ((0.0, 0.38, mix(body, INK, 0.3)), (0.035, 0.34, body)):
        for a, b in leaves:
            canvas.fill(ellipse(a - shift * size, b - shift * size, reach * size), shade)
    for a, b in leaves:
        reach = size * 0.26
        fill_soft(canvas, a - size * 0.1, b - size * 0.12, reach, reach, rgb("fff6c0"), 0.2)


Draw = Callable[[Canvas, float, float, float, Colour], None]
THINGS: dict[str, tuple[Draw, float, Colour]] = {  # what draws it, its lift off the ground, colour
    "apples?": (draw_apple, 0.93, COLOURS["red"]),
    "trees?": (draw_tree, 1.0, rgb("5f9a4a")),
    "hearts?": (draw_heart, 1.25, rgb("e0405f")),
}


def draw_things(scene: Scene) -> None:
    """Paint the things that the prompt names, side by side."""
    canvas, wanted = scene.canvas, scene.things()
    room, ground = canvas.width / max(len(wanted), 1), canvas.height * 0.89
    size = min(canvas.height * 0.31, room * 0.36)
    for place, words in enumerate(wanted):
        draw_thing, lift, usual = THINGS[words]
        x = room * (place + 0.5)
        fill_soft(canvas, x + size * 0.1, ground, size * 1.25, size * 0.2, INK, 0.5)
        draw_thing(canvas, x, ground - size * lift, size, scene.colour_of(words, usual))


def draw_land(scene: Scene, light_x: float) -> None:
    """Paint what lies below the sky: hills, or water where the prompt names some."""
    if not names(scene.prompt, f"{SEA}|{HARBOUR}"):
        # Things stand on a wide last hill.
        draw_hills(scene, [0.53, 0.6, 0.68, 0.78] + [0.92] * (not scene.things()))
        return
    draw_hills(scene, [0.57, 0.59], swell=0.028)
    usual = mix(scene.colours.near, scene.colours.zenith, 0.35)
    draw_sea(scene, scene.colour_of(SEA, usual), light_x)
    for x, y, size in BOATS if names(scene.prompt, HARBOUR) else ():
        spot = scene.canvas.width * x, scene.canvas.height * y
        draw_boat(scene, *spot, scene.canvas.unit * size)


def draw(prompt: str, width: int, height: int, seed: int = 0) -> bytes:
    """Return a PNG of `width` by `height` pixels; the same one for the same arguments."""
    digest = hashlib.sha256(f"{seed} {prompt}".encode("utf-8", "surrogatepass")).digest()
    dice = random.Random(int.from_bytes(digest))
    is_night = names(prompt, NIGHT)
    colours = dice.choice(NIGHTS if is_night else DAYS)
    scene = Scene(prompt, Canvas(width, height), dice, colours, is_night)
    draw_sky(scene)
    light_x = draw_light(scene)
    if not is_night:
        draw_clouds(scene)
        draw_birds(scene)
    draw_land(scene, light_x)
    draw_things(scene)
    return scene.canvas.png()
