"""The report for who does not see it well, or at all, or uses no mouse."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lightning_symmetry.history import History
from lightning_symmetry.report import html, render_comparison
from lightning_symmetry.report.drawing import COLOURS, GREY
from lightning_symmetry.report.marks import TROUBLE

from .conftest import Browser, synthetic_run

STYLE = Path(html.__file__).with_name("page.css").read_text()
THEMES = [dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", STYLE)]

# Machado, Oliveira, Fernandes 2009: how linear RGB is seen with one sort of cones missing
VISIONS = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}


def linear(colour: str) -> NDArray[np.float64]:
    """Linear sRGB of #rrggbb."""
    channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    """The contrast ratio of WCAG 2.2."""
    darker, lighter = sorted(float(linear(colour) @ [0.2126, 0.7152, 0.0722]) for colour in (one, other))
    return (lighter + 0.05) / (darker + 0.05)


def lab(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """CIELAB of linear sRGB, in which distances are about as large as they look."""
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = np.cbrt(np.array(to_xyz) @ rgb / [0.95047, 1.0, 1.08883])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_contrast_of_black_and_white_is_21() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)  # the well-known grey that just fails


@pytest.mark.parametrize("theme", THEMES, ids=["light", "dark"])
def test_text_and_lines_stand_out_from_the_page_in_both_themes(theme: dict[str, str]) -> None:
    for ground in ("page", "card"):
        for text in ("text", "muted", "link", "bad"):
            assert contrast(theme[text], theme[ground]) >= 4.5, (text, ground)
    for drawn in (*COLOURS, GREY, TROUBLE, theme["edge"]):
        assert contrast(drawn, theme["page"]) >= 3, drawn


@pytest.mark.parametrize("vision", VISIONS)
def test_the_colours_of_lines_are_told_apart_by_the_colour_blind(vision: str) -> None:
    seen = [lab(np.clip(VISIONS[vision] @ linear(colour), 0, 1)) for colour in COLOURS]
    least = min(np.linalg.norm(one - other) for one, other in itertools.combinations(seen, 2))
    assert least > 20  # a just noticeable difference is 2.3; the colours of Okabe and Ito reach 16


OUTLINE = """
const all = (selector) => [...document.querySelectorAll(selector)];
const fill = (selector) => getComputedStyle(document.querySelector(selector)).fill;
return {
  language: document.documentElement.lang,
  first: document.querySelector("a, button, input, select, summary").getAttribute("href"),
  target: document.querySelector(".skip").hash && document.querySelector(document.querySelector(".skip").hash).tagName,
  levels: all("h1, h2, h3, h4").map((heading) => Number(heading.tagName[1])),
  charts: all(".js-plotly-plot").length,
  told: all('[role="img"]').map((image) => image.getAttribute("aria-label")),
  hidden: all('[role="img"] [tabindex="0"], [role="img"] a[href]').length,
  tables: all("figure details.numbers tbody tr").length,
  unreachable: all("main :is(a[href], button, input, select, summary, .scroll)").filter((e) => e.tabIndex < 0).length,
  unlabelled: all("input, select").filter((field) => !field.labels.length).length
    + all(".scroll").filter((region) => !region.getAttribute("aria-label")).length
    + all("table.sortable th").filter((heading) => !heading.hasAttribute("aria-sort")).length,
  ids: all("[id]").length - new Set(all("[id]").map((element) => element.id)).size,
  ticks: fill(".main-svg .ytick text"),
  names: fill(".main-svg .legendtext"),
  muted: getComputedStyle(document.querySelector(".muted")).color,
  page: getComputedStyle(document.body).backgroundColor,
  scrolling: getComputedStyle(document.documentElement).scrollBehavior,
};"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_can_be_read_and_used_without_eyes_and_without_a_mouse(
    theme: str, browser: Browser, report: Path, run_history: History, tmp_path: Path
) -> None:
    dark = theme == "dark"
    page = report if not dark else render_comparison({"a": run_history, "b": synthetic_run()}, tmp_path / "two.html")
    flags = [f"--blink-settings=preferredColorScheme={0 if dark else 1}", *(["--force-prefers-reduced-motion"] * dark)]
    visit = browser(page, OUTLINE, *flags)
    assert visit.console == []
    seen = visit.seen
    assert seen["language"] == "en"
    assert (seen["first"], seen["target"]) == ("#content", "MAIN")
    assert seen["levels"][0] == 1 and seen["levels"].count(1) == 1
    assert all(later - earlier <= 1 for earlier, later in itertools.pairwise(seen["levels"]))
    assert len(seen["told"]) == seen["charts"] > 0
    assert all(
        re.search(r"\d+ series over steps 0 to \d+\. .*first .*lowest .*highest .*last", told) for told in seen["told"]
    )
    assert seen["tables"] >= seen["charts"]
    assert (seen["hidden"], seen["unreachable"], seen["unlabelled"], seen["ids"]) == (0, 0, 0, 0)
    assert seen["ticks"] == seen["names"] == seen["muted"]
    assert seen["page"] == ("rgb(18, 20, 23)" if dark else "rgb(255, 255, 255)")
    assert seen["scrolling"] == ("auto" if dark else "smooth")
