# SPDX-License-Identifier: Apache-2.0
"""Printed labels of the groceries, of our own invention: a word, a picture, clear colours.

A camera frame shows an item with 15 to 40 pixels, so each label has one dominant colour that no
other item has, and letters as large as the item allows.
"""

from worldvla_sim.assets.textures import Image, Label, Rgb

_WHITE: Rgb = (245, 243, 236)
_CREAM: Rgb = (250, 238, 205)
_INK: Rgb = (40, 34, 34)
_TIN: Rgb = (176, 178, 182)
_RED: Rgb = (200, 28, 30)
_GOLD: Rgb = (240, 190, 60)
_BLUE: Rgb = (38, 84, 172)
_GREEN: Rgb = (48, 130, 58)


def _wrapped(label: Label, words: tuple[str, ...], color: Rgb, top: float, bottom: float) -> Label:
    """Print the lines on the front and on the back of a round label."""
    height = (bottom - top) / len(words)
    for left in (0.07, 0.57):  # the image starts at +x, so the middles of front and back are here
        for k, line in enumerate(words):
            row = top + k * height
            label.text((left, row, left + 0.36, row + 0.8 * height), line, color)
    return label


def alphabet_soup_label() -> Image:
    """Blue can, golden words, letters in an orange soup."""
    label = Label((22, 66, 178)).rectangle((0, 0, 1, 0.05), _TIN).rectangle((0, 0.96, 1, 1), _TIN)
    for left in (0.05, 0.55):
        label.ellipse((left, 0.54, left + 0.40, 0.93), _CREAM)
        label.ellipse((left + 0.03, 0.57, left + 0.37, 0.90), (236, 124, 30))
        label.text((left + 0.10, 0.64, left + 0.30, 0.82), 'ABC', _CREAM)
    return _wrapped(label, ('ALPHABET', 'SOUP'), (255, 206, 60), 0.1, 0.54).image()


def tomato_label() -> Image:
    """Red can with a white band and a tomato."""
    label = Label(_RED).rectangle((0, 0, 1, 0.06), _TIN).rectangle((0, 0.95, 1, 1), _TIN)
    label.rectangle((0, 0.1, 1, 0.5), _WHITE)
    for left in (0.12, 0.62):
        label.ellipse((left, 0.55, left + 0.26, 0.92), (235, 70, 45))
        label.polygon([(left + 0.13, 0.64), (left + 0.03, 0.53), (left + 0.23, 0.53)], _GREEN)
    return _wrapped(label, ('TOMATO', 'SAUCE'), _GREEN, 0.13, 0.5).image()


def ketchup_label() -> Image:
    """Red bottle, white cap, white shield."""
    label = Label((196, 18, 22)).rectangle((0, 0, 1, 0.2), _WHITE)
    for left in (0.04, 0.54):
        label.polygon([(left, 0.5), (left + 0.42, 0.5), (left + 0.42, 0.74),
                       (left + 0.21, 0.84), (left, 0.74)], _WHITE)
    return _wrapped(label, ('KETCHUP',), (150, 16, 18), 0.54, 0.76).image()


def dressing_label() -> Image:
    """Pale bottle with a green label and a green cap."""
    label = Label((226, 226, 196)).rectangle((0, 0, 1, 0.2), (26, 92, 44))
    label.rectangle((0, 0.45, 1, 0.92), _GREEN).rectangle((0, 0.45, 1, 0.48), _GOLD)
    return _wrapped(label, ('SALAD', 'DRESSING'), _WHITE, 0.52, 0.92).image()


def bbq_label() -> Image:
    """Dark brown bottle, black cap, orange flame label."""
    label = Label((74, 30, 18)).rectangle((0, 0, 1, 0.2), (30, 26, 26))
    label.rectangle((0, 0.44, 1, 0.9), (236, 130, 30))
    return _wrapped(label, ('BBQ', 'SAUCE'), _INK, 0.48, 0.9).image()


def carton_label(kind: str) -> Image:
    """Front, side, roof and gable of a carton, `kind` 'milk' or 'orange_juice'."""
    milk = kind == 'milk'
    strong, body = (_BLUE, _WHITE) if milk else ((240, 128, 14), (252, 196, 70))
    label = Label(body, 256, 256).rectangle((0, 0.85, 1, 1), strong)
    for left in (0.0, 0.5):
        label.rectangle((left, 0.62, left + 0.5, 0.85), strong)
        if milk:
            label.text((left + 0.04, 0.12, left + 0.46, 0.36), 'MILK', _BLUE)
            label.ellipse((left + 0.06, 0.46, left + 0.30, 0.7), _WHITE)
            label.ellipse((left + 0.14, 0.52, left + 0.24, 0.62), _INK)
            label.ellipse((left + 0.24, 0.44, left + 0.44, 0.66), _WHITE)
        else:
            label.text((left + 0.04, 0.06, left + 0.46, 0.18), 'ORANGE', (196, 78, 4))
            label.text((left + 0.08, 0.21, left + 0.42, 0.32), 'JUICE', (196, 78, 4))
            label.ellipse((left + 0.10, 0.40, left + 0.40, 0.74), (246, 120, 10))
            label.ellipse((left + 0.14, 0.445, left + 0.36, 0.695), (254, 214, 120))
            label.ellipse((left + 0.16, 0.47, left + 0.34, 0.67), (246, 140, 20))
    return label.image()


def _box_label(top: Rgb, edge: Rgb, line: str, color: Rgb) -> Label:
    """Start the image of a flat box: main side above, long and short edge below."""
    label = Label(top, 256, 256).rectangle((0, 0.6, 1, 1), edge)
    return label.text((0.1, 0.63, 0.9, 0.77), line, color)


def butter_label() -> Image:
    """Pale yellow box, red word, thin red borders."""
    yellow: Rgb = (252, 226, 118)
    label = _box_label(yellow, yellow, 'BUTTER', _RED)
    label.rectangle((0, 0.02, 1, 0.06), _RED).rectangle((0, 0.54, 1, 0.58), _RED)
    return label.text((0.08, 0.14, 0.92, 0.46), 'BUTTER', _RED).image()


def cream_cheese_label() -> Image:
    """Silver-white box with a light blue swoosh and dark blue words."""
    label = _box_label((206, 226, 242), (60, 120, 200), 'CREAM CHEESE', _WHITE)
    label.ellipse((-0.2, 0.33, 1.2, 0.9), (60, 120, 200)).rectangle((0, 0.6, 1, 1), (60, 120, 200))
    label.text((0.1, 0.63, 0.9, 0.77), 'CREAM CHEESE', _WHITE)
    label.text((0.1, 0.05, 0.9, 0.25), 'CREAM', (24, 52, 130))
    return label.text((0.14, 0.38, 0.86, 0.56), 'CHEESE', _WHITE).image()


def pudding_label() -> Image:
    """Brown box, cream words, a cup with a swirl."""
    label = _box_label((96, 52, 30), (70, 36, 22), 'PUDDING', _CREAM)
    label.text((0.05, 0.07, 0.95, 0.23), 'CHOCOLATE', _GOLD)
    label.ellipse((0.62, 0.26, 0.96, 0.56), _CREAM).ellipse((0.67, 0.3, 0.91, 0.5), (60, 30, 18))
    return label.text((0.05, 0.32, 0.58, 0.5), 'PUDDING', _CREAM).image()


def cookies_label() -> Image:
    """Red box, three round cookies with dark chips."""
    label = _box_label((176, 32, 38), (140, 24, 30), 'COOKIES', _CREAM)
    label.text((0.08, 0.05, 0.92, 0.24), 'COOKIES', _CREAM)
    for left in (0.06, 0.36, 0.66):
        label.ellipse((left, 0.29, left + 0.28, 0.56), (222, 168, 98))
        for x, y in ((0.07, 0.36), (0.15, 0.33), (0.18, 0.43), (0.09, 0.46)):
            label.ellipse((left + x, y, left + x + 0.05, y + 0.05), (70, 38, 22))
    return label.image()
