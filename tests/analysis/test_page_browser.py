"""The page in a real browser: opened from a file, pointed at, clicked and read back, beside the model's own tensors."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_gpt.analysis import page as page_module
from lightning_gpt.analysis.attention import attention_maps, readable_tokens
from lightning_gpt.analysis.head_matrices import head_activations
from lightning_gpt.analysis.logit_lens import logit_lens, stream_names
from lightning_gpt.analysis.page import Ablated, Page
from lightning_gpt.data.tokenizer import Tokenizer
from lightning_gpt.models import GPT, GPTConfig, LanguageModel, SingleHeadConfig, SingleHeadModel
from tests.browser import chromium, needs_chromium, severe
from tests.models.helpers import randomise

pytestmark = needs_chromium
TEXT = 'The city\'s </script> "was" <b>&amp;\u2028 é {{data}}'
CHANGES = torch.tensor([[0.5, -0.25, 0.0, 1.0], [0.125, 0.75, -0.5, 2.0]]).numpy()


@dataclass
class Opened:
    """A page in the browser, and the model and ids that it is of."""

    driver: Any
    model: LanguageModel
    ids: Tensor
    tokens: list[str]

    def js(self, code: str, *arguments: Any) -> Any:
        return self.driver.execute_script(code, *arguments)

    def settle(self) -> None:
        """Wait until what was asked for is drawn."""
        from selenium.webdriver.support.ui import WebDriverWait

        ready = "return document.documentElement.dataset.ready === 'true'"
        WebDriverWait(self.driver, 60).until(lambda driver: driver.execute_script(ready))

    def all(self, selector: str) -> list[Any]:
        found: list[Any] = self.driver.find_elements("css selector", selector)
        return found

    def one(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def readout(self) -> dict[str, float]:
        return {
            key: float(value)
            for key, value in self.js("return {...document.getElementById('cell-readout').dataset}").items()
        }

    def cell_of(self, kind: str, row: int, column: int) -> tuple[float, float]:
        """Where the middle of a cell is on the canvas of ``kind``, from its top left corner."""
        dataset = self.js("return {...arguments[0].dataset}", self.one(f"figure[data-kind={kind}] canvas"))
        place = {key: float(value) for key, value in dataset.items()}
        x = place["left"] + (column + 0.5) * place["cell"] - place["scrollLeft"]
        return x, place["top"] + (row + 0.5) * place["cell"] - place["scrollTop"]

    def bring(self, kind: str, row: int, column: int) -> None:
        """Scroll the matrices so that a cell is in sight."""
        scroller = self.one(f"figure[data-kind={kind}] .scroller")
        self.js("arguments[0].scrollIntoView({block: 'center'})", scroller)
        cell = float(self.one(f"figure[data-kind={kind}] canvas").get_attribute("data-cell"))
        self.js("arguments[0].scrollTo(...arguments[1])", scroller, [column * cell - 100, row * cell - 100])
        self.drawn()

    def drawn(self) -> None:
        """Wait for the browser's next picture but one."""
        self.js("return new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def point(self, kind: str, row: int, column: int, *, click: bool = False) -> None:
        """Move the mouse to the middle of a cell."""
        from selenium.webdriver import ActionChains

        canvas = self.one(f"figure[data-kind={kind}] canvas")
        self.bring(kind, row, column)
        x, y = self.cell_of(kind, row, column)
        size = canvas.size
        move = ActionChains(self.driver).move_to_element_with_offset(
            canvas, round(x - size["width"] / 2), round(y - size["height"] / 2)
        )
        (move.click() if click else move).perform()

    def press(self, *keys: str) -> None:
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()
        self.settle()

    def enlarge(self) -> None:
        """Make cells large enough that a number's corner is free of the number and of the hatching."""
        self.js("const size = document.getElementById('cell'); size.value = 14; size.dispatchEvent(new Event('input'))")

    def colour(self, kind: str, row: int, column: int) -> list[int]:
        """The colour in a cell's upper left part, where no number is written."""
        x, y = self.cell_of(kind, row, column)
        code = "return [...arguments[0].getContext('2d').getImageData(arguments[1], arguments[2], 1, 1).data]"
        found: list[int] = self.js(code, self.one(f"figure[data-kind={kind}] canvas"), round(x) - 4, round(y) - 5)
        return found


def write(folder: Path, name: str, model: LanguageModel, text: str, **more: Any) -> tuple[Path, Tensor, list[str]]:
    tokenizer = Tokenizer("bytes", {bytes([b]): b for b in range(256)})
    ids = torch.from_numpy(tokenizer.encode(text)).long()
    tokens = readable_tokens(tokenizer, ids)
    maps, lens = attention_maps(model, ids, tokens), logit_lens(model, ids)
    vocabulary = dict(enumerate(readable_tokens(tokenizer, range(257))))
    path = folder / f"{name}.html"
    Page(
        title=f"<{name}>",
        facts={"model": type(model).__name__},
        maps=maps,
        head_dim=model.config.dim // maps.n_head,
        layers=range(maps.n_layer),
        ids=ids.tolist(),
        lens=lens,
        vocabulary=vocabulary,
        vectors=head_activations(model, ids),
        **more,
    ).write(path)
    return path, ids, tokens


def gpt(layers: int = 2, heads: int = 3, block_size: int = 64) -> GPT:
    config = GPTConfig(n_layer=layers, n_head=heads, dim=24, block_size=block_size, vocab_size=257)
    return randomise(GPT(config)).eval()


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page")


def opened(driver: Any, path: Path, model: LanguageModel, ids: Tensor, tokens: list[str]) -> Opened:
    driver.get(path.as_uri())
    page = Opened(driver, model, ids, tokens)
    page.settle()
    return page


@pytest.fixture
def page(driver: Any, folder: Path) -> Opened:
    """A GPT of 2 layers of 3 heads over a text that would break a careless page."""
    model = gpt()
    ablated = Ablated("mean", ["0", "1", "2", "ffn"], CHANGES)
    path, ids, tokens = write(folder, "gpt", model, TEXT, start=(1, 2), ablated=ablated)
    return opened(driver, path, model, ids, tokens)


def digits(value: float) -> str:
    """As the page writes it: three decimals, or three digits of what is smaller than that."""
    if value == 0 or abs(value) >= 0.001:
        return f"{value:.3f}"
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    return f"{mantissa}e−{abs(int(exponent))}"


def recorded(page: Opened) -> Any:
    with torch.no_grad(), page.model.record() as trace:
        page.model(page.ids[None])
    return trace


def assert_cell_is(page: Opened, layer: int, head: int, row: int, column: int) -> None:
    trace, read = recorded(page), page.readout()
    assert (read["layer"], read["head"], read["row"], read["column"]) == (layer, head, row, column)
    assert read["mask"] == float(column <= row)
    assert read["score"] == pytest.approx(trace["attention.scores", layer][0, head, row, column].item(), rel=1e-6)
    assert read["weight"] == pytest.approx(trace["attention.pattern", layer][0, head, row, column].item(), rel=1e-6)
    shown = page.one("#cell-readout").text
    for name in ("score", "weight"):
        assert f"{name} {digits(read[name])}" in " ".join(shown.split())


def test_it_opens_from_a_file_without_a_complaint_or_a_request(page: Opened) -> None:
    assert severe(page.driver) == []
    assert page.js("return performance.getEntriesByType('resource').length") == 0
    assert not page.one("#notice").is_displayed()
    assert page.one("#title").text == "<gpt>"
    assert page.one("#facts").text.split() == ["model", "GPT"]


def test_no_text_is_taken_for_markup(page: Opened) -> None:
    entries = page.all("#tokens li")
    assert [page.js("return arguments[0].textContent", entry) for entry in entries] == page.tokens
    assert [int(entry.get_attribute("data-id")) for entry in entries] == page.ids.tolist()
    assert "".join(page.tokens).startswith('The·city\'s·</script>·"was"·<b>')
    assert page.all("#tokens li *, #lens th *:not(small), #next .name *") == []


def test_pointing_at_a_cell_of_any_matrix_shows_its_three_values(page: Opened) -> None:
    for kind, row, column in (("scores", 7, 2), ("pattern", 5, 5), ("mask", 3, 9), ("pattern", 9, 0)):
        page.point(kind, row, column)
        assert_cell_is(page, 1, 2, row, column)


def test_every_other_matrix_of_the_head_is_there_and_can_be_pointed_at(page: Opened) -> None:
    from selenium.webdriver import ActionChains

    trace = recorded(page)
    names = {"X": "blocks.0.after_ffn", "N": "blocks.1.attention_norm", "Y": "blocks.1.after_attention"}
    expected = {symbol: trace[name][0] for symbol, name in names.items()}
    names = {"Q": "q", "K": "k", "V": "v", "AV": "head_output"}
    expected |= {symbol: trace[f"attention.{name}", 1][0, 2] for symbol, name in names.items()}
    figures = page.all("figure.strip")
    assert [figure.get_attribute("data-symbol") for figure in figures] == ["X", "N", "Q", "K", "V", "AV", "Y"]
    for figure in figures:
        canvas = figure.find_element("css selector", "canvas")
        page.js("arguments[0].scrollIntoView({block: 'center'})", canvas)
        ActionChains(page.driver).move_to_element_with_offset(canvas, 3, 2).perform()
        read = page.js("return {...document.getElementById('strip-readout').dataset}")
        value = expected[read["symbol"]][int(read["row"]), int(read["dimension"])].item()
        assert read["symbol"] == figure.get_attribute("data-symbol")
        assert float(read["value"]) == pytest.approx(value, rel=1e-6)


def test_every_row_sums_to_one_and_the_tokens_are_shaded_by_it(page: Opened) -> None:
    trace = recorded(page)
    for row in (0, 4, len(page.ids) - 1):
        page.js("arguments[0].focus()", page.all("#tokens li")[row])
        weights = [float(entry.get_attribute("data-weight")) for entry in page.all("#tokens li")]
        assert weights == pytest.approx(trace["attention.pattern", 1][0, 2, row].tolist(), rel=1e-6)
        assert sum(weights) == pytest.approx(1, abs=1e-5)


def test_hovering_a_token_shows_its_row_and_leaving_returns_to_the_one_that_is_held(page: Opened) -> None:
    from selenium.webdriver import ActionChains

    last = len(page.ids) - 1
    entries = page.all("#tokens li")
    page.js("window.scrollTo(0, 0)")
    ActionChains(page.driver).move_to_element(entries[4]).perform()
    assert page.readout()["row"] == 4
    best = recorded(page)["attention.pattern", 1][0, 2, 4].topk(5)
    shown = page.js("return document.getElementById('row-readout').textContent")
    names = [
        f"{page.tokens[place]} {digits(value.item())}" for place, value in zip(best.indices, best.values, strict=True)
    ]
    assert shown == f"{page.tokens[4]} at position 4 attends most to {', '.join(names)}"
    ActionChains(page.driver).move_to_element(page.one("#title")).perform()
    assert page.readout()["row"] == last
    ActionChains(page.driver).move_to_element(entries[2]).click().move_to_element(page.one("#title")).perform()
    assert page.readout()["row"] == 2


def test_clicking_layer_and_head_shows_theirs(page: Opened) -> None:
    for layer, head in ((0, 1), (1, 0), (0, 2)):
        page.one(f"#layers [data-layer='{layer}']").click()
        page.one(f"#heads [data-head='{head}']").click()
        page.settle()
        pressed = [button.text for button in page.all(".pickers [aria-pressed=true]")]
        assert pressed == [f"layer {layer}", f"head {head}"]
        page.point("scores", 6, 1)
        assert_cell_is(page, layer, head, 6, 1)


def test_arrow_keys_choose_layer_and_head_and_stop_at_the_ends(page: Opened) -> None:
    from selenium.webdriver.common.keys import Keys

    def at() -> tuple[float, float]:
        return page.readout()["layer"], page.readout()["head"]

    page.js("document.activeElement.blur()")
    assert at() == (1, 2)
    page.press(Keys.ARROW_LEFT, Keys.ARROW_UP)
    assert at() == (0, 1)
    page.press(Keys.ARROW_UP, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert at() == (0, 2)
    page.press(Keys.ARROW_DOWN, Keys.ARROW_DOWN, *[Keys.ARROW_LEFT] * 5)
    assert at() == (1, 0)


def test_the_cell_and_the_token_can_be_moved_by_keys_alone(page: Opened) -> None:
    from selenium.webdriver.common.keys import Keys

    page.point("pattern", 6, 3, click=True)
    page.js("document.querySelector('figure[data-kind=pattern] .scroller').focus()")
    page.press(Keys.ARROW_UP, Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert_cell_is(page, 1, 2, 5, 1)
    page.js("arguments[0].focus()", page.all("#tokens li")[5])
    page.press(Keys.ARROW_RIGHT)
    assert page.readout()["row"] == 6


def test_the_colours_say_what_is_masked_and_what_is_large(page: Opened) -> None:
    page.one("#scale option[value=absolute]").click()
    page.enlarge()
    pattern = recorded(page)["attention.pattern", 1][0, 2]
    page.bring("mask", 0, 0)
    allowed = {page.colour("mask", row, 0)[0] for row in range(1, 6)}
    hidden = {page.colour("mask", row, row + 1)[0] for row in range(5)}
    assert len(allowed) == len(hidden) == 1
    assert allowed != hidden
    cells = [(row, column) for row in range(2, 8) for column in range(row + 1)]
    weights = sorted((pattern[row, column].item(), page.colour("pattern", row, column)) for row, column in cells)
    darkness = [sum(colour[:3]) for _, colour in weights]
    assert darkness == sorted(darkness, reverse=True), "the larger the weight, the darker the cell"
    assert darkness[0] > darkness[-1]


def test_the_logit_lens_holds_the_models_likeliest_tokens(page: Opened) -> None:
    trace = recorded(page)
    for depth, stream in enumerate(stream_names(page.model)):
        logits = page.model.final_norm(trace[stream][0]) @ page.model.unembedding.T
        for button in page.all(f"#lens button[data-depth='{depth}']"):
            row = int(button.get_attribute("data-row"))
            best = logits[row].softmax(-1).max(-1)
            assert int(button.get_attribute("data-id")) == best.indices.item()
            assert float(button.get_attribute("data-probability")) == pytest.approx(best.values.item(), rel=1e-4)
        nll = torch.nn.functional.cross_entropy(logits[:-1], page.ids[1:])
        shown = page.all("#lens tbody small[data-loss]")[depth].get_attribute("data-loss")
        assert float(shown) == pytest.approx(nll.item(), rel=1e-4)


def test_turning_the_lens_shows_other_positions_and_a_place_shows_its_next_tokens(page: Opened) -> None:
    shown = {int(button.get_attribute("data-row")) for button in page.all("#lens button[data-depth='0']")}
    page.one("#lens-back").click()
    earlier = {int(button.get_attribute("data-row")) for button in page.all("#lens button[data-depth='0']")}
    assert max(earlier) < min(shown) or min(earlier) == 0
    assert page.one("#lens-range").text == f"tokens {min(earlier) + 1}–{max(earlier) + 1} of {len(page.ids)}"
    row = min(earlier)
    page.one(f"#lens button[data-depth='1'][data-row='{row}']").click()
    logits = page.model.final_norm(recorded(page)["after_ffn", 0][0, row]) @ page.model.unembedding.T
    best = logits.softmax(-1).topk(10)
    entries = page.all("#next li")
    assert [int(entry.get_attribute("data-id")) for entry in entries] == best.indices.tolist()
    read = [float(entry.get_attribute("data-probability")) for entry in entries]
    assert read == pytest.approx(best.values.tolist(), rel=1e-4)
    nll = -logits.log_softmax(-1)[page.ids[row + 1]].item()
    assert float(page.one("#came-next").get_attribute("data-nll")) == pytest.approx(nll, rel=1e-4)
    assert f"loss {nll:.3f} nats" in page.one("#came-next").text
    assert f"probability {math.exp(-nll):.3f}" in page.one("#came-next").text or math.exp(-nll) < 0.001


def test_ablations_are_shown_and_lead_to_their_head(page: Opened) -> None:
    buttons = page.all("#ablation button")
    assert [float(button.get_attribute("data-change")) for button in buttons] == CHANGES.ravel().tolist()
    assert [button.text for button in buttons[:4]] == ["+0.500", "−0.250", "+0.000", "+1.000"]
    page.one("#ablation button[data-part='0.1']").click()
    page.settle()
    assert (page.readout()["layer"], page.readout()["head"]) == (0, 1)
    assert "its mean over the text" in page.one("#ablation-hint").text


def test_it_is_dark_where_the_system_is_and_the_button_changes_it(page: Opened) -> None:
    def brightness() -> int:
        return sum(map(int, page.js("return getComputedStyle(document.body).backgroundColor.match(/\\d+/g)")))

    page.enlarge()
    page.bring("pattern", 0, 0)
    light, cell = brightness(), page.colour("pattern", 0, 3)
    media = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    try:
        page.driver.refresh()
        page.settle()
        assert brightness() < 150 < 600 < light
        page.enlarge()
        page.bring("pattern", 0, 0)
        assert sum(page.colour("pattern", 0, 3)[:3]) < sum(cell[:3])
        page.one("#theme").click()
        assert brightness() == light
    finally:
        media["features"][0]["value"] = "light"
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)


def test_the_one_head_model_has_a_page_without_pickers(driver: Any, folder: Path) -> None:
    model = randomise(SingleHeadModel(SingleHeadConfig(dim=16, block_size=8, vocab_size=257))).eval()
    path, ids, tokens = write(folder, "one", model, "one head")
    page = opened(driver, path, model, ids, tokens)
    assert severe(driver) == []
    assert not page.one("#pickers").is_displayed()
    page.point("pattern", 5, 2)
    trace, read = recorded(page), page.readout()
    assert read["weight"] == pytest.approx(trace["attention.pattern"][0, 5, 2].item(), rel=1e-6)
    assert read["score"] == pytest.approx(trace["attention.scores"][0, 5, 2].item(), rel=1e-6)
    assert page.one("#head-dim").text == "16"


def test_a_single_token_has_a_page_too(driver: Any, folder: Path) -> None:
    model = gpt()
    path, ids, tokens = write(folder, "token", model, "a")
    page = opened(driver, path, model, ids, tokens)
    assert severe(driver) == []
    page.point("pattern", 0, 0)
    assert page.readout()["weight"] == 1
    assert page.one("#came-next").text == ""


def test_a_long_text_of_many_heads_is_shown_through_a_window(
    driver: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also float16, which a page of this size would not need."""
    monkeypatch.setattr(page_module, "_EXACT_BYTES", 0)
    model = gpt(layers=3, heads=24, block_size=400)
    path, ids, tokens = write(folder, "long", model, "many words and more " * 20)
    page = opened(driver, path, model, ids, tokens)
    assert severe(driver) == []
    scores = page.one("figure[data-kind=scores] .scroller")
    assert page.js("return arguments[0].scrollWidth <= arguments[0].clientWidth", scores), (
        "it opens fitted to the width"
    )
    assert not page.one("figure[data-kind=mask] canvas").is_displayed(), "and the mask is folded"
    page.one("#fold-mask").click()
    page.enlarge()
    scrollers = page.all(".scroller")
    assert all(page.js("return arguments[0].scrollHeight > 2 * arguments[0].clientHeight", s) for s in scrollers)
    assert page.js("return document.documentElement.scrollWidth <= window.innerWidth")
    page.one("#layers [data-layer='2']").click()
    page.js("document.querySelector('#heads [data-head=\"23\"]').click()")
    page.settle()
    page.js("arguments[0].focus()", page.all("#tokens li")[377])
    page.point("scores", 377, 310)
    places = {tuple(page.js("return [arguments[0].scrollLeft, arguments[0].scrollTop]", s)) for s in scrollers}
    assert len(places) == 1, "the three matrices scroll together"
    assert min(places.pop()) > 1000
    read, trace = page.readout(), recorded(page)
    assert (read["layer"], read["head"], read["row"], read["column"]) == (2, 23, 377, 310)
    assert read["score"] == pytest.approx(trace["attention.scores", 2][0, 23, 377, 310].item(), rel=6e-4)
    assert read["weight"] == pytest.approx(trace["attention.pattern", 2][0, 23, 377, 310].item(), rel=6e-4, abs=1e-7)
    assert "float16, at most 0.05 % off" in page.one("#footer").text
