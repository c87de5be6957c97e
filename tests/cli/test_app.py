"""The page of `eagle-hf app`, by itself and in a headless browser. Skipped where there is no Gradio, or no browser."""

import shutil

import pytest
from architectures import tiny_target
from conftest import use_options
from doubles import letter_tokenizer, random_draft

from eagle_hf import DraftOptions
from eagle_hf.cli import app
from eagle_hf.cli.main import main
from eagle_hf.cli.pair import Pair


gradio = pytest.importorskip("gradio", reason="Gradio is not installed")
from eagle_hf.cli.app_page import Comparison, make_page  # noqa: E402


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SETTINGS = {"num_tokens": 40, "temperature": 0, "seed": 0, "nodes": 4, "depth": 2, "width": 2}


@pytest.fixture(scope="module")
def pair():
    target = tiny_target("llama")
    target.lm_head.weight.data[29:] = target.lm_head.weight.data[28]  # letters only
    draft = use_options(random_draft(target), num_assistant_tokens=5, draft_depth=3, draft_width=2)
    return Pair(target, draft, letter_tokenizer())


@pytest.mark.parametrize("temperature", [0, 0.9])
def test_both_texts_figures_and_trees(pair, temperature):
    states = list(Comparison(pair).run("abc", **(SETTINGS | {"temperature": temperature, "seed": 3})))
    plain, eagle, figures, trees = states[-1]
    run = pair.run(
        pair.encode("abc"),
        False,
        3,
        max_new_tokens=40,
        do_sample=temperature > 0,
        temperature=temperature or 1,
        top_k=0,
    )
    text = pair.tokenizer.decode(run.tokens, skip_special_tokens=True)
    assert text in plain
    assert f"The same token ids: {len(run.tokens)} and {len(run.tokens)} tokens" in figures
    assert "times as fast" in figures
    assert 'class="bonus"' in eagle
    assert 'class="bonus"' not in plain
    assert trees
    assert all("<svg" in tree for tree in trees)
    assert DraftOptions.from_generation_config(pair.draft.generation_config).draft_depth == 3  # as it was


def test_a_difference_is_shown(pair, monkeypatch):
    real = Pair.run

    def run(self, input_ids, with_draft, *args, **kwargs):
        result = real(self, input_ids, with_draft, *args, **kwargs)
        result.tokens[-1] += with_draft
        return result

    monkeypatch.setattr(Pair, "run", run)
    assert "DIFFERENT token ids" in list(Comparison(pair).run("abc", **SETTINGS))[-1][2]


def test_errors_reach_the_page(pair, monkeypatch):
    with pytest.raises(gradio.Error, match="empty"):
        list(Comparison(pair).run("  ", **SETTINGS))

    comparison = Comparison(pair)
    list(comparison.run("abc", **SETTINGS))
    monkeypatch.setattr(Pair, "run", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(gradio.Error, match="division"):
        list(comparison.run("abc", **SETTINGS))
    assert not pair.target._forward_pre_hooks


def test_the_command_serves_the_page(pair, monkeypatch):
    served = []
    monkeypatch.setattr(app.Pair, "load", lambda *args, **kwargs: pair)
    monkeypatch.setattr(gradio.Blocks, "launch", lambda self, **kwargs: served.append(kwargs))
    assert main(["app", "--port", "7900"]) == 0
    assert served == [{"server_name": "127.0.0.1", "server_port": 7900}]


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_in_a_browser(pair, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    page = make_page(pair)
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True)
    requests, messages = [], []
    try:
        with playwright.sync_playwright() as browsers:
            browser = browsers.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            view = browser.new_page(viewport={"width": 1200, "height": 1200})
            view.set_default_timeout(90_000)
            view.on("request", lambda request: requests.append(request.url))
            view.on("pageerror", lambda error: messages.append(str(error)))
            view.goto(url)
            view.fill("#prompt textarea", "abcabc")
            view.click("#generate")
            view.wait_for_selector("#tree svg")
            plain, eagle = (view.inner_text(f"#{name} [dir=auto]") for name in ("plain", "eagle"))
            run = pair.run(pair.encode("abcabc"), False, max_new_tokens=128, do_sample=False)
            assert plain == eagle == pair.tokenizer.decode(run.tokens, skip_special_tokens=True)
            assert "The same token ids" in view.inner_text("#figures")
            assert view.locator("#eagle .bonus").count() > 1
            bonus = view.locator("#eagle .bonus").first
            assert bonus.evaluate("element => getComputedStyle(element).fontWeight") == "700"
            before = view.inner_html("#tree")
            view.fill("#step input[type=number]", "2")
            view.press("#step input[type=number]", "Enter")
            view.wait_for_function("before => document.querySelector('#tree').innerHTML != before", arg=before)
            view.screenshot(path=tmp_path / "app.png", full_page=True)
            browser.close()
    finally:
        page.close()
    assert (tmp_path / "app.png").stat().st_size > 10_000
    assert messages == []
    assert [address for address in requests if not address.startswith((url, "data:", "blob:"))] == []  # works offline
