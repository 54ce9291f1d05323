"""The page: as text, and in a real browser. The browser tests skip where there is no Chromium or no playwright."""

import io
import os
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from report_runs import SUMMARY, write_images, write_run

from cellseg.core import CellsegError
from cellseg.report.page import breakable, role, write_page

IDS = ("a", "b", "c")
HOSTILE = "<img src=x onerror=alert(1)>"
HOSTILE_TEXT = "</script><script>alert(1)</script>"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A teacher and a student on two sets: target 0, 0, 1 → 2, 3, 4 of four cells; source 4 → 2 of four cells."""
    root = tmp_path_factory.mktemp("runs")
    folders = [root / "teach" / "s0", root / "learn" / "s0"]
    found = {"target": ({"a": 0, "b": 0, "c": 1}, {"a": 2, "b": 3, "c": 4}), "source": ({"d": 4}, {"d": 2})}
    log = [{"step": step, "loss": 3 / step, "distance": step / 100, "val_f1": 0.5} for step in (1, 2, 3)]
    for name, per_run in found.items():
        (root / name).mkdir()
        index = write_images(root / name, per_run[0], group="round")
        for folder, squares in zip(folders, per_run, strict=True):
            init = None if folder is folders[0] else str(folders[0])
            summary = {"steps": 3, "torch": "2.0", "versions": {"python": "3.11"}, "distance": None}
            write_run(folder, index, squares, init=init, log=log, summary=summary, name=name)
    return folders


@pytest.fixture(scope="module")
def page_file(runs):
    return write_page(runs, runs[0].parents[1] / "report.html")


@pytest.fixture(scope="module")
def hostile_file(tmp_path_factory):
    root = tmp_path_factory.mktemp("hostile")
    (root / "images").mkdir()
    index = write_images(root / "images", (HOSTILE,), group=HOSTILE_TEXT)
    folder = write_run(root / "<b>x" / "s0", index, {HOSTILE: 2}, summary={HOSTILE_TEXT: HOSTILE})
    return write_page([folder], root / "report.html", title=HOSTILE_TEXT)


@pytest.fixture(scope="module")
def free_file(tmp_path_factory):
    """An adaptation to images without labels: 4 → 2 and 3 → 3 squares, and a log of three looks."""
    root = tmp_path_factory.mktemp("free")
    (root / "images").mkdir()
    index = write_images(root / "images", ("a", "b"))
    run = root / "mine"
    for folder, found in ((run, {"a": 2, "b": 3}), (run / "start", {"a": 4, "b": 3})):
        log = [{"step": step, "cycle": step / 9, "flips": 0.5, "val_f1": step / 9, "cells": 9} for step in range(9)]
        write_run(folder, index, found, init="pre.safetensors", log=log, summary=SUMMARY | {"chosen_step": 8})
        shutil.rmtree(folder / "scores")
        (folder / "predictions" / "target").rename(folder / "predictions" / "unlabelled")
    return write_page([run], root / "report.html")


# ---- as text


def test_the_page_says_what_happened(page_file):
    text = page_file.read_text(encoding="utf-8")
    assert "On 3 target images mean F1@0.5 rose from .133 to .841." in text  # (0 + 0 + 2/5)/3; (4/6 + 6/7 + 1)/3
    assert "On 1 source image mean F1@0.5 went from 1.000 to .667." in text  # one image: no interval
    assert "learn started from teach and was adapted to 1 labelled image (made: round)." in text
    assert "One seed each" in text
    assert "<dt>versions.python</dt><dd>3.11</dd>" in text


def test_the_same_runs_give_the_same_bytes(runs, page_file, tmp_path):
    assert write_page(runs, tmp_path / "again.html").read_bytes() == page_file.read_bytes()


def test_nothing_is_loaded_from_elsewhere(page_file):
    text = page_file.read_text(encoding="utf-8")
    assert not re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?\s*(?:https?:)?//", text)
    assert "default-src 'none'" in text
    assert page_file.stat().st_size < 200_000


def test_a_page_names_no_folder_above_this_one(runs, tmp_path, monkeypatch):
    root = runs[0].parents[1]
    (root / "source" / "d.tif").rename(tmp_path / "d.tif")
    monkeypatch.chdir(root)
    text = write_page(["teach/s0", "learn/s0"], "here.html").read_text(encoding="utf-8")
    (tmp_path / "d.tif").rename(root / "source" / "d.tif")
    assert "No image of source is shown: " in text
    assert "source/d.tif does not exist" in text
    assert str(root) not in text


def test_one_run_alone_is_reported_without_a_comparison(runs, tmp_path):
    text = write_page(runs[:1], tmp_path / "one.html", images=0).read_text(encoding="utf-8")
    assert "On 3 target images the mean F1@0.5 of teach is .133." in text
    assert "rose" not in text.split("<main")[0].split("<body")[1]
    assert "data:image/webp" not in text


def test_one_set_only_and_mistakes(runs, tmp_path):
    text = write_page(runs, tmp_path / "one.html", evaluation="source").read_text(encoding="utf-8")
    assert "target images" not in text
    with pytest.raises(CellsegError, match="no scores of evaluation set 'x'; there are: target, source"):
        write_page(runs, tmp_path / "one.html", evaluation="x")
    with pytest.raises(CellsegError, match=r"written as \.html, or as \.png"):
        write_page(runs, tmp_path / "one.pdf")


def test_too_many_runs_are_refused(runs, tmp_path):
    many = [shutil.copytree(runs[0], tmp_path / f"run{place}" / "s0") for place in range(7)]
    with pytest.raises(CellsegError, match="at most 6 different runs, but got 7"):
        write_page(many, tmp_path / "many.html")


def test_the_command_prints_where_the_page_is(runs, tmp_path):
    from typer.testing import CliRunner

    from cellseg.cli import app

    done = CliRunner().invoke(app, ["report", *map(str, runs), "--out", str(tmp_path / "x.html"), "--title", "Nuclei"])
    assert (done.exit_code, done.stdout) == (0, f"{tmp_path / 'x.html'}\n")
    assert "<h1>Nuclei</h1>" in (tmp_path / "x.html").read_text(encoding="utf-8")


def test_hostile_names_are_text(hostile_file):
    text = hostile_file.read_text(encoding="utf-8")
    assert "<img" not in text
    assert text.count("<script>") == 1
    assert "&lt;/script&gt;&lt;script&gt;alert(1)" in text


def test_names_break_after_underscores_and_nowhere_else():
    assert str(breakable("a_b<i>")) == "a_<wbr>b&lt;i&gt;"


def test_roles():
    assert [role(place, 3) for place in range(3)] == ["before", "after", "after"]
    assert role(0, 1) == ""


def luminance(colour):
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first, second):
    """WCAG 2.2 contrast ratio."""
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_of_text_and_marks_in_both_themes(page_file):
    text = page_file.read_text(encoding="utf-8")
    blocks = re.findall(r":root \{(.*?)\}", text, flags=re.DOTALL)[:2]
    themes = [dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", block)) for block in blocks]
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    for theme in themes:
        for ground in (theme["paper"], theme["card"]):
            assert all(contrast(theme[name], ground) >= 4.5 for name in ("ink", "soft", "accent"))
            assert all(contrast(theme[f"m{place}"], ground) >= 3 for place in range(6))


# ---- in a browser


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next((found for name in names if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    switches = [
        *("--headless", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
        *("--disable-sync", "--no-first-run"),
    ]
    if os.geteuid() == 0:
        switches.append("--no-sandbox")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=switches)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    """Open a file; when the test ends, no error, no dialog and no request may have happened."""
    contexts, trouble = [], []

    def open_file(path, **settings):
        context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | settings))
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: trouble.append(message.text))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("dialog", lambda dialog: (trouble.append(dialog.message), dialog.dismiss()))
        page.on(
            "request",
            lambda request: None if request.url.startswith(("file:", "data:")) else trouble.append(request.url),
        )
        page.goto(path.as_uri())
        return page

    yield open_file
    for context in contexts:
        context.close()
    assert trouble == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_and_is_not_blank(visit, page_file, width, scheme):
    page = visit(page_file, viewport={"width": width, "height": 844}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    shown = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    assert shown.width == width
    assert len(shown.getcolors(1 << 24)) > 100
    ground = np.median(np.asarray(shown)[::9, ::9].reshape(-1, 3), axis=0)
    assert (ground > 230).all() if scheme == "light" else (ground < 50).all()


@pytest.mark.parametrize("width", [1000, 390])
def test_a_page_without_labels_fits_and_can_be_used(visit, free_file, width):
    page = visit(free_file, viewport={"width": width, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.get_by_text("In 2 images without labels pre.safetensors found 7 cells and mine finds 5.").is_visible()
    assert column(page, 0, 5) == [".667", "1.000"]  # agreement, the lowest first
    page.get_by_role("button", name="Agreement").click()
    assert column(page, 0, 1) == ["b", "a"]
    assert page.locator("[data-layer]").count() == 2
    assert page.locator("#left option").all_inner_texts() == ["pre.safetensors", "mine"]
    assert page.locator(".view:visible h3").inner_text().startswith("Changed most")
    page.get_by_role("link", name="b", exact=True).click()
    assert page.locator(".view:visible h3").inner_text().startswith("Changed least")
    assert page.locator(".scatter circle").count() == 9  # flips never changed: no rank, no chart
    assert page.locator(".scatter .handed").count() == 1


def column(page, table, place):
    return page.locator(f".sortable >> nth={table}").locator(f"tbody tr > :nth-child({place})").all_inner_texts()


def test_columns_sort_by_click_and_by_key(visit, page_file):
    page = visit(page_file)
    head = page.locator(".sortable").first.locator("th", has_text="learn")
    assert (column(page, 0, 1), head.get_attribute("aria-sort")) == (["a", "b", "c"], "ascending")
    head.get_by_role("button").click()
    assert (column(page, 0, 1), head.get_attribute("aria-sort")) == (["c", "b", "a"], "descending")
    other = page.locator(".sortable").first.get_by_role("button", name="Image")
    other.focus()
    page.keyboard.press("Enter")
    assert column(page, 0, 1) == ["a", "b", "c"]
    page.keyboard.press("Space")
    assert column(page, 0, 1) == ["c", "b", "a"]
    assert head.get_attribute("aria-sort") is None
    page.locator(".sortable").first.get_by_role("button", name="Found").click()
    assert column(page, 0, 6) == ["2", "3", "4"]


def clips(page):
    return page.evaluate("""['left', 'right'].map((side) => getComputedStyle(
        document.querySelector(`.view:not([hidden]) .is-${side}`)).clipPath)""")


def test_the_slider_cuts_the_pictures_by_key_and_by_pointer(visit, page_file):
    page = visit(page_file)
    slider = page.get_by_role("slider")
    assert slider.count() == 1
    assert slider.get_attribute("aria-valuetext") == "left 50 %: teach, right: learn"
    assert clips(page) == ["inset(0px 50% 0px 0px)", "inset(0px 0px 0px 50%)"]
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert clips(page) == ["inset(0px 49% 0px 0px)", "inset(0px 0px 0px 51%)"]
    page.keyboard.press("Home")
    assert clips(page) == ["inset(0px 100% 0px 0px)", "inset(0px 0px 0px 0%)"]
    page.keyboard.press("End")
    assert clips(page) == ["inset(0px 0% 0px 0px)", "inset(0px 0px 0px 100%)"]
    slider.fill("50")
    stage = page.locator(".view:not([hidden]) .stage")
    stage.scroll_into_view_if_needed()
    box = stage.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2)
    page.mouse.up()
    page.mouse.move(box["x"], box["y"])
    assert slider.input_value() == "25"


def test_images_sides_and_layers_are_chosen(visit, page_file):
    page = visit(page_file)
    shown = page.locator(".view:visible")
    assert (shown.count(), shown.get_attribute("id")) == (1, "view-1")
    page.get_by_role("radio").first.focus()
    page.keyboard.press("ArrowDown")
    assert shown.get_attribute("id") == "view-2"
    page.get_by_role("radio", name=re.compile("worst")).last.check()
    assert shown.locator("h3").inner_text().startswith("Worst and largest loss of source")
    truth = page.locator(".view:not([hidden]) .is-right .outline.truth")
    assert truth.evaluate("node => getComputedStyle(node).display") == "inline"
    page.get_by_label("true", exact=True).uncheck()
    assert truth.evaluate("node => getComputedStyle(node).display") == "none"
    page.get_by_label("Left").select_option("true cells")
    assert page.locator(".view:not([hidden]) .is-left").get_attribute("data-side") == "truth"
    page.get_by_role("link", name="b", exact=True).click()
    assert shown.get_attribute("id") == "view-2"


def test_toggling_a_layer_changes_the_picture_alone(visit, page_file):
    page = visit(page_file)
    stage = page.locator(".view:not([hidden]) .stage")
    before = stage.screenshot()
    box = page.get_by_label("learn", exact=True).and_(page.get_by_role("checkbox"))
    box.uncheck()
    assert stage.screenshot() != before
    box.check()
    assert stage.screenshot() == before


def test_everything_that_acts_has_a_name_and_shows_its_focus(visit, page_file):
    page = visit(page_file)
    unnamed = """[...document.querySelectorAll('button, input, select, [role=img], [role=region]')].filter((node) =>
        !(node.getAttribute('aria-label') || node.textContent.trim() || node.labels?.length)).length"""
    assert page.evaluate(unnamed) == 0
    assert (
        page.evaluate("new Set([...document.querySelectorAll('[id]')].map((n) => n.id)).size")
        == page.locator("[id]").count()
    )
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    for _ in range(3):
        page.keyboard.press("Tab")
        style = page.evaluate(
            "(({outlineStyle, outlineWidth}) => [outlineStyle, outlineWidth])(getComputedStyle(document.activeElement))"
        )
        assert style == ["solid", "3px"]


def test_the_page_reads_without_script(visit, page_file):
    page = visit(page_file, java_script_enabled=False)
    assert page.locator(".view:visible").count() == 4
    assert page.locator(".panel:visible").count() == 4 * 3
    assert page.locator("input:visible, select:visible, button:visible").count() == 0
    assert page.get_by_text("On 3 target images mean F1@0.5 rose from .133 to .841.").is_visible()


def test_the_page_prints_every_image_on_white(visit, page_file):
    page = visit(page_file, color_scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.locator(".view:visible").count() == 4
    assert page.locator(".panel:visible").count() == 4 * 3
    assert page.locator("input:visible, select:visible, nav:visible").count() == 0
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.pdf(format="A4").startswith(b"%PDF")


def test_hostile_names_do_nothing(visit, hostile_file):
    page = visit(hostile_file)
    assert page.locator("img, script:not(:last-of-type), h1 *").count() == 0
    assert page.locator("h1").inner_text() == HOSTILE_TEXT
    assert page.locator(".sortable tbody th").inner_text() == HOSTILE
    page.get_by_role("link", name=HOSTILE).click()
    assert page.locator(".view:visible").count() == 1
