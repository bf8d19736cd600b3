"""The pictures of the documentation, as a browser draws them: every word can be read."""

from pathlib import Path

import pytest

from tests.support.chromium import chromium

pytestmark = pytest.mark.slow

PICTURES = Path(__file__).parents[3] / "docs" / "pictures"
# every text's box against everything that is drawn: lines point by point, frames by their four sides
TOUCHING = r"""(() => {
  const drawn = [...document.querySelectorAll('path.edge, rect:not(.card)')].map((shape) => {
    const length = shape.getTotalLength(), points = [];
    for (let at = 0; at <= length; at += 0.5) points.push(shape.getPointAtLength(at));
    if (shape.matches('.edge')) {  // and its head
      const end = points[points.length - 1];
      for (let x = -6; x <= 6; x++) for (let y = -6; y <= 6; y++) points.push({x: end.x + x, y: end.y + y});
    }
    return [shape, points];
  });
  const found = [];
  for (const text of document.querySelectorAll('text')) {
    const {x, y, width, height} = text.getBBox();
    for (const [shape, points] of drawn) {
      const inside = points.some((p) => p.x > x - 1 && p.x < x + width + 1 && p.y > y && p.y < y + height);
      if (inside) found.push(`${text.textContent} / ${shape.outerHTML}`);
    }
  }
  const {width, height} = document.querySelector('.card').getBBox(), all = document.documentElement.getBBox();
  if (all.x < 0 || all.y < 0 || all.width > width || all.height > height) found.push('beyond the card');
  return found;
})()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("pictures") / "profile") as running:
        yield running


@pytest.mark.parametrize("picture", sorted(path.stem for path in PICTURES.glob("*.svg")))
def test_no_word_lies_on_a_line_or_on_the_edge_of_a_box(browser, picture):
    browser.open((PICTURES / f"{picture}.svg").as_uri())
    assert browser.evaluate("document.querySelectorAll('text').length") > 5
    assert browser.evaluate(TOUCHING) == []


def test_a_word_that_lies_on_a_line_would_be_found(browser, tmp_path):
    drawn = (PICTURES / "trust.svg").read_text()
    spoilt = tmp_path / "spoilt.svg"
    spoilt.write_text(drawn.replace("</svg>", '<text x="700" y="276">across the long line</text></svg>'))
    browser.open(spoilt.as_uri())
    assert any("across the long line" in each for each in browser.evaluate(TOUCHING))
