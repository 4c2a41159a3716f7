import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.conditioning import (
    BATCH,
    Lessons,
    Split,
    TokenPainter,
    count_flops,
    donors,
    draw,
    estimate_over,
    json_line,
    learn,
    make_embedder,
    make_generator,
    markdown,
    measure,
    sound_loss,
    text_loss,
    text_of,
    wrong_class,
)
from benchmarks.learning.collection import CLASSES
from benchmarks.learning.judging import Judged
from benchmarks.learning.verdicts import Measured, estimate


@pytest.fixture
def lessons() -> Lessons:
    rng = np.random.default_rng(0)
    return Lessons(
        latents_NCHW=torch.from_numpy(rng.standard_normal((12, 4, 12, 12), np.float32)),
        audio_NSTF=torch.from_numpy(rng.random((12, 3, 9, 521), np.float32)),
        texts=tuple(text_of(CLASSES[n % 6]) for n in range(12)),
    )


def judged(right: np.ndarray) -> Judged:
    """Of recordings whose pictures are right or of the next class, as told."""
    true_R = np.arange(len(right)) % 6
    seen_RS = np.where(right[:, None], true_R[:, None], (true_R[:, None] + 1) % 6)
    return Judged(true_R=true_R, seen_RS=seen_RS, first_RHWC=np.zeros((len(right), 96, 96, 3), np.uint8))


def test_every_word_of_the_texts_is_one_token():
    prompt = make_generator(0).prompt
    for name in CLASSES:
        words = text_of(name).split()
        assert len(prompt.tokenizer(text_of(name)).input_ids) == len(words) + 2
    assert prompt.tokenizer.get_vocab() == make_generator(1).prompt.tokenizer.get_vocab()
    assert int((prompt.input_ids("a photo of <*>") == prompt.token_id).nonzero()) == 4


def test_a_batch_is_the_same_whenever_it_is_drawn_and_each_epoch_sees_all(lessons):
    first, again, other = draw(lessons, 1, 5), draw(lessons, 1, 5), draw(lessons, 2, 5)
    assert torch.equal(first.noise_BCHW, again.noise_BCHW)
    assert torch.equal(first.audio_BTF, again.audio_BTF)
    assert not torch.equal(first.latents_BCHW, other.latents_BCHW)
    seen = torch.cat([draw(lessons, 0, step).latents_BCHW for step in range(3)])
    counts = [int((seen == one).flatten(1).all(1).sum()) for one in lessons.latents_NCHW]
    assert counts == [3 * BATCH // 12] * 12
    dropped = [text == "" for step in range(20) for text in draw(lessons, 0, step).texts]
    assert 0.05 < np.mean(dropped) < 0.15


def test_only_the_embedder_learns_in_the_second_phase(lessons):
    generator, embedder = make_generator(0), make_embedder(0)
    generator.unet.requires_grad_(False)
    sound_loss(generator, embedder, draw(lessons, 0, 0)).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in embedder.fc1.parameters())
    frozen = [*generator.unet.parameters(), *generator.prompt.text_encoder.parameters()]
    assert all(parameter.grad is None for parameter in frozen)


def test_the_first_phase_reaches_the_text_tower(lessons):
    generator = make_generator(0)
    generator.prompt.text_encoder.requires_grad_(True)
    text_loss(generator, draw(lessons, 0, 0)).backward()
    table = generator.prompt.text_encoder.embeddings.token_embedding.weight
    assert table.grad is not None
    assert table.grad.any()


def test_a_stopped_phase_goes_on_to_the_same_weights(lessons, tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.conditioning.SAVE_EVERY", 2)
    small = replace(lessons, latents_NCHW=lessons.latents_NCHW[:, :, :4, :4])

    def run(steps: int, total: int, file: Path) -> torch.Tensor:
        embedder, generator = make_embedder(0), make_generator(0)
        generator.unet.requires_grad_(False)

        def loss_of(step: int) -> torch.Tensor:
            if step == steps:
                raise KeyboardInterrupt
            return sound_loss(generator, embedder, draw(small, 0, step))

        learn(embedder, loss_of, total, file)
        return embedder.fc1.weight.detach()

    whole = run(9, 4, tmp_path / "whole.pt")
    with pytest.raises(KeyboardInterrupt):
        run(3, 4, tmp_path / "torn.pt")
    assert torch.equal(run(9, 4, tmp_path / "torn.pt"), whole)
    assert torch.equal(run(0, 4, tmp_path / "torn.pt"), whole)  # nothing is left to do


def _sum_of_product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return (x @ weight).sum()


def test_operations_are_counted_with_attention_and_gradients():
    x, weight = torch.randn(8, 16), torch.randn(16, 16, requires_grad=True)
    assert count_flops(partial(_sum_of_product, x, weight)) == 2 * 2 * 8 * 16 * 16  # x needs no gradient
    query = torch.randn(1, 1, 8, 16, requires_grad=True)

    def attend() -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(query, query, query).sum()

    assert count_flops(attend) == 3 * 2 * 2 * 8 * 8 * 16


def test_the_share_that_was_spent_is_of_both_phases():
    split = Split(ours=100, phase_1=50, phase_2=25, steps=10, steps_1=12, steps_2=16)
    assert split.spent == 1.0


def test_pictures_follow_the_word_the_text_and_the_seed(lessons):
    generator, embedder = make_generator(0), make_embedder(0).eval()
    audio = lessons.audio_NSTF[:2, 0].numpy()
    call: dict[str, Any] = {
        "seeds": [1, 2],
        "guidance_scale": 4.0,
        "num_inference_steps": 2,
        "batch_size": 2,
        "output_type": "latent",
    }
    other: dict[str, Any] = call | {"seeds": [2, 1]}
    vae: object = None
    paint = partial(TokenPainter, generator, embedder, vae)  # pyright: ignore[reportArgumentType] - it paints latents
    heard = paint()(audio_features=audio, **call).images
    assert heard.shape == (2, 4, 12, 12)
    assert torch.equal(heard, paint()(audio_features=audio, **call).images)
    assert not torch.equal(heard, paint()(audio_features=audio[::-1].copy(), **call).images)
    assert not torch.equal(heard, paint()(audio_features=audio, **other).images)
    read = paint(["a photo of a dog"] * 2)(audio_features=audio, **call).images
    assert torch.equal(read, paint(["a photo of a dog"] * 2)(audio_features=audio * 0, **call).images)
    assert not torch.equal(read, heard)


def test_a_wrong_sound_is_of_another_class_and_a_model_that_hears_does_worse_with_it():
    one = judged(np.ones(42, bool))
    from_R = donors(one.true_R)
    assert (one.true_R[from_R] != one.true_R).all()
    assert len(set(from_R)) == 42
    assert one.right_R.mean() == 1
    assert wrong_class(one).right_R.mean() == 0


def test_intervals_are_over_models_and_recordings():
    true_R = np.arange(60) % 6
    rng = np.random.default_rng(0)
    own_R, same = np.arange(60), rng.random(60)
    one = estimate([Measured(true_R=true_R, uploads_R=own_R, value_R=same)], same_recordings=True)
    alone, thrice = estimate_over(true_R, own_R, same[None]), estimate_over(true_R, own_R, np.stack([same] * 3))
    assert alone.value == pytest.approx(one.value)
    assert alone.low == pytest.approx(one.low, abs=0.005)
    assert (alone.low, alone.high) == pytest.approx((thrice.low, thrice.high), abs=0.03)
    spread = np.stack([same * 0, same * 0 + 0.5, same * 0 + 1])
    wide = estimate_over(true_R, own_R, spread)
    assert wide.value == pytest.approx(0.5)
    assert wide.high - wide.low > 0.6
    shared = np.where(np.arange(60) < 30, np.arange(60) % 6, np.arange(60))  # half of them are takes of six uploads
    alike = np.where(shared < 6, 0.0, same)[None]
    apart, joined = estimate_over(true_R, own_R, alike), estimate_over(true_R, shared, alike)
    assert joined.value == apart.value
    assert joined.high - joined.low > 1.2 * (apart.high - apart.low)
    better = estimate_over(true_R, own_R, np.ones((3, 60)), np.zeros((3, 60)))
    assert (better.value, better.low, better.high) == pytest.approx((1, 1, 1))


def test_the_page_and_the_line_say_each_model_and_control():
    right = np.arange(42) % 4 > 0
    conditions = {"audio": [judged(right)] * 2, "wrong": [judged(~right)] * 2, "zeroed": [judged(~right)] * 2}
    results = {"ours": conditions, "token": conditions | {"text": [judged(right | True)] * 2}}
    split = Split(ours=100, phase_1=50, phase_2=25, steps=10, steps_1=12, steps_2=16)
    page, line = markdown(results, np.arange(42), split), json_line(results, np.arange(42), split, fold=5)
    assert "100.0 % of ours" in page
    assert "ours less AudioToken's way: 0.0 %" in page
    assert line["balanced_accuracy"]["token text"] == [1, 1, 1]
    assert len(line["each_model"]["ours"]) == 2
    json.dumps(line)


@pytest.mark.slow
def test_the_whole_measurement_by_models_that_have_hardly_begun(test_data, tmp_path):
    _, line = measure(test_data, tmp_path, steps=3, num_models=1, fold=5, pictures=1)
    assert line["flops"]["spent"] == pytest.approx(1, abs=0.3)
    assert measure(test_data, tmp_path, steps=3, num_models=1, fold=5, pictures=1)[1] == line
