"""The films of a phantom: a frontal and a lateral chest radiograph, drawn from a list of findings.

A film is a sum of densities (0 air, 1 metal) on a canvas. Lengths are in image widths: x from -0.5 to 0.5,
y from 0 at the top to 1. The film is drawn upright and symmetric, then posed (shift, scale, tilt) and exposed.
As on a light box, the patient's right is on the image's left: right is x < 0. On the lateral view the patient
faces left.

This file has the anatomy and the sample's ten findings; drawing_iu.py adds those of IU X-ray.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

MARGIN = 0.08  # canvas beyond each edge of the film, room for the pose
SIGN = {"right": -1, "left": 1}
# Ten of the FINDINGS in metrics/findings.py. A finding's index here seeds its drawing: keep the order.
DRAWN = ("cardiomegaly", "effusion", "pneumothorax", "consolidation", "nodule", "granuloma", "atelectasis",
         "hyperinflation", "scoliosis", "device")
ZONE_Y = {"upper": 0.27, "mid": 0.45, "lower": 0.62}
ZONE_X = {"upper": 0.19, "mid": 0.23, "lower": 0.25}  # distance from the midline
ZONE_DEPTH = {"upper": 0.02, "mid": -0.08, "lower": 0.12}  # x on the lateral view
FOCAL = ("consolidation", "nodule", "granuloma")
# Severity -> the range of a finding's size and density, and the factor for findings of the whole chest.
SEVERITY = {"mild": ((0.2, 0.5), 0.7), "moderate": ((0.4, 0.8), 1.0), "severe": ((0.75, 1.0), 1.3)}


@dataclass(frozen=True)
class Finding:
    """name: one of DRAWN. side: left, right, bilateral or None. zone: upper, mid, lower or None. severity: one of
    SEVERITY; None, as in the sample, is any.

    The side of a device is its kind: left is a pacemaker, right a venous catheter, None sternotomy wires.
    """

    name: str
    side: str | None = None
    zone: str | None = None
    severity: str | None = None


class Extra(NamedTuple):
    """How to draw a finding that is not one of DRAWN. on_film(film, view, finding, traits) adds it to a film;
    view has the `body` and its masks `lung`, `chest`, `r` and `spine`, and says whether it is `lateral`.
    on_body(body, finding, traits) changes the anatomy before anything is drawn."""

    on_film: Callable | None = None
    on_body: Callable | None = None


class Film:
    """A canvas of densities, float32 (n, n), and the tools to draw on it; lengths are in image widths."""

    def __init__(self, size: int):
        self.size, self.n = size, round(size * (1 + 2 * MARGIN))
        axis = ((np.arange(self.n) + 0.5) / size - MARGIN).astype(np.float32)
        self.x, self.y = axis[None, :] - np.float32(0.5), axis[:, None]      # (1, n), (n, 1)
        self.density = np.zeros((self.n, self.n), np.float32)

    def ellipse(self, x, y, rx, ry, amount, edge=0.2, tilt=0.0, inside=None, at_least=False):
        """Add an ellipse whose rim fades over `edge` radii. at_least: raise to `amount` instead of adding it."""
        reach = max(rx, ry) * (1 + edge)
        rows, cols = (slice(*(min(max(round((c - reach + MARGIN) * self.size), 0), self.n),
                              min(max(round((c + reach + MARGIN) * self.size) + 1, 0), self.n)))
                      for c in (y, x + 0.5))
        dx, dy = self.x[:, cols] - np.float32(x), self.y[rows] - np.float32(y)
        c, s = np.float32(math.cos(tilt)), np.float32(math.sin(tilt))
        r = np.sqrt(((c * dx + s * dy) / np.float32(rx)) ** 2 + ((c * dy - s * dx) / np.float32(ry)) ** 2)
        mask = ramp((1 - r) / np.float32(edge))
        if inside is not None:
            mask *= inside[rows, cols]
        region = self.density[rows, cols]                                    # a view: += draws on the canvas
        region += mask * (np.clip(amount - region, 0, None) if at_least else np.float32(amount))

    def strokes(self, lines, blur, inside=None):
        """Add lines, each ([(x, y), ...], width, density). blur: in pixels of a film of 224 pixels."""
        image = Image.new("L", (self.n, self.n))
        pen = ImageDraw.Draw(image)
        for points, width, amount in lines:
            pen.line([((x + 0.5 + MARGIN) * self.size, (y + MARGIN) * self.size) for x, y in points],
                     fill=round(255 * amount), width=max(1, round(width * self.size)), joint="curve")
        ink = np.asarray(image.filter(ImageFilter.BoxBlur(blur * self.size / 224))).astype(np.float32) / 255
        self.density += ink if inside is None else ink * inside

    def raise_to(self, amount, mask):
        """Raise every density under `mask` (n, n) to `amount`, as a solid organ does."""
        self.density += mask * np.clip(np.float32(amount) - self.density, 0, None)

    def expose(self, pose, rng) -> np.ndarray:
        """The finished film: posed, exposed, with grain; uint8 (size, size)."""
        c, s = math.cos(pose.tilt) / pose.scale, math.sin(pose.tilt) / pose.scale
        half, middle = self.size / 2, self.n / 2
        dx, dy = half + pose.x * self.size, half + pose.y * self.size
        image = Image.fromarray(self.density).transform(
            (self.size, self.size), Image.Transform.AFFINE,
            (c, s, middle - c * dx - s * dy, -s, c, middle + s * dx - c * dy), Image.Resampling.BILINEAR)
        tone = np.clip(np.asarray(image), 0, 1) ** np.float32(pose.gamma)
        tone += np.float32(pose.contrast) * (tone * tone * (3 - 2 * tone) - tone)                 # a film's S-curve
        across = np.linspace(-0.5, 0.5, self.size, dtype=np.float32)
        tone = tone * np.float32(pose.gain) + np.float32(pose.offset) + np.float32(pose.uneven_x) * across \
            + np.float32(pose.uneven_y) * across[:, None]
        image = Image.fromarray((np.clip(tone, 0, 1) * 255).astype(np.uint8))
        film = np.asarray(image.filter(ImageFilter.GaussianBlur(pose.blur * self.size / 224))).astype(np.float32)
        n = max(1, round(self.size / pose.grain_size))
        grain = Image.fromarray(rng.standard_normal((n, n), dtype=np.float32))
        film += np.float32(255 * pose.grain) * np.asarray(grain.resize(film.shape, Image.Resampling.BILINEAR))
        film = Image.fromarray(np.clip(film, 0, 255).astype(np.uint8))
        pen, at = ImageDraw.Draw(film), lambda x: round(x * self.size)
        pen.line([(at(x), at(y)) for x, y in pose.marker], fill=235, width=max(1, at(0.008)))
        for edge, width in enumerate(pose.border):                        # collimation: left, top, right, bottom
            if at(width):
                pen.rectangle(_border(edge, at(width), self.size), fill=pose.border_tone)
        return np.asarray(film)


def _border(edge, width, size):
    """The rectangle of an edge of the film (0 left, 1 top, 2 right, 3 bottom), `width` pixels wide."""
    return ((0, 0, width - 1, size), (0, 0, size, width - 1), (size - width, 0, size, size),
            (0, size - width, size, size))[edge]


def ramp(t):
    """0 below -1, 1 above 1, smooth between."""
    t = np.clip(t * np.float32(0.5) + np.float32(0.5), 0, 1)
    return t * t * (3 - 2 * t)


def draw(
    findings: tuple[Finding, ...], rng: np.random.Generator, size: int = 224, extra: Mapping[str, Extra] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The frontal and the lateral film, uint8 (size, size). Equal rngs give the same body and pose whatever
    the findings are, so the films differ only in the findings. extra: findings beyond DRAWN, by name."""
    extra = extra or {}
    names = (*DRAWN, *extra)
    body_seed, findings_seed, frontal_seed, lateral_seed = rng.integers(2**32, size=4)
    body = _body(findings, np.random.default_rng(body_seed))
    # four numbers in [0, 1) per finding, shared by both views: size, position (2), density
    traits = {f: _graded(np.random.default_rng((findings_seed, names.index(f.name))).random(4), f.severity)
              for f in findings}
    for finding, t in traits.items():
        if finding.name in extra and (on_body := extra[finding.name].on_body):
            on_body(body, finding, t)
    return _frontal(body, traits, np.random.default_rng(frontal_seed), size, extra), \
        _lateral(body, traits, np.random.default_rng(lateral_seed), size, extra)


def _graded(traits, severity):
    """The traits with size and density in the part of their range that the severity takes."""
    if severity is not None:
        (low, high), _ = SEVERITY[severity]
        traits[[0, 3]] = low + (high - low) * traits[[0, 3]]
    return traits


def _body(findings, rng) -> SimpleNamespace:
    """The anatomy of one patient, with the findings that change the whole film."""
    u = rng.uniform
    amount: dict[str, float] = {}
    for f in findings:
        amount[f.name] = max(amount.get(f.name, 0), SEVERITY[f.severity or "moderate"][1])
    body = SimpleNamespace(
        half=u(0.30, 0.40), apex=u(0.07, 0.16), base=u(0.64, 0.785), dome=u(0.05, 0.10), air=u(0.52, 0.76),
        lung_top=u(0.32, 0.40), ribs=u(0.065, 0.085), rib_slope=u(0.7, 1.3), rib_at=u(0, 0.07), rib=u(0.03, 0.11),
        front_rib=u(0.25, 0.8), width=u(0.93, 1.18), soft=u(0.40, 0.58), belly=u(0.12, 0.42), center=u(0.56, 0.72),
        breast=u(0.05, 0.30) * (u() < 0.6), breast_y=u(0.55, 0.78), breast_size=u(0.11, 0.19), haze=u(0, 0.22),
        arms=u(0.1, 0.4) * (u() < 0.5), aorta=u(0.026, 0.042), hilum=u(0.09, 0.24), vessels=u(0.5, 1.5),
        bend=u(-0.008, 0.008), turn=u(-0.022, 0.022), bubble=u(0.012, 0.055), gas=u(-0.45, -0.1),
        clavicle=u(-0.02, 0.02), spine=u(0.06, 0.15), fat=u(0.0, 0.05), left=u(0.0, 0.04), depth=u(0.92, 1.15))
    # the heart's width as a share of the chest's; a short breath lays a normal heart wider on the diaphragm
    body.heart = u(0.38, 0.46) + 0.25 * max(0, 0.72 - body.base) + 0.6 * abs(body.turn)
    big, bend, bend_side, low, flat = u(0.58, 0.74), u(0.04, 0.065), u(-1, 1), u(0.815, 0.87), u(0.15, 0.35)
    if "cardiomegaly" in amount:
        body.heart = big + 0.15 * (amount["cardiomegaly"] - 1)
    if "scoliosis" in amount:
        convex = next((SIGN[f.side] for f in findings if f.name == "scoliosis" and f.side in SIGN), bend_side)
        body.bend, body.spine = math.copysign(bend * amount["scoliosis"], convex), 0.06 + body.spine
    if "hyperinflation" in amount:
        more = amount["hyperinflation"]
        body.base, body.dome, body.air = low + 0.1 * (more - 1), body.dome * flat / more, min(body.air + 0.10, 0.8)
        body.ribs, body.rib_slope, body.heart = body.ribs * 1.15, body.rib_slope * 0.5, body.heart * 0.93
    return body


def _pose(rng, lateral=False) -> SimpleNamespace:
    """How the patient stands and how the film is exposed, marked and cropped."""
    u = rng.uniform
    pose = SimpleNamespace(
        x=rng.normal(0, 0.02), y=rng.normal(0, 0.02), scale=u(0.92, 1.08), tilt=rng.normal(0, 0.03),
        gamma=u(0.6, 1.25), contrast=u(0.0, 0.7), gain=u(0.85, 1.18), offset=u(-0.05, 0.08),
        uneven_x=rng.normal(0, 0.05), uneven_y=rng.normal(0, 0.07), blur=u(0.0, 1.0), grain=u(0.003, 0.025),
        grain_size=u(1, 2.5), border=u(-0.12, 0.06, 4).clip(0), border_tone=0 if u() < 0.85 else round(u(100, 255)))
    letter, shown, size, right = u() < 0.5, u() < 0.6, u(0.02, 0.045), u(0.02, 0.14)
    x, y = (1 - right - size if letter else right), u(0.03, 0.2 if u() < 0.7 else 0.9)
    shape = ((0, 0), (0, 1), (0.6, 1)) if letter or lateral else \
        ((0, 1), (0, 0), (0.6, 0.1), (0.6, 0.4), (0, 0.5), (0.6, 1))                               # L or R
    pose.marker = [(x + size * dx, y + size * dy) for dx, dy in shape] if shown else []
    return pose


def _mottle(film, rng, amount):
    """Soft uneven tissue: coarse noise, enlarged; float32 (n, n)."""
    coarse = rng.standard_normal((14, 14), dtype=np.float32) * np.float32(amount)
    return np.asarray(Image.fromarray(coarse).resize((film.n, film.n), Image.Resampling.BICUBIC))


def _frontal(body, traits, rng, size, extra) -> np.ndarray:
    film, pose = Film(size), _pose(rng)
    x, y = film.x, film.y
    ax, side = np.abs(x), np.sign(x)
    # the body: neck, shoulders, trunk; then the lungs are cut out of it
    edge = body.width * np.interp(y, (0, 0.06, 0.13, 0.22, 0.6, 1), (0.14, 0.2, 0.36, 0.5, 0.455, 0.46))
    film.density += np.float32(body.soft) * ramp((edge.astype(np.float32) - ax) / np.float32(0.03))
    spine = np.float32(body.bend) * np.sin((y - 0.1) * np.float32(2 * math.pi / 0.95)) + np.float32(0.002)
    turned = x - np.float32(body.turn) - spine               # a rotated or bent chest: what is in front moves too
    top = np.float32(body.lung_top)
    center = np.float32(0.19) + np.float32(0.4) * np.clip(y - top, 0, 0.06)                   # (n, 1) axis of the lung
    across = (ax - center) / np.where(ax > center, body.half - center + 0.05 * (y - top), 0.15).astype(np.float32)
    up = np.clip(top - y, 0, None) / np.float32(body.lung_top - body.apex)
    r = np.sqrt(across * across + up * up)                                  # 1 on the chest wall and at the apex
    floor = body.base + body.left * (side > 0) + body.dome * ((ax - 0.17) / (body.half - 0.17)) ** 2  # (1, n) the domes
    above = ramp((floor.astype(np.float32) - y) / np.float32(0.008))
    chest = ramp((1 - r) / np.float32(0.045)) * ramp((floor.astype(np.float32) + 0.012 - y) / np.float32(0.008))
    lung = chest * above
    film.density *= 1 - np.float32(body.air) * lung * (1 + np.float32(2 * body.turn) * side)
    film.density += (1 - above) * (ax < edge) * np.float32(body.belly) + _mottle(film, rng, 0.02)
    film.density += lung * np.float32(body.haze) * np.clip((y - 0.35) / np.float32(0.4), 0, 1) ** 2

    # bones
    cage = ramp((body.half + 0.02 - ax) / np.float32(0.02)) * ramp((0.9 - y) / np.float32(0.05)) \
        * ramp((y - 0.08) / np.float32(0.03)) * (ax > 0.045)
    back = (y - body.rib_at - body.rib_slope * (ax - 0.08) ** 2 * 1.5) / body.ribs
    front = (y - body.rib_at - 0.02 + body.rib_slope * 0.55 * (ax - 0.1)) / (body.ribs * 1.1)
    for phase, weight in ((back, 1.0), (front, body.front_rib)):
        wave = np.cos(phase.astype(np.float32) * np.float32(2 * math.pi))
        film.density += np.float32(body.rib * weight) * cage * ramp((wave - 0.35) * 3) * (0.4 + 0.6 * lung)
    c, t = 0.135 + body.clavicle, body.turn
    film.strokes([([(s * 0.035 + 2 * t, c + 0.05), (s * 0.12 + t, c + 0.025), (s * 0.22, c), (s * 0.38, c - 0.035)],
                   0.022, 0.12) for s in (-1, 1)], 2)
    for s in (-1, 1):                                                                  # shoulders, arms, breasts
        film.ellipse(s * 0.44, 0.13 + body.clavicle, 0.06, 0.07, 0.14, edge=0.4)
        film.ellipse(s * 0.36, 0.26, 0.05, 0.13, 0.09, edge=0.5, tilt=s * 0.25)
        film.ellipse(s * 0.53, 0.55, 0.1, 0.36, body.arms, edge=0.2, tilt=-s * 0.12)
        size = body.breast_size
        film.ellipse(s * 0.23, body.breast_y, size * 1.15, size, body.breast, edge=0.35)

    # heart, great vessels, airways, lung markings
    for s in (-1, 1):
        film.ellipse(s * 0.085, 0.45, 0.035, 0.06, body.hilum, edge=0.9)                       # hilum
    white, low = body.center, body.base + 0.02
    film.raise_to(white, ramp((0.055 - np.abs(turned)) / np.float32(0.014)) * ramp((y - 0.1) / np.float32(0.08)))
    film.ellipse(0.055 + t, 0.335, body.aorta, body.aorta * 1.2, white, edge=0.35, at_least=True)
    # the heart lies on the diaphragm: a third of it right of the midline, two thirds left
    w = 2 * body.half * body.heart
    rx, ry, tilt = 0.44 * w, 0.09 + 0.1 * w, 0.45
    reach = math.hypot(rx * math.cos(tilt), ry * math.sin(tilt))
    drop = math.hypot(ry * math.cos(tilt), rx * math.sin(tilt))
    film.ellipse(0.66 * w - reach + t, low + 0.02 - drop, rx, ry, white, 0.12, tilt, at_least=True)
    film.ellipse(0.0 + t, low - 0.115, 0.34 * w, 0.125, white, edge=0.15, at_least=True)       # right atrium
    film.ellipse(0.035 + t, 0.44, 0.06, 0.1, white, edge=0.5, at_least=True)                   # pulmonary trunk
    film.ellipse(0.62 * w + t, low, body.fat, body.fat, white - 0.1, edge=0.8, at_least=True)  # fat at the apex
    # the spine shows through the heart
    blocks = 0.75 + 0.25 * np.cos(y * np.float32(2 * math.pi / 0.062))
    film.density += np.float32(body.spine) * blocks * ramp((0.042 - np.abs(x - spine)) / np.float32(0.009))
    air = [([(0.0 + t, 0.0), (0.004 + t, 0.2), (0.0, 0.385)], 0.03, 0.14),
           ([(0.0, 0.38), (-0.05, 0.43)], 0.018, 0.1), ([(0.0, 0.38), (0.065, 0.44)], 0.018, 0.1)]
    film.density *= -1                                                                         # air subtracts
    film.strokes(air, 2)
    film.density *= -1
    gas = ramp((y - np.float32(body.base + 0.045)) / np.float32(0.01))                        # in the stomach
    film.ellipse(0.17, body.base + 0.08, 0.085, body.bubble, body.gas, edge=0.35, inside=gas * (1 - above))

    aerated = lung                                                  # the lung that is not collapsed has vessels
    for finding, t in traits.items():
        if finding.name == "pneumothorax":
            aerated = _collapse(film, finding, t, lung, r)
    film.strokes(_vessels(rng, body), 0.8, aerated)

    for finding, t in traits.items():
        sides = (-1, 1) if finding.side == "bilateral" else (SIGN.get(finding.side, 0),)
        for s in sides:
            if finding.name == "effusion":
                # the surface climbs to the chest wall; little fluid only blunts the angle there
                rise = (0.07 + 0.03 * t[2]) * (np.clip(ax - 0.1, 0, None) / (body.half - 0.1)) ** 2
                level = (_fluid_level(body, t, s) - rise).astype(np.float32)
                soft = np.float32(0.008 + 0.015 * t[3])
                film.raise_to(body.soft + body.belly, chest * (x * s > 0.03) * ramp((y - level) / soft))
            elif finding.name == "atelectasis":
                low = min([body.base] + [_fluid_level(body, v, s) for f, v in traits.items()
                                         if f.name == "effusion" and f.side in (finding.side, "bilateral")])
                at = min(low, body.base) - 0.045 if finding.zone == "lower" else ZONE_Y[finding.zone]
                _bands(film, s * 0.22, at, s, t)
            elif finding.name in FOCAL:
                px, py = s * (ZONE_X[finding.zone] + 0.06 * (t[1] - 0.5)), ZONE_Y[finding.zone] + 0.08 * (t[2] - 0.5)
                opacity(film, finding.name, px, py, t, lung)
    if (device := next((f for f in traits if f.name == "device"), None)) is not None:
        film.strokes(frontal_device(device.side, traits[device]), 0.4)
    _draw_extra(film, extra, traits, body=body, lateral=False, lung=lung, chest=chest, r=r, spine=spine)
    return film.expose(pose, rng)


def _fluid_level(body, t, s) -> float:
    """y of an effusion's surface above the dome on side s."""
    return body.base + body.left * (s > 0) + 0.015 - 0.26 * t[0] ** 1.7


def _collapse(film, finding, t, lung, r):
    """Darken the rim of one lung and draw the lung's edge; returns `lung` without the collapsed rim."""
    depth = (0.17 + 0.24 * t[0]) * np.clip((0.62 - film.y) / 0.35, 0, 1).astype(np.float32)      # (n, 1)
    this_side = film.x * SIGN[finding.side] > 0
    inner = (1 - depth) - r                                                     # above 0: still lung
    rim = lung * this_side * ramp(-inner / np.float32(0.03)) * (depth > 0.01)
    film.density *= 1 - np.float32(0.4 + 0.2 * t[1]) * rim
    film.density += np.float32(0.12 + 0.1 * t[2]) * lung * this_side * (depth > 0.02) \
        * np.clip(1 - np.abs(inner) / np.float32(0.045), 0, 1)
    return lung * (1 - rim)


def _vessels(rng, body):
    """Vessels that fan out from both hila, as lines for Film.strokes."""
    lines = []
    for s in (-1, 1):
        for angle in np.linspace(-1.35, 1.3, 10) + rng.normal(0, 0.1, 10):
            x, y, points = 0.075, 0.45, [(s * 0.075, 0.45)]
            for step in range(4):
                x, y = x + 0.055 * math.cos(angle), y + 0.07 * math.sin(angle)
                angle += 0.12 * rng.standard_normal()
                points.append((s * x, y))
                lines.append((points[-2:], 0.013 - 0.003 * step, body.vessels * (0.11 - 0.022 * step)))
    return lines


def opacity(film, name, x, y, t, lung):
    """A focal opacity in the lung. The three kinds differ in size, edge and density."""
    if name == "nodule":
        radius = 0.020 + 0.018 * t[0]
        film.ellipse(x, y, radius, radius * (0.9 + 0.2 * t[3]), 0.19 + 0.13 * t[3], edge=0.3)
    elif name == "granuloma":
        radius = 0.0115 + 0.004 * t[0]
        film.ellipse(x, y, radius, radius, 0.48 + 0.16 * t[3], edge=0.2)
    else:
        radius = 0.05 + 0.045 * t[0]
        for dx, dy, part in ((0, 0, 1), (0.7, 0.3, 0.7), (-0.4, -0.6, 0.7), (0.1, 0.8, 0.6)):
            film.ellipse(x + dx * radius * (t[1] - 0.2), y + dy * radius, radius * part, radius * part * 0.9,
                         0.13 + 0.10 * t[3], edge=0.75, inside=lung)


def _bands(film, x, y, slope, t):
    """Plate atelectasis: two thin bands above the diaphragm."""
    y, reach = y - 0.02 * t[2], 0.055 + 0.02 * t[0]
    film.strokes([([(x - reach, y - slope * 0.02), (x + reach, y + slope * 0.02)], 0.011, 0.24 + 0.12 * t[3]),
                  ([(x - 0.6 * reach, y - 0.03), (x + 0.7 * reach, y - 0.03 + slope * 0.015)], 0.008,
                   0.18 + 0.1 * t[3])], 0.7)


def frontal_device(side, t):
    if side == "left":          # pacemaker: a can below the clavicle, a lead to the right ventricle
        x, y = 0.27 + 0.03 * t[1], 0.23 + 0.03 * t[2]
        return [([(x - 0.035, y), (x + 0.035, y)], 0.06, 0.6),
                ([(x, y), (x - 0.04, y - 0.07), (0.1, 0.2), (-0.02, 0.3), (-0.045, 0.5), (0.0, 0.64), (0.1, 0.68)],
                 0.009, 0.5)]
    if side == "right":         # central venous catheter: from the neck or the arm into the superior vena cava
        start = [(-0.09, 0.0), (-0.075, 0.12)] if t[1] < 0.5 else [(-0.45, 0.22), (-0.25, 0.16), (-0.1, 0.17)]
        return [(start + [(-0.045, 0.26), (-0.035, 0.42 + 0.08 * t[2])], 0.012, 0.5)]
    return [(ring(0.005 * (-1) ** k, 0.3 + 0.07 * k + 0.03 * t[2], 0.017), 0.008, 0.55) for k in range(6)]


def ring(x, y, radius):
    return [(x + radius * math.cos(a), y + 0.6 * radius * math.sin(a)) for a in np.linspace(0, 6.3, 9)]


def _lateral(body, traits, rng, size, extra) -> np.ndarray:
    film, pose = Film(size), _pose(rng, lateral=True)
    x, y = film.x / np.float32(body.depth), film.y
    names = {f.name for f in traits}
    hyperinflated = "hyperinflation" in names
    front = np.interp(y, (0, 0.12, 0.3, 0.7, 1), (-0.16, -0.2, -0.33, -0.37, -0.36)).astype(np.float32)
    film.density += np.float32(body.soft) * ramp((x - front) / np.float32(0.03)) * ramp((0.42 - x) / np.float32(0.03))
    # the lungs overlap, between breastbone and spine
    across = (x + 0.02) / np.where(x < -0.02, 0.26 + 0.03 * hyperinflated, 0.27).astype(np.float32)
    up = np.clip(0.42 - y, 0, None) / np.float32(0.42 - body.apex)
    r = np.sqrt(across * across + up * up)
    floor = body.base + 0.02 + 0.25 * x + 1.6 * body.dome * ((x + 0.02) / 0.27) ** 2
    above = ramp((floor.astype(np.float32) - y) / np.float32(0.01))
    chest = ramp((1 - r) / np.float32(0.05)) * ramp((floor.astype(np.float32) + 0.014 - y) / np.float32(0.01))
    lung = chest * above
    film.density *= 1 - np.float32(body.air - 0.06) * lung
    film.density += (1 - above) * (x > front) * (x < 0.42) * np.float32(body.belly) + _mottle(film, rng, 0.02)
    film.density += lung * np.float32(body.haze + body.breast * 0.5) * np.clip((y - 0.45) / np.float32(0.4), 0, 1)
    spine = 0.25 + 0.05 * np.sin((y - 0.1) * np.float32(math.pi)) - 0.03
    rotated = "scoliosis" in names                                   # a rotated spine hides its discs
    blocks = 0.75 + (0.04 if rotated else 0.25) * np.cos(y * np.float32(2 * math.pi / 0.07))
    width = 0.05 + 0.02 * rotated
    film.density += np.float32(body.spine + 0.08) * blocks * ramp((width - np.abs(x - spine)) / np.float32(0.01))
    wave = np.cos((y - body.rib_at - 0.25 * (0.2 - x)) / body.ribs * np.float32(2 * math.pi))
    film.density += np.float32(0.7 * body.rib) * ramp((wave - 0.45) * 3) * lung
    film.strokes([([(-0.2, 0.16), (-0.3, 0.35), (-0.32, 0.6)], 0.022, 0.16),                   # breastbone
                  ([(0.33, 0.12), (0.3, 0.4)], 0.02, 0.1)], 1.5)                               # shoulder blade
    h = body.heart / 0.44                            # the heart, on the diaphragm, behind the breastbone
    film.ellipse(-0.15 + 0.05 * (h - 1), body.base - 0.09, 0.15 * h, 0.17 * h ** 0.7, body.soft + 0.06, 0.6, -0.5,
                 at_least=True)
    film.ellipse(0.03, 0.44, 0.04, 0.05, body.hilum, edge=0.8)                                       # hila
    film.ellipse(0.03, 0.33, 0.075, 0.05, 0.07, edge=0.5)                                      # arch of the aorta
    film.ellipse(0.02, 0.12, 0.2, 0.12, 0.22, edge=0.6)                                        # shoulders
    film.ellipse(-0.3, 0.06, 0.35, 0.07, 0.1 + body.arms, edge=0.3, tilt=0.25)                 # raised arms
    film.density *= -1
    film.strokes([([(0.0, 0.0), (0.03, 0.4)], 0.028, 0.14)], 2)                                # trachea
    film.density *= -1
    film.ellipse(-0.05, body.base + 0.1, 0.07, body.bubble, body.gas, edge=0.4)
    vessels = _vessels(rng, body)
    film.strokes([([(x0 * 0.5 + 0.03, y0) for x0, y0 in points], w, a) for points, w, a in vessels], 0.8, lung)

    for finding, t in traits.items():
        s = SIGN.get(finding.side, 0)
        if finding.name == "effusion":          # fluid shows first in the deepest recess, at the back
            level = body.base + 0.08 - 0.28 * t[0] ** 1.7 - 0.3 * np.clip(x - 0.08, 0, None) - 0.02 * (s == 0)
            fluid = ramp((y - level.astype(np.float32)) / np.float32(0.012))
            film.raise_to(body.soft + body.belly, chest * (x > -0.1) * fluid)
        elif finding.name == "pneumothorax":
            _collapse(film, Finding("pneumothorax", "left"), t, lung, r)
            _collapse(film, Finding("pneumothorax", "right"), t, lung, r)
        elif finding.name == "atelectasis":
            at = body.base - 0.09 if finding.zone == "lower" else ZONE_Y[finding.zone]
            _bands(film, 0.08 + 0.03 * s, at, 1, t)
        elif finding.name == "device":
            film.strokes(lateral_device(finding.side, t), 0.4)
        elif finding.name in FOCAL:
            px, py = ZONE_DEPTH[finding.zone] + 0.06 * (t[3] - 0.5), ZONE_Y[finding.zone] + 0.08 * (t[2] - 0.5)
            opacity(film, finding.name, px, py, t, lung)
    _draw_extra(film, extra, traits, body=body, lateral=True, lung=lung, chest=chest, r=r, spine=spine)
    return film.expose(pose, rng)


def _draw_extra(film, extra, traits, **view):
    """Add the findings of `extra` to a film."""
    for finding, t in traits.items():
        if finding.name in extra and (on_film := extra[finding.name].on_film):
            on_film(film, SimpleNamespace(**view), finding, t)


def lateral_device(side, t):
    if side == "left":
        y = 0.23 + 0.03 * t[2]
        return [([(-0.27, y), (-0.235, y + 0.05)], 0.035, 0.6),
                ([(-0.25, y), (-0.1, 0.2), (-0.03, 0.3), (-0.04, 0.55), (-0.16, 0.66)], 0.009, 0.5)]
    if side == "right":
        return [([(-0.02, 0.0), (-0.05, 0.26), (-0.03, 0.42 + 0.08 * t[2])], 0.012, 0.5)]
    return [(ring(-0.22 - 0.02 * k, 0.28 + 0.07 * k, 0.01), 0.008, 0.55) for k in range(6)]
