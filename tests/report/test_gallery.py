"""The gallery of a small real run: tables, shards with JPEG and FLAC, and a real browser over file://."""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from sonify.errors import InputError, WorkError
from sonify.io.tables import read_rows
from sonify.keys import escape_key, hash64
from sonify.report.gallery import build_gallery
from sonify.rows import Clip, Pair, Reason, Refused, Render, SourceClip
from tests.builders import (
    clip_row,
    encoded,
    pair_row,
    picture,
    refused,
    render_row,
    sine,
    sound_bytes,
    source_row,
    write_table,
    write_tar,
)

HOSTILE = "</script><script>window.owned = 1</script><img src=x onerror='window.owned = 2'>\u2028<!-- &amp; \" ' `"
HOSTILE_ATTRIBUTION = "javascript:window.owned=3 <a href='https://evil.example/'>x</a> at https://sounds.example/7)."
SCENES = ("llava", "qwen")
CONCEPTS = ("dog", "rain", "church bells")


@dataclass(frozen=True)
class Shown:
    """An image to put into a run."""

    key: str
    split: str
    caption: str


def some_images(count: int) -> list[Shown]:
    return [
        Shown(
            escape_key(f"holiday/{n:03d}_beach.jpg"),
            "validation" if n % 5 == 4 else "train",
            f"picture number {n}",
        )
        for n in range(count)
    ]


def jpeg(seed: int, size: tuple[int, int]) -> bytes:
    column = np.linspace(0, 255, size[0])[None, :, None]
    pixels = np.broadcast_to((column + np.array([0, 70, 35 * seed])) % 256, (size[1], size[0], 3)).astype(np.uint8)
    return encoded(Image.fromarray(pixels), quality=85)


def flac(seed: int) -> bytes:
    return sound_bytes(sine(200 + 100 * seed, level=0.05))


def clip_of(concept: str) -> Clip:
    return clip_row(
        f"esc50-{concept.replace(' ', '-')}-0", recording=concept, corpus="esc50", file=f"{concept}.flac",
        text=f"recording of {concept}", licence="CC-BY-4.0" if concept == "dog" else "CC0",
        attribution=HOSTILE_ATTRIBUTION,
    )  # fmt: skip


def source(concept: str, cosine: float) -> SourceClip:
    return source_row(
        concept, description=f"{concept} far away", clip=clip_of(concept).clip, cosine=cosine, score=cosine**0.5,
        threshold=0.4, num_candidates=7,
    )  # fmt: skip


def pair(number: int, image: Shown, scene: str) -> Pair:
    concepts = CONCEPTS[: 1 + number % 3]
    sources = tuple(source(concept, 0.5 + number / 100 + k / 1000) for k, concept in enumerate(concepts))
    size = {"width": 800, "height": 600}
    return pair_row(
        image.key, image_uri=image.key, split=image.split, scene=scene, caption=image.caption, sources=sources, **size
    )


def make_run(run_dir: Path, images: Sequence[Shown], scenes: Sequence[str] = SCENES, units: int = 1) -> Path:
    """A finished run of 800 x 600 images, every unit with the images of one residue of their number."""
    write_table(run_dir / "pool/clips/esc50.parquet", Clip, [clip_of(concept) for concept in CONCEPTS])
    numbered = list(enumerate(images))
    for unit in range(units):
        members: dict[str, dict[str, bytes]] = {}
        pairs = [pair(n, image, scene) for n, image in numbered[unit::units] for scene in scenes]
        for n, image in numbered[unit::units]:
            shard = members.setdefault(image.split, {})
            shard |= {f"{image.key}.jpg": jpeg(n, (800, 600)), f"{image.key}.json": b"{}"}
            shard |= {f"{image.key}.{scene}.flac": flac(n) for scene in scenes}
        for split, files in members.items():
            write_tar(run_dir / f"shards/{split}/unit-{unit}.tar", dict(sorted(files.items())))
        renders = [render_row(row) for row in pairs]
        write_table(run_dir / f"pairs/unit-{unit}.parquet", Pair, pairs)
        write_table(run_dir / f"renders/unit-{unit}.parquet", Render, renders)
    return run_dir


def read_index(gallery: Path) -> dict[str, Any]:
    text = (gallery / "data" / "index.js").read_text("ascii")
    return json.loads(text.removeprefix("window.GALLERY = ").removesuffix(";\n"))


def read_page(gallery: Path, page: int) -> list[dict[str, Any]]:
    text = (gallery / "data" / f"page-{page:04d}.js").read_text("ascii")
    return json.loads(text.removeprefix(f"GALLERY.pages[{page}] = ").removesuffix(";\n"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_every_image_is_shown_with_its_scenes_sources_and_files(tmp_path: Path) -> None:
    run = make_run(tmp_path / "holiday", some_images(14), units=2)

    gallery = build_gallery(run)

    assert gallery == run / "gallery"
    index = read_index(gallery)
    assert (index["run"], index["images"], index["scenes"], index["clips"]) == ("holiday", 14, 28, 3)
    assert index["limited_scenes"] == 28
    assert "cut_scenes" not in index
    assert [entry[0] for entry in index["entries"]] == [image.key for image in some_images(14)]
    shown = read_page(gallery, 1) + read_page(gallery, 2)
    assert len(shown) == 14
    picture = shown[4]
    assert (picture["path"], picture["split"]) == ("holiday/004_beach.jpg", "validation")
    scene = picture["scenes"][1]
    assert (scene["scene"], scene["mix_gain_db"], scene["peak_dbfs"], scene["duration_sec"]) == (
        "qwen",
        -0.5,
        -12.5,
        5,
    )
    assert scene["sources"][1] == {
        "concept": "rain",
        "description": "rain far away",
        "cosine": 0.541,
        "score": 0.7355,
        "threshold": 0.4,
        "num_candidates": 7,
        "target_lufs": -30.0,
        "gain_db": -9.75,
        "clip": "esc50-rain-0",
        "text": "recording of rain",
        "corpus": "esc50",
        "loudness_lufs": -20.25,
        "licence": "CC0",
        "attribution": HOSTILE_ATTRIBUTION,
    }
    assert (gallery / scene["audio"]).read_bytes() == flac(4)
    with Image.open(gallery / picture["preview"]) as preview:
        assert preview.size == (640, 480) == (picture["width"], picture["height"])
    with Image.open(gallery / scene["spectrogram"]) as spectrogram:
        assert spectrogram.size == (640, 96)


def with_evidence(tmp_path: Path) -> Path:
    """A run of one image with a sound that is weak and holds speech, a plain one, and what is not heard."""
    run = make_run(tmp_path / "holiday", some_images(1), SCENES[:1])
    (found,) = read_rows(run / "pairs/unit-0.parquet", Pair)
    weak = replace(
        source("dog", 0.52), limit=0.5, heard_by="yamnet", heard="Animal 0.90", support=0.0, purity=0.25, speech=0.75
    )
    row = Refused(
        concept="goose", description="", presence="", reason=Reason.NOT_CONFIRMED, clip=clip_of("rain").clip,
        cosine=0.31, heard="Engine 0.80",
    )  # fmt: skip
    unheard = (
        row,
        replace(row, concept=HOSTILE, reason=Reason.NOT_VISIBLE, presence="off_screen", clip="", heard=""),
        replace(row, concept="frog", reason=Reason.NO_MATCH, clip="elsewhere#0", heard=""),
    )
    changed = replace(found, sources=(weak, source("rain", 0.9)), refused=unheard)
    write_table(run / "pairs/unit-0.parquet", Pair, [changed])
    return run


def test_what_speaks_against_a_sound_is_shown_and_what_is_not_heard(tmp_path: Path) -> None:
    gallery = build_gallery(with_evidence(tmp_path))
    index = read_index(gallery)
    assert (index["weak_sounds"], index["sounds"]) == (1, 2)
    assert "weak match: not confirmed" in index["entries"][0][3]
    scene = read_page(gallery, 1)[0]["scenes"][0]
    weak, fine = scene["sources"]
    assert (weak["limit"], weak["heard_by"], weak["heard"], weak["purity"]) == (0.5, "yamnet", "Animal 0.90", 0.25)
    assert weak["marks"] == ["weak match: within 0.05 of its limit", "weak match: not confirmed", "speech 0.75"]
    assert not {"marks", "limit", "heard_by"} & fine.keys()
    assert [(one["why"], one["near"], one["heard"]) for one in scene["refused"]] == [
        ("not heard in the recordings that are near", "recording of rain", "Engine 0.80"),
        ("off screen", "", ""),
        ("no recording is near enough", "elsewhere#0", ""),
    ]


def test_marks_are_seen_and_found(page: Page, tmp_path: Path) -> None:
    show(page, build_gallery(with_evidence(tmp_path)), "#?q=weak+match")
    assert page.locator(".mark").all_inner_texts()[-1] == "speech 0.75"
    assert page.locator(".unheard li b").all_text_contents() == ["goose", HOSTILE, "frog"]
    assert "in which was heard: Engine 0.80" in page.locator(".unheard").inner_text()
    assert page.evaluate("window.owned") is None
    page.get_by_text("50.0").click()
    assert page.locator("article").count() == 1


def test_a_sample_is_the_images_with_the_lowest_hash_whatever_the_units(tmp_path: Path) -> None:
    images = some_images(20)
    lowest = sorted(images, key=lambda image: hash64("gallery", image.key))[:6]

    one = build_gallery(make_run(tmp_path / "one" / "run", images, ("llava",)), rows=6)
    three = build_gallery(make_run(tmp_path / "three" / "run", images, ("llava",), units=3), rows=6)

    assert {entry[0] for entry in read_index(one)["entries"]} == {image.key for image in lowest}
    assert read_index(one)["images"] == 20
    assert len(list((one / "media").glob("*.flac"))) == 6
    assert contents(one) == contents(three)


def test_hostile_text_is_inert_in_the_data_files(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [Shown(escape_key("<b>\u2028.jpg"), "train", HOSTILE)], ("llava",))

    gallery = build_gallery(run)

    for path in (gallery / "data").iterdir():
        text = path.read_text("ascii")  # so U+2028 is escaped
        assert not set("<>&") & set(text)
        assert text.count("\n") == 1
    assert read_page(gallery, 1)[0]["caption"] == HOSTILE
    assert read_page(gallery, 1)[0]["path"] == "<b>\u2028.jpg"


def test_a_key_longer_than_a_file_name_is_shown(tmp_path: Path) -> None:
    key = escape_key("é" * 120 + ".jpg")

    gallery = build_gallery(make_run(tmp_path / "run", [Shown(key, "train", "")], ("llava",)))

    assert len(key) > 255
    assert read_page(gallery, 1)[0]["path"] == "é" * 120 + ".jpg"


def test_a_second_build_replaces_the_first_and_leaves_nothing_else(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", some_images(3), ("llava",))
    first = contents(build_gallery(run))
    (run / "gallery" / "stale.txt").write_text("from an older version")
    (run / ".gallery.partial").mkdir()
    (run / ".gallery.partial" / "half.jpg").write_bytes(b"from a killed build")

    second = contents(build_gallery(run))

    assert second == first
    assert not [path.name for path in run.iterdir() if path.name.startswith(".")]


FIRST, SHARD = some_images(1)[0].key, "shards/train/unit-0.tar"


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (
            lambda run: write_tar(run / SHARD, {f"{FIRST}.jpg": b"not a picture", f"{FIRST}.llava.flac": flac(0)}),
            r"unit-0\.tar: .*000__beach_2ejpg\.jpg or its sounds are damaged",
        ),
        (
            lambda run: write_tar(run / SHARD, {f"{FIRST}.jpg": picture(), f"{FIRST}.llava.flac": b"not a sound"}),
            r"unit-0\.tar: .*000__beach_2ejpg\.jpg or its sounds are damaged",
        ),
        (lambda run: write_tar(run / SHARD, {f"{FIRST}.jpg": picture()}), r"unit-0\.tar: lacks .*\.llava\.flac"),
        (lambda run: (run / SHARD).unlink(), r"unit-0\.tar: not readable"),
        (
            lambda run: write_table(run / "pool/clips/esc50.parquet", Clip, [clip_of("rain")]),
            r"pool/clips: lacks 1 clips.*esc50-dog-0",
        ),
        (
            lambda run: write_table(run / "pairs/unit-0.parquet", Pair, []),
            r"unit-0\.parquet: lacks 1 rendered scenes",
        ),
        (lambda run: (run / "pairs/unit-0.parquet").unlink(), r"pairs/unit-0\.parquet: missing"),
    ],
    ids=["image damaged", "sound damaged", "no sound", "no shard", "no clip", "no pair", "no pairs"],
)
def test_damage_is_named_and_the_older_gallery_stays(tmp_path: Path, damage: Any, named: str) -> None:
    run = make_run(tmp_path / "run", some_images(1), ("llava",))
    before = contents(build_gallery(run))
    damage(run)

    with pytest.raises(WorkError, match=named) as raised:
        build_gallery(run)

    assert "sonify verify" in str(raised.value)
    assert contents(run / "gallery") == before
    assert not (run / ".gallery.partial").exists()


def test_a_run_without_renders_says_what_to_run(tmp_path: Path) -> None:
    with refused(r"no rendered images.*sonify run --config"):
        build_gallery(tmp_path)
    assert not (tmp_path / "gallery").exists()


def test_no_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least 1"):
        build_gallery(make_run(tmp_path / "run", some_images(1), ("llava",)), rows=0)


# In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on the PATH: the gallery was not opened in a browser")
    flags = ["no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"]
    flags += ["disable-component-update", "disable-sync", "autoplay-policy=no-user-gesture-required"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=[f"--{flag}" for flag in flags])
        try:
            yield browser
        finally:
            browser.close()


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    hostile = Shown(escape_key("zz <i>hostile</i>.jpg"), "train", HOSTILE)
    return build_gallery(make_run(tmp_path_factory.mktemp("runs") / "holiday", [*some_images(40), hostile]))


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page that must stay silent on its console and ask nothing of the network."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "request",
        lambda request: None if request.url.startswith(("file:", "data:")) else complaints.append(request.url),
    )
    try:
        yield page
        assert complaints == []
    finally:
        context.close()


def show(page: Page, gallery: Path, fragment: str = "") -> None:
    page.goto((gallery / "index.html").as_uri() + fragment)
    page.wait_for_selector("article")


def captions(page: Page) -> list[str]:
    return page.locator("article h2").all_inner_texts()


def wait_for_status(page: Page, text: str) -> None:
    page.get_by_role("status").filter(has_text=text).wait_for()


def test_images_are_shown_and_a_screenshot_has_them(page: Page, gallery: Path, tmp_path: Path) -> None:
    show(page, gallery)

    page.wait_for_function("() => [...document.images].slice(0, 2).every((image) => image.naturalWidth > 0)")

    assert page.title() == "holiday · sonify gallery"
    assert page.get_by_role("heading", level=1).inner_text() == "holiday"
    assert "41 images" in page.locator(".lead").inner_text()
    assert captions(page)[:2] == ["picture number 0", "picture number 1"]
    page.screenshot(path=tmp_path / "gallery.png")
    with Image.open(tmp_path / "gallery.png") as screenshot:
        assert screenshot.size == (1280, 900)
        assert len(screenshot.convert("RGB").getcolors(1 << 24) or []) > 500


def test_a_sample_says_so(page: Page, tmp_path: Path) -> None:
    show(page, build_gallery(make_run(tmp_path / "run", some_images(5), ("llava",)), rows=2))

    assert page.locator(".lead").inner_text().startswith("2 of 5 images")


def test_search_narrows_over_all_pages_and_can_be_cleared(page: Page, gallery: Path) -> None:
    show(page, gallery)
    search = page.get_by_role("searchbox")

    search.fill("NUMBER 39")
    wait_for_status(page, "1–1 of 1 match")
    assert captions(page) == ["picture number 39"]
    for text, matches in [
        ("church bells", 13),
        ("cc-by-4.0", 41),
        ("holiday/00", 10),
        ("recording of rain", 27),
    ]:
        search.fill(text)
        wait_for_status(page, f"of {matches} match")
    search.fill("no such thing")
    wait_for_status(page, "Nothing found for “no such thing”")
    assert captions(page) == []

    page.get_by_role("link", name="Show all").click()
    wait_for_status(page, "of 41 images")


def test_paging_splits_and_order(page: Page, gallery: Path) -> None:
    show(page, gallery)
    assert page.locator("article").count() == 12

    page.get_by_role("link", name="Next").click()
    wait_for_status(page, "13–24 of 41 images")
    assert captions(page)[0] == "picture number 12"
    page.get_by_role("link", name="Page 4").click()
    wait_for_status(page, "37–41 of 41 images")
    page.go_back()
    wait_for_status(page, "13–24 of 41 images")

    page.get_by_label("Split").select_option("validation")
    wait_for_status(page, "1–8 of 8 matches")
    page.get_by_label("Order").select_option("strongest")
    page.wait_for_function("() => document.querySelector('article h2').textContent === 'picture number 39'")


def test_a_link_to_an_image_opens_its_page_and_focuses_it(page: Page, gallery: Path) -> None:
    key = some_images(31)[30].key

    show(page, gallery, f"#{key}")

    page.wait_for_function("(key) => document.activeElement.id === key", arg=key)
    assert captions(page)[6] == "picture number 30"
    box = page.locator(f"article[id='{key}']").bounding_box()
    assert box is not None
    assert 0 <= box["y"] < 450


def test_a_sound_plays_and_the_one_before_stops(page: Page, gallery: Path) -> None:
    show(page, gallery)
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))

    page.evaluate("document.querySelectorAll('audio')[0].play()")
    page.wait_for_function("() => document.querySelectorAll('audio')[0].currentTime > 0.3")
    page.locator(".spectrogram").nth(1).click()
    page.wait_for_function("() => document.querySelectorAll('audio')[1].currentTime > 2.6")

    sounds = page.evaluate(
        "[...document.querySelectorAll('audio')].slice(0, 2).map((a) => [a.duration, a.error, a.paused])"
    )
    assert sounds[0] == [pytest.approx(5, abs=0.05), None, True]
    assert sounds[1] == [pytest.approx(5, abs=0.05), None, False]
    assert {url.rsplit("/", 1)[1] for url in requested if url.endswith(".flac")} == {
        "000001-1.flac",
        "000001-2.flac",
    }


def test_details_open_from_the_keyboard_and_only_web_addresses_are_links(page: Page, gallery: Path) -> None:
    show(page, gallery)
    details = page.locator("article details").first
    assert details.get_by_text("Attribution").is_hidden()

    details.locator("summary").focus()
    page.keyboard.press("Enter")

    assert details.get_by_text("Attribution").is_visible()
    facts = details.inner_text()
    for fact in (
        "esc50-dog-0",
        "0.500",
        "0.707",
        "−30.0\u202fLUFS",
        "−9.8\u202fdB",
        "−20.3\u202fLUFS",
        "CC-BY-4.0",
    ):
        assert fact in facts
    links = details.locator("a").evaluate_all("(all) => all.map((a) => [a.href, a.rel])")
    assert links == [
        ["https://evil.example/", "noopener noreferrer"],
        ["https://sounds.example/7", "noopener noreferrer"],
    ]
    assert HOSTILE_ATTRIBUTION in facts


def test_hostile_text_is_shown_as_it_is(page: Page, gallery: Path) -> None:
    show(page, gallery, "#?q=window.owned+%3D+1")

    wait_for_status(page, "1–1 of 1 match")

    assert page.locator("article h2").text_content() == HOSTILE
    assert page.locator("article .path").text_content() == "zz <i>hostile</i>.jpg"
    assert page.evaluate("window.owned") is None
    assert page.locator("article script, article i:not(.head)").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 768, 1280])
def test_nothing_is_clipped_at_any_width(page: Page, gallery: Path, width: int, scheme: Any) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(color_scheme=scheme)
    show(page, gallery, "#?page=4")
    page.get_by_role("button", name="Details").click()

    # The row of chips scrolls sideways by design, and hidden labels are for screen readers.
    clipped = page.evaluate(
        """() => [...document.body.querySelectorAll("*")]
            .filter((element) => !element.closest(".chips, .hidden, svg, .spectrogram"))
            .filter((element) => element.clientWidth > 0)
            .filter((element) => element.scrollWidth > element.clientWidth + 1
                || element.getBoundingClientRect().right > innerWidth + 0.5)
            .map((element) => element.outerHTML.slice(0, 80))"""
    )

    assert clipped == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(background.split("(")[1].split(",")[0]) < 60) == (scheme == "dark")
