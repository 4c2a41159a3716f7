"""The loss against upstream's own numbers, and against closed forms in float64."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from train.diffusion import NUM_TIMESTEPS, add_noise, diffusion_loss, schedule

BETAS = np.linspace(1e-4, 0.02, 1000)
KEPT = np.cumprod(1 - BETAS)
LOW, HIGH = -1.0, 1.0  # the places of the two bounds of the variance


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def losses_of(latents: Tensor, timestep: int, predicted_shift: float, place: float) -> tuple[Tensor, Tensor, Tensor]:
    """The losses where the predicted noise is wrong by a constant, and the variance stands at one place."""
    noise, timesteps = draw(*latents.shape, seed=1), torch.full((len(latents),), timestep)
    noisy = add_noise(latents, noise, timesteps)
    output = torch.cat([noise + predicted_shift, torch.full_like(noise, place)], dim=1)
    losses = diffusion_loss(output, latents, noisy, noise, timesteps)
    return losses.mse_B, losses.vb_B, losses.total_B


def test_the_loss_is_upstreams(test_data: Path) -> None:
    golden = {
        key: torch.from_numpy(value)
        for key, value in np.load(test_data.parent / "golden" / "pixart_loss.npz", allow_pickle=False).items()
    }
    noisy = add_noise(golden["x0"], golden["noise"], golden["t"])
    losses = diffusion_loss(golden["model_output"], golden["x0"], noisy, golden["noise"], golden["t"])
    assert (golden["t"] == 0).any()
    torch.testing.assert_close(noisy, golden["x_t"], rtol=0, atol=1e-5)
    torch.testing.assert_close(losses.mse_B, golden["mse"], rtol=0, atol=1e-5)
    torch.testing.assert_close(losses.vb_B, golden["vb"], rtol=0, atol=1e-5)
    torch.testing.assert_close(losses.total_B, golden["loss"], rtol=0, atol=1e-5)


def test_noise_is_added_by_the_linear_schedule() -> None:
    latents, noise = draw(4, 4, 2, 2), draw(4, 4, 2, 2, seed=1)
    timesteps = torch.tensor([0, 1, 500, NUM_TIMESTEPS - 1])
    kept = KEPT[timesteps.numpy()][:, None, None, None]
    expected = np.sqrt(kept) * latents.numpy() + np.sqrt(1 - kept) * noise.numpy()
    torch.testing.assert_close(add_noise(latents, noise, timesteps).double(), torch.from_numpy(expected))


@pytest.mark.parametrize("timestep", [1, 10, 500, 999])
def test_a_perfect_prediction_costs_nothing(timestep: int) -> None:
    mse, vb, total = losses_of(draw(2, 4, 4, 4), timestep, predicted_shift=0.0, place=LOW)
    assert mse.abs().max() == 0
    assert vb.abs().max() < 1e-6
    assert total.abs().max() < 1e-6


@pytest.mark.parametrize("timestep", [1, 10, 500, 999])
@pytest.mark.parametrize("place", [LOW, 0.0, HIGH])
def test_the_bound_is_the_divergence_of_two_gaussians_in_bits(timestep: int, place: float) -> None:
    shift = 0.1
    mse, vb, total = losses_of(draw(2, 4, 4, 4), timestep, shift, place)
    beta, kept, before = BETAS[timestep], KEPT[timestep], KEPT[timestep - 1]
    variance = beta * (1 - before) / (1 - kept)
    predicted = beta ** ((place + 1) / 2) * variance ** ((1 - place) / 2)
    # a shift of the noise moves the mean of the step before by this much (DDPM, equation 11)
    mean_shift = beta / math.sqrt((1 - kept) * (1 - beta)) * shift
    nats = 0.5 * (math.log(predicted / variance) + (variance + mean_shift**2) / predicted - 1)
    torch.testing.assert_close(mse, torch.full_like(mse, shift**2), rtol=1e-4, atol=0)
    torch.testing.assert_close(vb, torch.full_like(vb, nats / math.log(2)), rtol=2e-3, atol=1e-6)
    torch.testing.assert_close(total, mse + vb)


def test_the_last_step_is_a_likelihood_of_one_of_256_values() -> None:
    latents = torch.zeros(1, 4, 2, 2)
    _, vb, _ = losses_of(latents, 0, predicted_shift=0.0, place=HIGH)
    inside = math.erf(1 / 255 / math.sqrt(BETAS[0]) / math.sqrt(2))
    assert vb.item() == pytest.approx(-math.log2(inside), rel=2e-3)  # upstream's normal is an approximation


@pytest.mark.parametrize("edge", [-1.0, 1.0])
def test_beyond_the_range_of_images_nothing_is_lost(edge: float) -> None:
    latents = torch.full((1, 4, 2, 2), edge)
    beyond = -edge * 20  # noise of the other sign moves the predicted latents past the edge
    _, vb, _ = losses_of(latents, 0, beyond, HIGH)
    assert vb.item() == pytest.approx(0, abs=1e-6)
    _, vb, _ = losses_of(latents, 0, -beyond, HIGH)
    assert vb.item() == pytest.approx(-math.log2(1e-12), rel=1e-6)


def test_the_bound_teaches_the_variance_only() -> None:
    latents, noise = draw(3, 4, 4, 4), draw(3, 4, 4, 4, seed=1)
    timesteps = torch.tensor([0, 7, 900])
    output = draw(3, 8, 4, 4, seed=2).requires_grad_()
    losses = diffusion_loss(output, latents, add_noise(latents, noise, timesteps), noise, timesteps)
    (of_bound,) = torch.autograd.grad(losses.vb_B.sum(), output, retain_graph=True)
    (of_error,) = torch.autograd.grad(losses.mse_B.sum(), output)
    assert of_bound[:, :4].abs().max() == 0
    assert of_bound[:, 4:].abs().flatten(1).amax(1).min() > 0
    assert of_error[:, 4:].abs().max() == 0
    torch.testing.assert_close(of_error[:, :4], 2 * (output[:, :4] - noise).detach() / noise[0].numel())


def test_losses_are_computed_in_float32() -> None:
    latents, noise, timesteps = draw(2, 4, 4, 4), draw(2, 4, 4, 4, seed=1), torch.tensor([3, 600])
    noisy, output = add_noise(latents, noise, timesteps), draw(2, 8, 4, 4, seed=2).bfloat16()
    half = diffusion_loss(output, latents, noisy, noise, timesteps)
    full = diffusion_loss(output.float(), latents, noisy, noise, timesteps)
    assert half.total_B.dtype == torch.float32
    assert torch.equal(half.total_B, full.total_B)


def test_tables_first_used_for_sampling_serve_training() -> None:
    schedule.cache_clear()
    latents, noise, timesteps = draw(1, 4, 2, 2), draw(1, 4, 2, 2, seed=1), torch.tensor([5])
    with torch.inference_mode():
        add_noise(latents, noise, timesteps)
    latents.requires_grad_()
    add_noise(latents, noise, timesteps).sum().backward()
    assert latents.grad is not None


def test_min_snr_weighs_the_error_where_there_is_next_to_no_noise_and_nothing_else() -> None:
    timesteps = torch.arange(NUM_TIMESTEPS)
    latents, noise = draw(NUM_TIMESTEPS, 4, 2, 2), draw(NUM_TIMESTEPS, 4, 2, 2, seed=1)
    given = (draw(NUM_TIMESTEPS, 8, 2, 2, seed=2), latents, add_noise(latents, noise, timesteps), noise, timesteps)
    plain, weighed = diffusion_loss(*given), diffusion_loss(*given, 5.0)
    ratio = KEPT / (1 - KEPT)
    weights = np.minimum(ratio, 5) / ratio
    assert weights[129] < 1 == weights[130]
    assert torch.equal(weighed.mse_B, plain.mse_B)
    assert torch.equal(weighed.vb_B, plain.vb_B)
    assert torch.equal(weighed.total_B[130:], plain.total_B[130:])
    torch.testing.assert_close(
        weighed.total_B - plain.vb_B, torch.from_numpy(weights).float() * plain.mse_B, rtol=1e-3, atol=1e-5
    )
    assert (weighed.total_B[:129] < plain.total_B[:129]).all()
