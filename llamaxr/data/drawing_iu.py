"""The findings of IU X-ray that the sample does not have, drawn on the films of drawing.py.

In: a finding, and a film with its anatomy. Out: the film with the finding. EXTRA, at the end, is the table of
all of them. Four traits in [0, 1) vary each: t[0] is its size, t[1] and t[2] its position, t[3] its density. A
severe finding has large t[0] and t[3]. On the lateral view left and right overlap.
"""

import math

import numpy as np

from .drawing import (
    SIGN,
    ZONE_DEPTH,
    ZONE_X,
    ZONE_Y,
    Extra,
    frontal_device,
    lateral_device,
    opacity,
    ramp,
    ring,
)

ZONE_RANGE = {"upper": (0.16, 0.37), "mid": (0.37, 0.54), "lower": (0.54, 0.8)}  # y, from and to


def _signs(finding):
    """-1 for the right, 1 for the left, both for bilateral."""
    return (-1, 1) if finding.side == "bilateral" else (SIGN.get(finding.side, 1),)


def _places(view, finding, t):
    """(x, y, sign) of a finding in the lung, one per side; one alone on the lateral view."""
    y = ZONE_Y[finding.zone] + 0.08 * (t[2] - 0.5)
    if view.lateral:
        return [(ZONE_DEPTH[finding.zone] + 0.06 * (t[1] - 0.5), y, 1)]
    return [(s * (ZONE_X[finding.zone] + 0.06 * (t[1] - 0.5)), y, s) for s in _signs(finding)]


def _side(film, view, finding):
    """1 where a film shows the finding's side, 0 elsewhere; (1, n). A lateral film shows both."""
    if view.lateral or finding.side not in SIGN:
        return np.ones_like(film.x)
    return (film.x * SIGN[finding.side] > 0).astype(np.float32)


def _rim(film, view, width):
    """1 within `width` of the outer edge of the lungs, as a share of their radius; 0 elsewhere; (n, n)."""
    outer = 1 if view.lateral else (abs(film.x) > 0.17) | (film.y < 0.28)  # not along the mediastinum
    return view.lung * ramp((view.r - 1 + width) / np.float32(0.025)) * outer


def _zone(film, finding):
    """1 in the finding's zone, falling to 0 at its ends; (n, 1). 1 everywhere for a finding without a zone."""
    low, high = ZONE_RANGE[finding.zone] if finding.zone else (0, 1)
    return ramp((film.y - low) / np.float32(0.03)) * ramp((high - film.y) / np.float32(0.03))


# Lungs


def _haze(film, view, finding, t):
    """A soft opacity through which vessels show, fainter than consolidation."""
    for x, y, _ in _places(view, finding, t):
        radius = 0.06 + 0.06 * t[0]
        for dx, dy, part in ((0, 0, 1), (0.5, -0.5, 0.7)):
            film.ellipse(x + dx * radius * (t[1] - 0.5), y + dy * radius, radius * part, 0.8 * radius * part,
                         0.12 + 0.12 * t[3], edge=0.95, inside=view.lung)


def _streaks(film, view, finding, t):
    """Thin lines that run from the hilum outwards."""
    for x, y, s in _places(view, finding, t):
        reach = 0.06 + 0.04 * t[0]
        film.strokes([([(x - s * reach, y + 0.02 * k - 0.02), (x, y + 0.028 * k), (x + s * reach, y + 0.045 * k)],
                       0.007, 0.12 + 0.16 * t[3]) for k in (-1, 0, 1, 2)], 0.7, view.lung)


def _network(film, view, finding, t):
    """Interstitial markings: a net of fine lines all over the side and zone."""
    rng = np.random.default_rng(int(t[1] * 2**32))
    lines = []
    for _ in range(round(220 + 260 * t[0])):
        x, y, angle, reach = rng.uniform(-0.42, 0.42), rng.uniform(0.1, 0.85), rng.uniform(0, math.pi), 0.018
        dx, dy = reach * math.cos(angle), reach * math.sin(angle)
        lines.append(([(x - dx, y - dy), (x + dx, y + dy)], 0.005, 0.14 + 0.20 * t[3]))
    film.strokes(lines, 0.5, view.lung * _side(film, view, finding) * _zone(film, finding))


def _lobe(film, view, finding, t):
    """Pneumonia fills a part of a lobe, sharp where it meets a fissure; bronchi stay dark in it."""
    low, high = ZONE_RANGE[finding.zone]
    filled = ramp((film.y - low - 0.05 * (1 - t[0])) / np.float32(0.04)) * ramp((high - film.y) / np.float32(0.007))
    side, depth = _side(film, view, finding), ZONE_DEPTH[finding.zone]
    outer = ramp(((0.2 - abs(film.x - depth)) if view.lateral else abs(film.x) - 0.12 - 0.06 * t[1]) / np.float32(0.05))
    film.density += np.float32(0.15 + 0.14 * t[3]) * view.lung * side * filled * outer
    for x, y, s in _places(view, finding, t):
        film.density *= -1                                                                     # air subtracts
        film.strokes([([(x - s * 0.06, y - 0.01), (x + s * 0.04, y + 0.02 * k)], 0.009, 0.10) for k in (-1.5, 1.5)], 1)
        film.density *= -1


def _wet_body(body, _finding, t):
    """Edema: wide vessels, blurred hila, veiled bases."""
    body.hilum, body.vessels = body.hilum + 0.08 + 0.10 * t[3], body.vessels * 1.5 + 0.6 * t[0]
    body.haze += 0.06 + 0.10 * t[3]


def _wet_lungs(film, view, _finding, t):
    """Edema: a bat's wings of haze around the hila, and Kerley's lines along the lower chest wall."""
    for x in (0.03,) if view.lateral else (-0.15, 0.15):
        film.ellipse(x, 0.46, 0.11 + 0.03 * t[0], 0.17 + 0.03 * t[0], 0.08 + 0.12 * t[3], edge=0.9, inside=view.lung)
    lines = [([(-0.45, y), (0.45, y)], 0.005, 0.15 + 0.2 * t[3]) for y in np.arange(0.5, 0.74, 0.022)]
    film.strokes(lines, 0.5, _rim(film, view, 0.22))


def _scar(film, view, finding, t):
    """A bright thin crooked line with a branch."""
    for x, y, s in _places(view, finding, t):
        a = 0.025 + 0.015 * t[0]
        film.strokes([([(x - a, y + a), (x - 0.3 * a, y + 0.1 * a), (x + 0.3 * a, y + 0.3 * a), (x + a, y - a)],
                       0.008, 0.24 + 0.2 * t[3]),
                      ([(x - 0.3 * a, y + 0.1 * a), (x - 0.5 * a, y - 1.1 * a)], 0.006, 0.2 + 0.2 * t[3]),
                      ([(x + 0.3 * a, y + 0.3 * a), (x + 1.3 * s * a, y + 0.9 * a)], 0.006, 0.2 + 0.2 * t[3])], 0.5)


def _shallow_breath(body, _finding, t):
    """Low volumes: the diaphragm is high, the vessels are crowded."""
    body.base, body.vessels, body.air = 0.64 - 0.07 * t[0], body.vessels * 1.3, body.air - 0.04


def _thin_lungs(body, _finding, t):
    """Emphysema: dark lungs with few vessels."""
    body.air, body.vessels, body.haze = min(body.air + 0.06 + 0.06 * t[3], 0.82), 0.3 * body.vessels, 0.0


# Pleura and diaphragm


def _thick_pleura(film, view, finding, t):
    """A band inside the chest wall; in the upper zone a cap on the apex."""
    cap = finding.zone == "upper"
    low, high = (0, 0.27) if cap else ZONE_RANGE[finding.zone]
    along = ramp((film.y - low) / np.float32(0.03)) * ramp((high - film.y) / np.float32(0.03))
    rim = _rim(film, view, (0.16 if cap else 0.09) + 0.08 * t[0])
    film.density += np.float32(0.22 + 0.18 * t[3]) * _side(film, view, finding) * along * rim


def _high_dome(film, view, finding, t):
    """One half of the diaphragm stands high."""
    soft, height = view.body.soft + view.body.belly, 0.11 + 0.07 * t[0]
    for s in (0,) if view.lateral else _signs(finding):
        film.ellipse(s * 0.22, view.body.base + 0.05, 0.28 if view.lateral else 0.19, height, soft, edge=0.08,
                     inside=view.chest, at_least=True)


# Heart, mediastinum, vessels


def _wide_mediastinum(film, view, _finding, t):
    if view.lateral:
        film.ellipse(-0.14, 0.3, 0.09, 0.12, 0.08 + 0.08 * t[3], edge=0.7)
    else:
        film.ellipse(view.body.turn, 0.28, 0.085 + 0.03 * t[0], 0.17, view.body.center, edge=0.2, at_least=True)


def _tortuous_aorta(film, view, _finding, t):
    if view.lateral:
        film.strokes([([(-0.03, 0.42), (0.0, 0.29), (0.09, 0.27), (0.15, 0.36), (0.14, 0.5), (0.19, 0.66)],
                       0.05, 0.10 + 0.06 * t[3])], 2)
    else:
        white, turn, grown = view.body.center, view.body.turn, 0.02 * t[0]
        film.ellipse(0.07 + grown + turn, 0.33, 0.05 + grown, 0.055 + grown, white, edge=0.2, at_least=True)
        film.ellipse(0.075 + grown + turn, 0.5, 0.04 + grown, 0.15, white - 0.05, edge=0.3, at_least=True)
        film.ellipse(-0.055 + turn, 0.37, 0.04 + grown, 0.1, white - 0.05, edge=0.3, at_least=True)


def _aortic_calcium(film, view, _finding, t):
    """A thin bright arc on the wall of the arch."""
    x, y, rx, ry = (0.03, 0.33, 0.07, 0.045) if view.lateral else (0.055 + view.body.turn, 0.335, view.body.aorta,
                                                                   1.2 * view.body.aorta)
    angles = np.linspace(-2.2, 0.9 + 0.5 * t[0], 12)
    film.strokes([([(x + rx * math.cos(a), y + ry * math.sin(a)) for a in angles], 0.009, 0.3 + 0.3 * t[3])], 0.4)


def _hard_nodes(film, view, finding, t):
    """Calcified lymph nodes: bright lumps at a hilum, or between the lungs."""
    for s in (0.3,) if view.lateral or finding.side is None else _signs(finding):
        for k, (dx, dy) in enumerate(((0, 0), (0.026, 0.028), (-0.012, 0.04), (0.014, -0.03))):
            if k <= 1 + 3 * t[0]:
                film.ellipse(s * (0.105 + dx), 0.42 + 0.05 * (t[2] - 0.5) + dy, 0.012, 0.010, 0.35 + 0.25 * t[3])


def _hiatal_hernia(film, view, _finding, t):
    """The stomach behind the heart: round, with air over fluid."""
    x, y, radius = (0.12 if view.lateral else 0.03), view.body.base - 0.03, 0.055 + 0.035 * t[0]
    film.ellipse(x, y, radius, 0.9 * radius, view.body.center + 0.12, edge=0.12, at_least=True)
    air = (film.y < y).astype(np.float32) * np.ones_like(film.x)
    film.ellipse(x, y - 0.1 * radius, 0.7 * radius, 0.6 * radius, -0.35, edge=0.15, inside=air)


# Bones


def _worn_spine(film, view, _finding, t):
    """Degenerative change: bright end plates and beaks on both sides of some discs."""
    period = 0.07 if view.lateral else 0.062
    first, n_discs = 4.5 + round(3 * t[1]), 3 + round(4 * t[0])
    width = 0.055 if view.lateral else 0.048
    for k in range(n_discs):
        y = (first + k) * period
        x = float(np.interp(y, film.y[:, 0], np.broadcast_to(view.spine, film.y.shape)[:, 0]))
        film.strokes([([(x - width, y + d), (x + width, y + d)], 0.007, 0.06 + 0.16 * t[3]) for d in (-0.01, 0.01)], 0.5)
        for s in (-1,) if view.lateral else (-1, 1):
            film.ellipse(x + s * (width + 0.008), y, 0.016, 0.010 + 0.006 * t[0], 0.13 + 0.26 * t[3], edge=0.4)


def _crushed_vertebra(film, view, _finding, t):
    """A body that is low and dense, with a gap above it."""
    y = (0.07 if view.lateral else 0.062) * (6 + round(3 * t[1]))
    x = float(np.interp(y, film.y[:, 0], np.broadcast_to(view.spine, film.y.shape)[:, 0]))
    film.strokes([([(x - 0.05, y), (x + 0.05, y)], 0.012 + 0.01 * t[0], 0.15 + 0.22 * t[3])], 0.6)
    film.ellipse(x - 0.02, y - 0.025, 0.045, 0.008 + 0.006 * t[0], -0.12 - 0.12 * t[3], edge=0.4)


def _broken_ribs(film, view, finding, t):
    """A callus and a step in one to four neighbouring ribs."""
    body, x = view.body, 0.27 + 0.05 * (t[1] - 0.5)
    middle = ZONE_Y[finding.zone or "mid"]
    for s in (1,) if view.lateral else _signs(finding):
        curve = 0.25 * (0.2 - 0.22) if view.lateral else 1.5 * body.rib_slope * (x - 0.08) ** 2
        first = round((middle - body.rib_at - curve) / body.ribs)
        for k in range(1 + round(2.5 * t[0])):
            at = 0.22 if view.lateral else s * (x + 0.012 * k)
            y = body.rib_at + curve + (first + k) * body.ribs
            film.ellipse(at, y, 0.024, 0.017, 0.26 + 0.2 * t[3], edge=0.4)
            film.density *= -1
            film.strokes([([(at - 0.006, y - 0.02), (at + 0.006, y + 0.02)], 0.007, 0.3)], 0.4)
            film.density *= -1


def _broken_clavicle(film, view, finding, t):
    for s in () if view.lateral else _signs(finding):
        x, y = s * (0.22 + 0.05 * t[1]), 0.135 + view.body.clavicle
        film.ellipse(x, y, 0.035, 0.022, 0.24 + 0.2 * t[3], edge=0.4)
        film.density *= -1
        film.strokes([([(x - 0.004, y - 0.03), (x + 0.01, y + 0.03)], 0.008, 0.3)], 0.4)
        film.density *= -1


# What people put in


def _catheter(film, view, finding, t):
    """From an arm or the neck into the superior vena cava, right of the midline."""
    if view.lateral:
        film.strokes(lateral_device("right", t), 0.4)
        return
    for s in _signs(finding):
        path = frontal_device("right", t) if s < 0 else [
            ([(0.45, 0.24), (0.26, 0.17), (0.12, 0.17), (0.02, 0.22), (-0.04, 0.3), (-0.035, 0.42 + 0.08 * t[2])], 0.012, 0.5)]
        film.strokes(path, 0.4)
        film.ellipse(s * 0.27, 0.26, 0.024, 0.024, 0.4 * (t[1] > 0.6), edge=0.1)              # a port's chamber


def _pacemaker(film, view, finding, t):
    lines = lateral_device("left", t) if view.lateral else frontal_device("left", t)
    if finding.side == "right" and not view.lateral:                                           # the can on the other side
        lines[0] = ([(-x, y) for x, y in lines[0][0]], *lines[0][1:])
        lines[1] = ([(-0.27, 0.23), (-0.1, 0.19), *lines[1][0][3:]], *lines[1][1:])
    film.strokes(lines, 0.4)


def _wires(film, view, _finding, t):
    film.strokes(lateral_device(None, t) if view.lateral else frontal_device(None, t), 0.4)


def _valve(film, view, finding, t):
    """A heart valve's ring, behind the wires of its operation."""
    _wires(film, view, finding, t)
    film.strokes([(ring(-0.09 if view.lateral else 0.045, 0.56, 0.032), 0.010, 0.5)], 0.4)


def _clips(film, view, finding, t):
    """A group of short bright dashes: in the finding's zone, or else in the upper abdomen."""
    if finding.zone:
        places = _places(view, finding, t)
    else:
        places = [(0.0 if view.lateral else s * 0.2, 0.9, s) for s in _signs(finding)]
    for x, y, _ in places:
        film.strokes([([(x + dx, y + dy), (x + dx + 0.012, y + dy + slope)], 0.009, 0.65)
                      for dx, dy, slope in ((-0.03, 0, 0.012), (0, 0.02, -0.01), (0.025, -0.015, 0.012), (0.01, 0.045, 0))],
                     0.3)


def _midline_clips(film, view, _finding, t):
    x = -0.05 if view.lateral else 0.03
    film.strokes([([(x + dx, y), (x + dx + 0.014, y + 0.01)], 0.009, 0.65)
                  for dx, y in ((0.0, 0.34), (0.03, 0.40), (-0.03, 0.44), (0.04, 0.49), (0.0, 0.54))], 0.3)


def _airway_tube(film, view, _finding, t):
    x = 0.02 if view.lateral else view.body.turn
    film.strokes([([(x + d, 0.0), (x + d, 0.26 + 0.05 * t[2])], 0.007, 0.5) for d in (-0.012, 0.012)], 0.4)


def _feeding_tube(film, view, _finding, t):
    x = 0.08 if view.lateral else 0.02
    film.strokes([([(x, 0.0), (x + 0.01, 0.5), (x + 0.03, view.body.base), (0.1, view.body.base + 0.1 + 0.05 * t[2])],
                   0.012, 0.5)], 0.4)


def _stent(film, view, _finding, t):
    x, y = (-0.15, 0.58) if view.lateral else (0.1, 0.56)
    film.strokes([([(x, y + d), (x + 0.05, y + 0.03 + d)], 0.005, 0.55) for d in (-0.008, 0.008)], 0.3)


def _skin_leads(film, view, _finding, t):
    """A monitor's electrodes and their cables."""
    for x, y in ((-0.3, 0.22), (0.3, 0.24), (0.33, 0.72)):
        x = 0.3 * x - 0.25 if view.lateral else x
        film.ellipse(x, y, 0.018, 0.018, 0.45, edge=0.15)
        film.strokes([([(x, y), (0.8 * x, 0.6 + 0.2 * y), (0.3 * x, 0.99)], 0.006, 0.35)], 0.4)


def _screws(film, view, finding, t):
    """Metal in a bone: the neck, or a shoulder where the finding has a side."""
    x, y = (0.06 if view.lateral else 0.0), 0.05
    if finding.side and not view.lateral:
        x, y = SIGN.get(finding.side, 1) * 0.44, 0.2
    film.strokes([([(x - 0.02, y), (x + 0.02, y)], 0.012, 0.6), ([(x - 0.02, y + 0.045), (x + 0.02, y + 0.045)], 0.012, 0.6),
                  ([(x, y - 0.02), (x, y + 0.07)], 0.012, 0.6)], 0.3)


def _lung_calcium(film, view, finding, t):
    for x, y, _ in _places(view, finding, t):
        opacity(film, "granuloma", x, y, t, view.lung)


EXTRA: dict[str, Extra] = {
    "lung opacity": Extra(_haze),
    "streaky opacity": Extra(_streaks),
    "interstitial opacity": Extra(_network),
    "pneumonia": Extra(_lobe),
    "edema": Extra(_wet_lungs, _wet_body),
    "scar": Extra(_scar),
    "low volume": Extra(on_body=_shallow_breath),
    "emphysema": Extra(on_body=_thin_lungs),
    "pleural other": Extra(_thick_pleura),
    "raised diaphragm": Extra(_high_dome),
    "enlarged cardiomediastinum": Extra(_wide_mediastinum),
    "tortuous aorta": Extra(_tortuous_aorta),
    "aortic calcification": Extra(_aortic_calcium),
    "calcified nodes": Extra(_hard_nodes),
    "lung calcification": Extra(_lung_calcium),
    "hiatal hernia": Extra(_hiatal_hernia),
    "degenerative spine": Extra(_worn_spine),
    "vertebral fracture": Extra(_crushed_vertebra),
    "rib fracture": Extra(_broken_ribs),
    "clavicle fracture": Extra(_broken_clavicle),
    "catheter": Extra(_catheter),
    "pacemaker": Extra(_pacemaker),
    "wires": Extra(_wires),
    "valve": Extra(_valve),
    "clips": Extra(_clips),
    "midline clips": Extra(_midline_clips),
    "airway tube": Extra(_airway_tube),
    "feeding tube": Extra(_feeding_tube),
    "stent": Extra(_stent),
    "skin leads": Extra(_skin_leads),
    "screws": Extra(_screws),
}  # a finding's index here seeds its drawing: add at the end
