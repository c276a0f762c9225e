"""The live page in a real browser: typed into, changed, pointed at and read back, beside the model's own tensors."""

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from lightning_gpt.analysis.changes import change_edits, parse_changes
from lightning_gpt.models import GPT
from tests.browser import chromium, needs_chromium, severe
from tests.exploring.explored import OTHER, TEXT, app_of, gpt, ids_of, served

pytestmark = needs_chromium


class Page:
    """The page in the browser."""

    def __init__(self, driver: Any, address: str) -> None:
        self.driver, self.address = driver, address

    def open(self, link: str = "") -> None:
        self.driver.get("about:blank")
        self.driver.get_log("browser")  # what was said before is not of this page
        self.driver.get(f"{self.address}{link}")
        self.settle()

    def js(self, code: str, *arguments: Any) -> Any:
        return self.driver.execute_script(code, *arguments)

    def one(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def until(self, code: str) -> None:
        """Wait until an expression is true."""
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, 60, 0.02).until(lambda driver: driver.execute_script(f"return Boolean({code})"))

    def settle(self) -> None:
        self.until("document.documentElement.dataset.ready === 'true'")

    def type(self, text: str) -> None:
        """Replace the text by what is typed."""
        field = self.one("#text")
        field.clear()
        field.send_keys(text)
        self.until(f"document.querySelectorAll('#tokens li').length === {len(text)}")
        self.settle()

    def click(self, selector: str) -> None:
        found = self.one(selector)
        self.js("arguments[0].scrollIntoView({block: 'center'})", found)
        found.click()

    def data(self, selector: str) -> dict[str, str]:
        found: dict[str, str] = self.js("return {...arguments[0].dataset}", self.one(selector))
        return found

    def click_cell(self, row: int, column: int, of: str = "figure[data-kind=pattern]") -> None:
        """Click a cell of the softmax, or of another matrix."""
        from selenium.webdriver import ActionChains

        canvas = self.one(f"{of} canvas")
        self.js("arguments[0].scrollIntoView({block: 'center'})", canvas)
        place = {key: float(value) for key, value in self.data(f"{of} canvas").items()}
        size = canvas.size
        x = place["left"] + (column + 0.5) * place["cell"] - size["width"] / 2
        y = place["top"] + (row + 0.5) * place["cell"] - size["height"] / 2
        ActionChains(self.driver).move_to_element_with_offset(canvas, round(x), round(y)).click().perform()


@pytest.fixture(scope="module")
def model() -> GPT:
    return gpt()


@pytest.fixture(scope="module")
def page(model: GPT) -> Iterator[Page]:
    with served(app_of(model, gpt(seed=1))) as address, chromium() as driver:
        yield Page(driver, address)


def loss_of(model: GPT, text: str, changes: str = "") -> float:
    logits = recorded(model, text, changes)["logits"][0, :-1]
    return torch.nn.functional.cross_entropy(logits, ids_of(text)[0, 1:]).item()


def recorded(model: GPT, text: str, changes: str = "") -> Any:
    edits = change_edits(model, parse_changes(changes), ids_of(text), ids_of(OTHER))
    with torch.no_grad(), model.record(None, edits) as trace:
        model(ids_of(text))
    return trace


def near(value: float) -> Any:
    return pytest.approx(value, rel=1e-4, abs=1e-6)


def test_typing_shows_the_text_as_the_model_reads_it(page: Page, model: GPT) -> None:
    page.open()
    assert page.one("#text").get_attribute("value") == TEXT
    page.type("a new <b>")
    assert [entry.text for entry in page.driver.find_elements("css selector", "#tokens li")] == list("a·new·<b>")
    assert float(page.data("#summary")["loss"]) == near(loss_of(model, "a new <b>"))
    weights = page.js("return [...document.querySelectorAll('#tokens li')].map(entry => Number(entry.dataset.weight))")
    expected = recorded(model, "a new <b>")["attention.pattern", 0][0, 0, -1]
    assert weights == pytest.approx(expected.tolist(), rel=1e-6)
    page.js("document.getElementById('lens').scrollIntoView()")
    page.until("document.querySelector('#lens button[data-depth=\"2\"]')")
    logits = recorded(model, "a new <b>")["logits"][0, -1].softmax(-1)
    page.until("document.querySelector('#next li')")
    assert float(page.data("#next li")["probability"]) == near(logits.max().item())
    assert severe(page.driver) == []


def test_taking_a_head_out_changes_loss_and_pictures_and_can_be_undone(page: Page, model: GPT) -> None:
    from selenium.webdriver.common.keys import Keys

    page.open()
    page.click("#map [data-part='0.2']")
    page.settle()
    page.click("#change-part [data-kind=zero]")
    page.until("document.querySelector('#changes [data-change=\"0.2:zero\"]')")
    page.settle()
    assert float(page.data("#summary")["loss"]) == near(loss_of(model, TEXT, "0.2:zero"))
    change = loss_of(model, TEXT, "0.2:zero") - loss_of(model, TEXT)
    assert float(page.data("#change-words")["change"]) == near(change)
    page.click("#map [data-part='1.ffn']")
    page.js("document.activeElement.blur()")
    page.one("body").send_keys("x")
    page.until("document.querySelector('#changes [data-change=\"1.ffn:zero\"]')")
    page.settle()
    both = loss_of(model, TEXT, "0.2:zero,1.ffn:zero")
    assert float(page.data("#summary")["loss"]) == near(both)
    page.one("body").send_keys(Keys.ARROW_DOWN)  # a later layer, whose picture follows the change
    page.until("document.getElementById('cell-readout').dataset.layer === '1'")
    page.settle()
    page.click_cell(7, 3)
    read = page.data("#cell-readout")
    changed, plain = (
        recorded(model, TEXT, changes)["attention.pattern", 1][0, 2, 7, 3].item() for changes in ("0.2:zero", "")
    )
    assert (read["layer"], read["head"]) == ("1", "2")
    assert float(read["weight"]) == near(changed)
    sign = "−" if changed < plain else "+"
    assert f"({sign}{abs(changed - plain):.3f})" in page.one("#cell-readout").text
    page.one("body").send_keys("u")
    page.until("document.querySelectorAll('#changes li').length === 1")
    page.settle()
    page.one("body").send_keys("u")
    page.until("document.querySelectorAll('#changes li').length === 0")
    page.settle()
    assert float(page.data("#summary")["loss"]) == near(loss_of(model, TEXT))


def test_the_map_is_walked_by_keys_and_one_key_puts_back_what_it_took_out(page: Page) -> None:
    from selenium.webdriver.common.keys import Keys

    page.open()
    page.js("document.querySelector('#map [data-part=\"0.3\"]').focus()")
    page.driver.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    assert page.js("return document.activeElement.dataset.part") == "0.ffn"
    page.driver.switch_to.active_element.send_keys("x")
    page.until("document.querySelector('#changes [data-change=\"0.ffn:zero\"]')")
    page.settle()
    page.one("body").send_keys("x")
    page.until("document.querySelectorAll('#changes li').length === 0")
    assert len(page.driver.find_elements("css selector", "#map [tabindex='0']")) == 1


def test_one_number_is_followed_to_the_logits(page: Page, model: GPT) -> None:
    page.open("#layer=1&head=3")
    page.click_cell(6, 2)
    page.js("document.getElementById('follow-card').scrollIntoView()")
    page.until("document.getElementById('follow').dataset.row === '6'")
    shown, trace = page.data("#follow"), recorded(model, TEXT)
    q, k = trace["attention.q", 1][0, 3, 6], trace["attention.k", 1][0, 1, 2]
    assert float(shown["product"]) == near(float(q @ k))
    assert float(shown["score"]) == near(trace["attention.scores", 1][0, 3, 6, 2].item())
    assert float(shown["weight"]) == near(trace["attention.pattern", 1][0, 3, 6, 2].item())
    scores = trace["attention.scores", 1][0, 3, 6, :7]
    assert float(shown["sum"]) == near(float((scores - scores.max()).exp().sum()))
    written = trace["attention.pattern", 1][0, 3, 6, 2] * trace["attention.v", 1][0, 1, 2]
    written = written @ model.block_views()[1].mixer.value_output()[1][3]
    added = model.read_out_share(written, trace["after_ffn", 1][0, 6]) @ model.unembedding.T
    assert float(shown["next"]) == near(float(added[ids_of(TEXT)[0, 7]] - added.mean()))
    page.js("document.getElementById('way-hint').scrollIntoView()")
    page.until("document.querySelector('#way-sum')")
    sums = page.data("#way-sum")
    logits = trace["logits"][0, 6]
    assert float(sums["sum"]) == near(float(logits[ids_of(TEXT)[0, 7]] - logits.mean()))


def test_a_link_holds_the_state_and_a_malformed_one_is_said(page: Page, model: GPT) -> None:
    page.open()
    page.js("document.getElementById('second').open = true")
    page.one("#other").send_keys(OTHER)
    page.click("#map [data-part='1.1']")
    page.settle()
    page.click("#change-part [data-kind=patch]")
    page.until("document.querySelector('#changes [data-change=\"1.1:patch\"]')")
    page.settle()
    page.until("location.hash.includes('1.1')")
    link = page.js("return location.hash")
    page.open(link)
    assert page.one("#other").get_attribute("value") == OTHER
    assert float(page.data("#summary")["loss"]) == near(loss_of(model, TEXT, "1.1:patch"))
    assert page.data("#cell-readout")["layer"] == "1"
    for bad, said in (
        ("#changes=1.1:explode", "not a change such as 3.2:zero"),
        ("#layer=two", "not a whole number"),
        ("#show=everything", "allowed: values, difference, side"),
    ):
        page.open(bad)
        assert said in page.js("return document.getElementById('notice').textContent")
        assert len(page.driver.find_elements("css selector", "#tokens li")) == len(TEXT), "it starts as without a link"
    page.open("#changes=9.1:zero")
    assert "the model has no part 9.1" in page.js("return document.getElementById('notice').textContent")


def test_tokens_are_drawn_from_the_distribution_that_the_sliders_leave(page: Page, model: GPT) -> None:
    page.open()
    page.js("document.getElementById('generate-card').scrollIntoView()")
    page.until("document.querySelector('#distribution li')")
    page.js(
        "const slider = document.getElementById('temperature');"
        "slider.value = 0; slider.dispatchEvent(new Event('input'))"
    )
    page.until("document.querySelectorAll('#distribution li.cut').length === 23")
    best = recorded(model, TEXT)["logits"][0, -1].argmax().item()
    assert float(page.data("#distribution li")["after"]) == 1
    assert page.data("#distribution li")["id"] == str(best)
    page.click("#draw")
    page.until(f"document.querySelectorAll('#tokens li').length === {len(TEXT) + 1}")
    page.settle()
    assert page.js("return document.querySelector('#tokens li:last-child').dataset.id") == str(best)
    assert f"more={best}" in page.js("return location.hash")


def test_depth_worth_comparison_and_pictures(page: Page, model: GPT) -> None:
    page.open()
    page.js("document.getElementById('measure').scrollIntoView()")
    page.click("#measure")
    page.until("document.querySelectorAll('#worth button').length === 12")
    change = loss_of(model, TEXT, "1.2:zero") - loss_of(model, TEXT)
    assert float(page.data("#worth [data-part='1.2']")["value"]) == near(change)
    page.until("document.querySelector('#depth [data-measure=norm]')")
    norms = page.js("return JSON.parse(document.querySelector('#depth [data-measure=norm]').dataset.values)")
    expected = recorded(model, TEXT)["after_ffn", 1][0].norm(dim=-1).mean().item()
    assert norms[-1] == near(expected)
    page.click("#against option[value='1']")
    page.until("document.getElementById('change-words').dataset.change")
    other = loss_of(model, TEXT) - loss_of(gpt(seed=1), TEXT)
    assert float(page.data("#change-words")["change"]) == near(other)
    page.settle()
    drawn = page.js(
        "const {picture} = await import('/assets/keep.js'); document.getElementById('keep-what').value = 'pattern';"
        "return new DOMParser().parseFromString(picture([]), 'image/svg+xml').querySelectorAll('rect').length"
    )
    assert drawn == 12 * 13 // 2 + 2, "the cells that are not masked, the ground and the scale"
    assert severe(page.driver) == []


def test_two_models_are_read_side_by_side(page: Page, model: GPT) -> None:
    from selenium.webdriver.common.keys import Keys

    page.open("#layer=1&head=2")
    page.one("body").send_keys("s")
    assert "nothing to compare with" in page.one("#change-words").text
    page.click("#against option[value='1']")
    page.until("document.getElementById('change-words').dataset.change")
    page.settle()
    page.js("document.activeElement.blur()")
    page.one("body").send_keys("s")
    page.until("document.documentElement.classList.contains('side')")
    page.settle()
    second = recorded(gpt(seed=1), TEXT)
    losses = page.js(
        "return [...document.querySelectorAll('#summary b:not(.who)')].map(entry => Number(entry.textContent))"
    )
    assert losses[:2] == [pytest.approx(loss_of(each, TEXT), abs=1e-3) for each in (model, gpt(seed=1))]
    page.click_cell(7, 3, of="figure[data-of=B][data-kind=pattern]")
    of = "blocks.1.attention."
    one, other = page.data("#cell-readout"), page.data("#other-readout")
    assert (other["row"], other["column"]) == ("7", "3")
    assert float(one["weight"]) == near(recorded(model, TEXT)[of + "pattern"][0, 2, 7, 3].item())
    assert float(other["weight"]) == near(second[of + "pattern"][0, 2, 7, 3].item())
    assert float(other["score"]) == near(second[of + "scores"][0, 2, 7, 3].item())
    page.one("figure[data-of=B][data-kind=pattern] .scroller").send_keys(Keys.ARROW_UP)
    weight = second[of + "pattern"][0, 2, 6, 3].item()
    assert float(page.data("#other-readout")["weight"]) == near(weight), "the keys move both"
    page.js("document.getElementById('lens-card-other').scrollIntoView()")
    for suffix, trace in (("", recorded(model, TEXT)), ("-other", second)):
        page.until(f'document.querySelector(\'#lens{suffix} button[data-depth="2"][data-row="6"]\')')
        page.until(f"document.querySelector('#next{suffix} li')")
        likeliest = trace["logits"][0, 6].softmax(-1).max().item()
        shown = page.data(f"#lens{suffix} button[data-depth='2'][data-row='6']")
        assert float(shown["probability"]) == near(likeliest)
        assert float(page.data(f"#next{suffix} li")["probability"]) == near(likeliest)
    assert "show=side" in page.js("return location.hash")
    page.one("body").send_keys("d")
    page.until("!document.documentElement.classList.contains('side')")
    page.settle()
    assert page.js("return document.querySelector('#show input:checked').value") == "difference"
    page.js("location.hash = '#model=1'")
    page.until("document.getElementById('model').value === '1' && document.title.includes('version_1')")
    page.settle()
    assert float(page.data("#summary")["loss"]) == near(loss_of(gpt(seed=1), TEXT))
    assert severe(page.driver) == []


def test_pictures_and_code_are_kept(page: Page, model: GPT, tmp_path: Path) -> None:
    behaviour = {"behavior": "allow", "downloadPath": str(tmp_path)}
    page.driver.execute_cdp_cmd("Browser.setDownloadBehavior", behaviour)
    permissions = ["clipboardReadWrite", "clipboardSanitizedWrite"]
    page.driver.execute_cdp_cmd("Browser.grantPermissions", {"permissions": permissions})
    page.open("#layer=1&head=3&row=9&column=4")
    for ending in ("svg", "png"):
        page.click(f"#keep-{ending}")
        page.until(f"document.getElementById('kept').textContent.includes('layer1_head3_pattern.{ending}')")
    page.click("#keep-page")
    page.until("document.getElementById('kept').textContent.includes('attention.html')")
    svg, png, html = (
        tmp_path / name for name in ("layer1_head3_pattern.svg", "layer1_head3_pattern.png", "attention.html")
    )
    end = time.monotonic() + 30
    while not (svg.exists() and png.exists() and html.exists()) and time.monotonic() < end:
        time.sleep(0.02)
    assert "<html" in html.read_text()
    drawn = ElementTree.parse(svg).getroot()
    picture = imread(png)
    size = [2 * float(drawn.get(side, 0)) for side in ("height", "width")]
    assert picture.shape[:2] == pytest.approx(size, abs=2), "twice as large as on the screen, in whole pixels"
    # each cell has the colour of its weight, from the lightest to the darkest
    pattern = recorded(model, TEXT)["attention.pattern", 1][0, 3]
    cells = [each for each in drawn if each.tag.endswith("rect") and each.get("x")][:-1]
    places = [(row, column) for row in range(12) for column in range(row + 1)]
    assert len(cells) == len(places)
    sizes = {name: float(cells[0].get(name, 0)) for name in ("width", "height")}
    shown = []
    for cell in cells:
        x, y = (float(cell.get(axis, 0)) + sizes[side] / 2 for axis, side in (("x", "width"), ("y", "height")))
        colour = picture[round(2 * y), round(2 * x), :3]
        expected = [int(cell.get("fill", "")[1 + 2 * n : 3 + 2 * n], 16) / 255 for n in range(3)]
        np.testing.assert_allclose(colour, expected, atol=0.01)
        shown.append(float(colour.sum()))
    weights = [pattern[place].item() for place in places]
    order = np.argsort(weights)
    assert all(b - a < 0.03 for a, b in itertools.pairwise(np.array(shown)[order])), "more weight is darker"
    page.click("#keep-code")
    page.until("document.getElementById('kept').textContent === 'The code is copied.'")
    copied = page.js("return await navigator.clipboard.readText()")
    said: list[Any] = []
    exec(copied, {"models": [model], "print": said.append})
    assert said[0].item() == near(weights[places.index((9, 4))])
    page.click("#keep-link")
    page.until("document.getElementById('kept').textContent.startsWith('The link is copied')")
    assert page.js("return await navigator.clipboard.readText()") == page.js("return location.href")
    page.js("navigator.clipboard.writeText = async () => { throw new Error('denied'); }")
    page.click("#keep-code")
    page.until("document.getElementById('kept').textContent.includes('selected')")
    assert page.js("return getSelection().toString().trim()") == copied.strip()


def test_on_a_phone_nothing_is_wider_than_the_screen_and_it_can_be_dark(page: Page) -> None:
    metrics = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        page.open("#changes=0.1:zero&against=unchanged&show=difference")
        assert page.js("return document.documentElement.scrollWidth <= innerWidth")
        light = page.js("return getComputedStyle(document.body).backgroundColor")
        page.click("#theme")
        assert page.js("return getComputedStyle(document.body).backgroundColor") != light
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
