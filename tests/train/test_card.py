"""The card of a model tells what it is, what it was trained on, what was chosen and what speaks against the choice."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from sonify.config.loader import make_settings
from sonify.errors import InputError
from tests.train.runs import plain_config, write_pool
from train.averages import Exponential, Held
from train.card import NOTHING_SAID, Terms, TrainedOn, check_model_licence, count_licences, make_card, objections
from train.config import TrainConfig

PIXART = "PixArt-alpha/PixArt-XL-2-512x512"
SEEN = TrainedOn(
    step=4,
    num_images=12,
    recordings=("a", "b", "c"),
    licences={"CC BY-NC 4.0": 2, "CC0": 1},
    lufs=((-32.0, -28.0),),
    networks={"stabilityai/sd-vae-ft-ema": "f04b2c4"},
)


HELD = Held(rule=Exponential(decay=0.9, warmup=True))


def config_of(tmp_path: Path, **sections: Any) -> TrainConfig:
    return make_settings(plain_config(tmp_path, **sections), TrainConfig, check_paths=False)


def card_of(config: TrainConfig, seen: TrainedOn = SEEN, terms: Terms = NOTHING_SAID) -> str:
    return make_card(config, seen, {}, held=HELD, terms=terms, code={"pipeline.py": "c0de"}, files_bytes=1_500_000)


def test_the_head_is_what_the_hub_reads(tmp_path: Path) -> None:
    checkpoint = {"kind": "checkpoint", "model": PIXART, "revision": "50f7021"}
    config = config_of(tmp_path, model={"init": checkpoint})

    card = ModelCard(card_of(config, terms=Terms(licence="openrail++")))

    head = card.data.to_dict()
    assert (head["license"], head["base_model"], head["library_name"]) == ("openrail++", PIXART, "diffusers")
    assert "license_name" not in head
    assert "arxiv:2501.05413" in head["tags"]
    assert yaml.safe_load(card.content.split("---")[1]) == head
    assert f"Training began with `{PIXART}` (`50f7021`)." in card.text
    assert f"| `{PIXART}` | `50f7021` | openrail++ |" in card.text
    assert "| `stabilityai/sd-vae-ft-ema` | `f04b2c4` | mit |" in card.text


@pytest.mark.parametrize("place", ["{}/models/pixart", "models/of/mine"])
def test_a_folder_that_training_began_with_is_no_base_model(place: str, tmp_path: Path) -> None:
    place = place.format(tmp_path)
    config = config_of(tmp_path, model={"init": {"kind": "checkpoint", "model": place}})

    card = ModelCard(card_of(config))

    assert "base_model" not in card.data.to_dict()
    assert place not in card.content
    assert f"began with `{Path(place).name}`" in card.text


def test_how_it_is_used_names_the_repository_and_what_code_runs(tmp_path: Path) -> None:
    text = card_of(config_of(tmp_path), terms=Terms(licence="mit", repo="me/model"))

    line = 'DiffusionPipeline.from_pretrained("me/model", custom_pipeline="me/model", trust_remote_code=True)'
    assert line in text
    assert "sonify generate --model me/model --audio a.wav --out out.png" in text
    assert "runs code of this repository on your machine, with your rights: read it first" in text
    assert "The sha256 of `pipeline.py` is `c0de`." in text
    assert "you/name" not in text
    assert "sonify generate" not in card_of(config_of(tmp_path, ast=None))


def test_what_it_was_trained_on_is_told(tmp_path: Path) -> None:
    text = card_of(config_of(tmp_path), replace(SEEN, lufs=((-32.0, -28.0), (-27.5, -23.0))))

    assert "| loudness of each source (`mix.lufs`) | -32 to -28 LUFS, -27.5 to -23 LUFS |" in text
    assert "by itself" in text
    for source in ("2501.05413", "2310.00426", "2104.01778"):
        assert f"{{{source}}}" in text


def test_a_licence_that_nobody_chose_is_said_in_words(tmp_path: Path) -> None:
    card = ModelCard(card_of(config_of(tmp_path)))

    head = card.data.to_dict()
    assert (head["license"], head["license_name"]) == ("other", "not-chosen")
    assert "The licence of these weights is not chosen: whoever publishes them has to." in card.text
    assert "weighed against" not in card.text


def test_an_address_is_a_licence_of_ones_own(tmp_path: Path) -> None:
    place = "https://example.org/licence.txt"

    card = ModelCard(card_of(config_of(tmp_path), terms=Terms(licence=place)))

    head = card.data.to_dict()
    assert (head["license"], head["license_name"], head["license_link"]) == ("other", "own", place)
    assert f"These weights are under <{place}>." in card.text


def test_words_about_the_images_stand_there_and_do_nothing(tmp_path: Path) -> None:
    said = "CC BY 4.0 | <script>alert(1)</script>\n# and [more](http://evil)"

    text = card_of(config_of(tmp_path), terms=Terms(licence="mit", image_licence=said))

    assert "as the publisher states it: CC BY 4.0 \\| &lt;script&gt;" in text
    assert "<script>" not in text
    assert "\n# and" not in text


@pytest.mark.parametrize(
    ("runs", "said", "unsaid"),
    [
        ((2, 0), ["- Which sound belongs to which image was chosen by models"], "train.pairs"),
        ((0, 2), ["- Which sound belongs to which image was decided by whoever made the pairs"], "by models"),
        (
            (1, 1),
            ["In 1 of 2 runs, which sound belongs to which image was chosen by models", "was decided by whoever"],
            "",
        ),
    ],
)
def test_who_chose_which_sound_belongs_to_which_image(
    runs: tuple[int, int], said: list[str], unsaid: str, tmp_path: Path
) -> None:
    seen = replace(SEEN, runs_of_models=runs[0], runs_of_pairs=runs[1])

    limits = " ".join(card_of(config_of(tmp_path), seen).split("## Limits")[1].split())

    assert all(one in limits for one in said)
    assert not unsaid or unsaid not in limits.split("## ")[0]


@pytest.mark.parametrize(
    ("of_projector", "said"),
    [(2, "its 2 recordings are named in `recordings.txt` as well"), (None, "which recordings it heard is not known")],
)
def test_a_projector_that_was_trained_before_is_named(of_projector: int | None, said: str, tmp_path: Path) -> None:
    config = config_of(tmp_path, model={"init": {"kind": "scratch", "projector": "mine/projector.safetensors"}})

    assert said in card_of(config, replace(SEEN, of_projector=of_projector))
    assert "projector" not in card_of(config_of(tmp_path)).split("## Use")[0]


@pytest.mark.parametrize(
    ("licence", "images", "said"),
    [
        ("mit", None, ["2 of 3 recordings are for no commercial use (NC), which mit does not say"]),
        ("cc-by-nc-4.0", None, []),
        (
            "cc-by-nc-4.0",
            "SA-1B Dataset Research License",
            ["12 of 12 images are for research only", "12 of 12 images may not be passed on"],
        ),
        (
            "openrail++",
            None,
            ["2 of 3 recordings are for no commercial use (NC), which openrail++ is not known to say"],
        ),
        (None, "CC BY-ND 4.0", []),
    ],
)
def test_what_speaks_against_a_choice_is_counted(
    licence: str | None, images: str | None, said: list[str], tmp_path: Path
) -> None:
    terms = Terms(licence=licence, image_licence=images)

    assert list(objections(config_of(tmp_path), SEEN, terms)) == said
    text = card_of(config_of(tmp_path), terms=terms)
    assert text.count("weighed against it") == bool(said)
    assert all(one in text for one in said)


@pytest.mark.parametrize(("licence", "number"), [("mit", 1), ("openrail++", 0), ("creativeml-openrail-m", 0)])
def test_a_model_that_binds_what_is_made_of_it_is_named(licence: str, number: int, tmp_path: Path) -> None:
    config = config_of(tmp_path, model={"init": {"kind": "checkpoint", "model": PIXART}})

    found = objections(config, replace(SEEN, licences={"CC0": 3}), Terms(licence=licence))

    assert len(found) == number
    assert all(PIXART in one and "openrail++" in one for one in found)


@pytest.mark.parametrize(
    "licence", ["", "other", "unknown", "not-chosen", "CC BY 4.0", "http://a.b/c", "x\nlicense: y"]
)
def test_what_chooses_no_licence_is_refused(licence: str) -> None:
    with pytest.raises(InputError, match="names no licence: expected a name as the hub has them") as refused:
        check_model_licence(licence)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("licence", "odd"),
    [
        ("cc-by-nc-4.0", None),
        ("openrail++", None),
        ("https://example.org/l", None),
        ("cc-by-nc-4", "did you mean cc-by-nc-4.0?"),
        ("llama9", "the hub refuses what it does not know"),
    ],
)
def test_a_licence_that_the_hub_may_not_know_is_odd(licence: str, odd: str | None) -> None:
    said = check_model_licence(licence)
    assert said is None if odd is None else odd in (said or "")


def test_licences_are_counted_by_recording(tmp_path: Path) -> None:
    write_pool(tmp_path / "a", {"x": "CC0", "y": "CC BY 4.0"})
    write_pool(tmp_path / "b", {"z": "CC0"})

    counted = count_licences([tmp_path / "a", tmp_path / "b", tmp_path / "gone"], ["x", "y", "z", "lost"])

    assert counted == {"CC0": 2, "CC BY 4.0": 1, "not known": 1}
