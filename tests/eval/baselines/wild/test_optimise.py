"""The loss term by term against the published program's numbers, and that ten steps make it fall."""

from pathlib import Path
from typing import Any

import pytest
import torch

from eval.baselines.wild.attention import Conditioning, Heard, condition
from eval.baselines.wild.diffusion import Painter, open_painter
from eval.baselines.wild.optimise import (
    ClipJudge,
    Judged,
    Losses,
    Similarity,
    audio_loss,
    closeness_loss,
    open_clip_judge,
    open_wav2clip_similarity,
    optimise,
    scaled_cosine,
    spherical_loss,
)
from eval.towers.tower import Sound
from tests.builders import refused, sine
from tests.eval.baselines.wild.built import facts, uniform, write_sd, write_wav2clip
from tests.tiny_networks import tiny_clip

CPU = torch.device("cpu")
HEARD = Heard(words=("a", "dog", "barks"), probabilities=(0.5, 0.9, 0.4), noun_scores=(0.0, 1.0, 0.0), nouns_by="me")
SOUND = Sound(samples_S=sine(440, 1.0), sample_rate_hz=16_000)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("wild")
    write_sd(root / "sd")
    tiny_clip(root / "clip", 512)
    write_wav2clip(root / "wav2clip.safetensors")
    return root


@pytest.fixture(scope="module")
def judge(root) -> ClipJudge:
    return open_clip_judge(str(root / "clip"), None, CPU)


@pytest.fixture(scope="module")
def diffusion(root) -> Painter:
    return open_painter(str(root / "sd"), None, CPU)


@pytest.fixture(scope="module")
def similarity(root, judge) -> Similarity:
    return open_wav2clip_similarity(root / "wav2clip.safetensors", judge, CPU)


def conditioning_of(diffusion: Painter) -> Conditioning:
    return condition(HEARD, diffusion.tokenizer, diffusion.encode, CPU)


def test_each_term_is_the_published_programs():
    given = facts("losses")
    text, image = uniform(6100, 1, 512), uniform(6101, 1, 512).requires_grad_()
    caption = spherical_loss(image, text)
    caption.backward()
    assert float(caption.detach()) == pytest.approx(given["clip_spherical"], abs=1e-5)
    assert image.grad is not None
    assert image.grad[0, :4].tolist() == pytest.approx(given["clip_spherical_grad_first4"], abs=1e-7)
    fits = scaled_cosine(uniform(6102, 1, 1024), uniform(6103, 1, 1024), torch.tensor(100.0).log())
    assert 1 - float(fits) == pytest.approx(given["audioclip"], abs=1e-5)
    distance = facts("conditioning")["z_distance"]
    z, y = torch.zeros(1, 1, 1), torch.full((1, 1, 1), distance**0.5)
    total = closeness_loss(z, y) + caption + audio_loss(fits)
    assert float(total.detach()) == pytest.approx(given["total"], rel=1e-6)


@pytest.mark.parametrize(("scale", "clamped"), [(-1.0, 1.0), (9.0, 100.0)])
def test_the_logit_scale_is_held_between_1_and_100(scale, clamped):
    one = torch.ones(1, 4)
    assert float(scaled_cosine(one, one, torch.tensor(scale))) == pytest.approx(0.01 * clamped)


def test_the_terms_of_a_record_add_up():
    losses = Losses(closeness=14.4, caption=1.2, audio=0.9)
    assert losses.total == pytest.approx(16.5)
    assert losses.as_json() == {"closeness": 14.4, "caption": 1.2, "audio": 0.9, "total": 16.5}


def test_ten_steps_make_the_loss_fall_and_change_the_picture(diffusion, judge, similarity):
    conditioning, start = conditioning_of(diffusion), diffusion.noise(0)

    def draw(y: torch.Tensor) -> torch.Tensor:
        return diffusion.draw(y, start, 4, 7.5)

    judged = Judged(sound=SOUND, caption_1E=judge.read(HEARD.text), judge=judge, similarity=similarity)
    image, losses = optimise(conditioning, draw, judged, 10)
    first, alone = optimise(conditioning, draw, judged, 1)
    assert len(losses) == 10
    assert alone[0] == losses[0]
    assert losses[-1].total < losses[0].total
    assert not torch.equal(image, first)
    again, repeated = optimise(conditioning, draw, judged, 10)
    assert torch.equal(image, again)
    assert repeated == losses


@pytest.mark.parametrize("term", ["caption", "audio"])
def test_a_gradient_of_caption_and_sound_reaches_the_weights_through_the_sampling(diffusion, judge, similarity, term):
    conditioning, start = conditioning_of(diffusion), diffusion.noise(0)
    weights = conditioning.start().requires_grad_()
    image = diffusion.draw(conditioning.weigh(weights), start, 4, 7.5)
    loss = spherical_loss(judge.see(image), judge.read("a dog")) if term == "caption" else similarity(SOUND, image)
    loss.backward()
    assert weights.grad is not None
    assert weights.grad.isfinite().all()
    assert (weights.grad.abs().amax(1) > 0).all()  # each token's


def test_without_a_similarity_the_sound_has_no_part(diffusion, judge):
    judged = Judged(sound=SOUND, caption_1E=judge.read("a dog"), judge=judge, similarity=None)
    z = conditioning_of(diffusion).z_1PD
    total, terms = judged.losses(z, z * 2, uniform(1, 1, 3, 64, 64).abs())
    assert terms.audio == 0
    assert float(total) == pytest.approx(terms.closeness + terms.caption)


def test_one_picture_is_judged_without_a_gradient(diffusion, judge):
    seen: list[bool] = []

    def draw(y: torch.Tensor) -> torch.Tensor:
        seen.append(torch.is_grad_enabled())
        return uniform(1, 1, 3, 64, 64).abs() + 0 * y.mean()

    judged = Judged(sound=SOUND, caption_1E=judge.read("a dog"), judge=judge, similarity=None)
    optimise(conditioning_of(diffusion), draw, judged, 3)
    assert seen == [True, True, False]


def test_similarity_is_wav2clips_cosine_with_clips_picture(judge, similarity, root):
    from eval.towers.config import Wav2Clip  # noqa: PLC0415 - the tower that scores it, for comparison
    from eval.towers.wav2clip import open_wav2clip  # noqa: PLC0415

    tower: Any = open_wav2clip(Wav2Clip(kind="wav2clip", weights=root / "wav2clip.safetensors")).sounds
    image = uniform(5, 1, 3, 64, 64).abs()
    audio, eye = torch.from_numpy(tower.embed([SOUND])), judge.see(image)
    assert float(similarity(SOUND, image)) == pytest.approx(float(torch.cosine_similarity(audio, eye)), abs=1e-5)


def test_a_clip_of_another_space_than_wav2clips_is_refused(root, tmp_path):
    other = open_clip_judge(str(tiny_clip(tmp_path / "clip")), None, CPU)
    with refused("clip: expected vectors of 512.*found 16; take CLIP ViT-B/32"):
        open_wav2clip_similarity(root / "wav2clip.safetensors", other, CPU)
    with refused("nothing.safetensors: expected Wav2CLIP's weights, found no file"):
        open_wav2clip_similarity(tmp_path / "nothing.safetensors", open_clip_judge(str(root / "clip"), None, CPU), CPU)


def test_a_long_caption_is_cut_for_the_judge(judge):
    assert judge.read("dog " * 200).shape == (1, 512)
