"""The demo's page: names that do not collide, a legend, links to what was made, and room on narrow screens."""

import contextlib
import html
import itertools
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from edgekit.cli import _page
from edgekit.cli._labels import Box, place
from edgekit.cli._step import Step
from edgekit.cli._verbs import demo
from edgekit.cli._verbs.demo import AFFINE_LADDER, GGUF_LADDER

WIDTHS = (_page._WIDTH, _page.NARROW)


def steps(seed=0, noise=0.1, floor=7e-13):
    """A ladder as the demo measures it: a tenth of the divergence a bit, more or less."""
    rng = np.random.default_rng(seed)
    for recipe in (*GGUF_LADDER, *AFFINE_LADDER):
        bits = 16 if recipe == "F16" else int(re.search(r"\d", recipe)[0]) + rng.normal(0.3, noise)
        kl = 0.0 if recipe == "F16" else 10 ** (1 - 0.7 * bits + rng.normal(0, noise))
        path = recipe.replace(":", "-")
        yield Step(recipe, path, int(2.4e5 * bits + 1e5), bits, "low", 0.1, 1.5, 0.001, kl, 0.9, floor)


def drawn(svg):
    """The names with their boxes, and the centres of the dots."""
    names = re.findall(r'<text class="name" x="([\d.-]+)" y="([\d.-]+)">([^<]+)</text>', svg)
    dots = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="5" fill="[^"]+"><title>', svg)
    return {text: (float(x), float(y)) for x, y, text in names}, [(float(x), float(y)) for x, y in dots]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("seed", range(12))
def test_no_name_stands_on_another_or_on_a_dot(width, seed):
    picture = _page.chart(list(steps(seed)), width)
    names, dots = drawn(picture)
    assert len(names) == len(dots) == len(GGUF_LADDER) + len(AFFINE_LADDER)
    # 6.4 px a character is what 12 px text takes in common fonts; the chart reckons with more.
    boxes = {text: Box(x, y - 9, x + 6.4 * len(text), y + 2) for text, (x, y) in names.items()}
    floor = re.search(r'<text x="([\d.]+)" y="([\d.]+)">(noise floor[^<]*)</text>', picture)
    x, y, words = float(floor[1]), float(floor[2]), floor[3]
    boxes[words] = Box(x, y - 9, x + 6.4 * len(words), y + 2)
    for (a, one), (b, other) in itertools.combinations(boxes.items(), 2):
        assert not one.meets(other), (a, b)
    for text, box in boxes.items():
        assert box.left >= 0, text
        assert box.right <= width, text
        assert not [dot for dot in dots if box.meets(Box(dot[0] - 5, dot[1] - 5, dot[0] + 5, dot[1] + 5))], text


def test_a_crowd_is_led_out_of_with_lines():
    crowd = [(f"name{i}", (100.0 + 2 * i, 100.0)) for i in range(5)]
    labels = place(crowd, [], Box(0, 0, 400, 300))
    assert [label.text for label in labels] == [name for name, _ in crowd]
    assert not [pair for pair in itertools.combinations([label.box for label in labels], 2) if pair[0].meets(pair[1])]
    assert any(label.lead for label in labels)
    assert all(label.lead[0] == dot for label, (_, dot) in zip(labels, crowd, strict=True) if label.lead)


@pytest.mark.parametrize(
    ("start", "stop", "crossed"),
    [
        ((0, 5), (30, 5), True),
        ((0, 0), (30, 30), True),
        ((15, 15), (16, 16), True),  # inside
        ((0, 25), (30, 25), False),
        ((0, 5), (5, 5), False),  # ends before it
        ((25, 0), (25, 30), False),
    ],
)
def test_a_segment_crosses_a_box_or_not(start, stop, crossed):
    assert Box(10, 0, 20, 20).crossed(start, stop) is crossed


@pytest.mark.parametrize("floor", [7e-13, 1e-4, 0.0])
@pytest.mark.parametrize("width", WIDTHS)
def test_what_is_not_above_the_noise_floor_lies_in_the_band(width, floor):
    ladder = list(steps(floor=floor))
    picture = _page.chart(ladder, width)
    top, height = map(float, re.search(r'<rect [^>]*y="([\d.]+)"[^>]*height="(\d+)" class="noise"/>', picture).groups())
    assert top + height == _page._HEIGHT - _page._BOTTOM
    _, dots = drawn(picture)
    for step, (_, y) in zip(ladder, dots, strict=True):
        assert (y > top) == (step.kl <= floor), step
        assert (f"KL {step.kl:.6f}" in picture) or step.kl <= floor
    wanted = {7e-13: "7·10⁻¹³", 1e-4: "1·10⁻⁴", 0.0: "0"}[floor]
    figure = f": {wanted} nats or less" if width > _page.NARROW else ""  # else in the caption alone
    assert f">noise floor{figure}</text>" in picture
    assert f"the noise floor, {wanted} nats" in _page.render(ladder, 3_830_000, 1.4713)
    assert _page.render(ladder, 3_830_000, 1.4713).count("≤ noise floor</span>") == sum(s.is_noise for s in ladder)


class Links(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found += [value for name, value in attributes if name == "href"]


def test_the_page_leads_to_every_artifact_and_says_what_the_colours_mean():
    ladder = list(steps())
    page = _page.render(ladder, 3_830_000, 1.4713)
    assert set(Links(page).found) == {*(step.path for step in ladder), "ladder.json", "ladder.svg"}
    for width in WIDTHS:
        for words in _page._LEGEND.values():
            assert f">{words}</text>" in _page.chart(ladder, width)


def test_a_legend_names_only_what_is_drawn():
    picture = _page.chart([step for step in steps() if step.recipe.startswith("affine")])
    assert "affine, groups of 32" in picture
    assert "GGUF" not in picture


@pytest.mark.parametrize("width", [420, 960])
def test_nothing_is_wider_than_the_window(tmp_path, width):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs chromium")
    page = _page.render(list(steps()), 3_830_000, 1.4713)
    asked = "<script>parent.document.title = [document.documentElement.scrollWidth, innerWidth].join(' of ')</script>"
    frame = html.escape(page.replace("</body>", asked + "</body>"))  # a window is at least 500 px wide, a frame is not
    outer = f'<title></title><iframe width="{width}" style="border:0" srcdoc="{frame}"></iframe>'
    (tmp_path / "index.html").write_text(outer, "utf-8")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    command += ["--dump-dom", (tmp_path / "index.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    taken, given = re.search(r"<title>(\d+) of (\d+)</title>", done.stdout).groups()
    assert int(given) == width
    assert int(taken) <= width


@pytest.mark.parametrize("written", range(5))
def test_a_run_that_was_cut_off_is_replaced(tmp_path, monkeypatch, written):
    """However many of its four files were written."""
    whole, left = demo.write_atomic, iter(range(written))

    def cut_off(path, data):
        if next(left, None) is None:
            raise KeyboardInterrupt
        whole(path, data)

    with monkeypatch.context() as patched:
        patched.setattr(demo, "write_atomic", cut_off)
        with contextlib.suppress(KeyboardInterrupt):
            demo.write_pictures(tmp_path, list(steps()), 1000, 2.5)
    assert len(list(tmp_path.iterdir())) == min(written, 4)
    demo.refuse_foreign(tmp_path)
    assert demo.write_pictures(tmp_path, list(steps()), 1000, 2.5).is_file()
