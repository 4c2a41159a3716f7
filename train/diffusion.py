"""The diffusion that PixArt-alpha is trained with: noise, and the loss of a network that predicts it with its variance.

Shapes: B images, C channels of latents, H x W latent pixels; `output_B2CHW` has 2C channels, the noise's mean first,
then the variance's place between its two bounds.

Sources: DDPM (arXiv 2006.11239) for the schedule; improved DDPM (arXiv 2102.09672) for the learned variance.
"""

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

NUM_TIMESTEPS = 1000
BETA_FIRST, BETA_LAST = 1e-4, 0.02
BIN = 1 / 255  # half of the width of one of 256 values in [-1, 1], for the likelihood of the last step
MIN_PROBABILITY = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """One value an image; `vb_B` is in bits for each latent number, `total_B` is what is minimised."""

    mse_B: Tensor
    vb_B: Tensor
    total_B: Tensor

    @property
    def parts(self) -> dict[str, Tensor]:
        """What is logged of it beside the total."""
        return {"mse": self.mse_B, "vb": self.vb_B}


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A row for each timestep, float32; made in float64, where the products of the noisy end keep their digits."""

    signal: Tensor  # x_t = signal * x_0 + spread * noise
    spread: Tensor
    x0_from_noisy: Tensor  # x_0 = x0_from_noisy * x_t - x0_from_noise * noise
    x0_from_noise: Tensor
    mean_from_x0: Tensor  # mean of q(x_{t-1} | x_t, x_0) = mean_from_x0 * x_0 + mean_from_noisy * x_t
    mean_from_noisy: Tensor
    min_log_variance: Tensor  # of q(x_{t-1} | x_t, x_0); its first row, which would be -inf, is the second's
    max_log_variance: Tensor  # the log of beta


@cache
def schedule(device: torch.device) -> Schedule:
    """The linear schedule's tables on a device."""
    with torch.inference_mode(False):  # else a first use for sampling would make tables that training cannot use
        betas = torch.linspace(BETA_FIRST, BETA_LAST, NUM_TIMESTEPS, dtype=torch.float64)
        kept = torch.cumprod(1 - betas, 0)  # alpha bar
        kept_before = torch.cat([torch.ones(1, dtype=torch.float64), kept[:-1]])
        variance = betas * (1 - kept_before) / (1 - kept)
        tables = {
            "signal": kept.sqrt(),
            "spread": (1 - kept).sqrt(),
            "x0_from_noisy": kept.rsqrt(),
            "x0_from_noise": (1 / kept - 1).sqrt(),
            "mean_from_x0": betas * kept_before.sqrt() / (1 - kept),
            "mean_from_noisy": (1 - kept_before) * (1 - betas).sqrt() / (1 - kept),
            "min_log_variance": torch.cat([variance[1:2], variance[1:]]).log(),
            "max_log_variance": betas.log(),
        }
        return Schedule(**{name: table.to(torch.float32).to(device) for name, table in tables.items()})


def add_noise(latents_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
    """Return the latents as they are at a timestep, in float32; the latents are scaled as the network sees them."""
    tables = schedule(latents_BCHW.device)
    signal_B111, spread_B111 = _rows(tables.signal, timesteps_B), _rows(tables.spread, timesteps_B)
    return signal_B111 * latents_BCHW.float() + spread_B111 * noise_BCHW.float()


def diffusion_loss(
    output_B2CHW: Tensor,
    latents_BCHW: Tensor,
    noisy_BCHW: Tensor,
    noise_BCHW: Tensor,
    timesteps_B: Tensor,
    min_snr: float | None = None,
) -> Losses:
    """Squared error of the predicted noise, plus the variational bound, which teaches the variance only.

    The bound is not divided by the number of timesteps, as PixArt-alpha has it. `min_snr` weighs the error in the
    total; as it is logged it stays unweighted.

    Source: improved DDPM, equations 4 to 7, 15 and 16; its code for the likelihood at timestep 0.
    """
    latents_BCHW, noisy_BCHW, noise_BCHW = latents_BCHW.float(), noisy_BCHW.float(), noise_BCHW.float()
    predicted_BCHW, place_BCHW = output_B2CHW.float().chunk(2, dim=1)
    mse_B = (noise_BCHW - predicted_BCHW).square().flatten(1).mean(1)

    tables = schedule(latents_BCHW.device)
    x0_BCHW = (
        _rows(tables.x0_from_noisy, timesteps_B) * noisy_BCHW
        - _rows(tables.x0_from_noise, timesteps_B) * predicted_BCHW.detach()
    )
    mean_from_x0_B111 = _rows(tables.mean_from_x0, timesteps_B)
    from_noisy_BCHW = _rows(tables.mean_from_noisy, timesteps_B) * noisy_BCHW
    true_mean_BCHW = mean_from_x0_B111 * latents_BCHW + from_noisy_BCHW
    mean_BCHW = mean_from_x0_B111 * x0_BCHW + from_noisy_BCHW

    min_B111, max_B111 = _rows(tables.min_log_variance, timesteps_B), _rows(tables.max_log_variance, timesteps_B)
    share_BCHW = (place_BCHW + 1) / 2  # -1 is the lower bound, 1 the upper
    log_variance_BCHW = share_BCHW * max_B111 + (1 - share_BCHW) * min_B111

    divergence_B = _divergence(true_mean_BCHW, min_B111, mean_BCHW, log_variance_BCHW).flatten(1).mean(1)
    surprise_B = -_log_likelihood(latents_BCHW, mean_BCHW, log_variance_BCHW / 2).flatten(1).mean(1)
    vb_B = torch.where(timesteps_B == 0, surprise_B, divergence_B) / math.log(2)
    weighted_B = mse_B if min_snr is None else mse_B * _min_snr_weights(tables, min_snr)[timesteps_B]
    return Losses(mse_B=mse_B, vb_B=vb_B, total_B=weighted_B + vb_B)


def _min_snr_weights(tables: Schedule, min_snr: float) -> Tensor:
    """Of the error at each timestep: min(SNR, min_snr) / SNR, which is 1 from timestep 130 on where `min_snr` is 5.

    Source: min-SNR, arXiv 2303.09556, section 3.4, of a network that predicts the noise.
    """
    ratio = (tables.signal / tables.spread).square()
    return ratio.clamp(max=min_snr) / ratio


def _rows(table: Tensor, timesteps_B: Tensor) -> Tensor:
    return table[timesteps_B].view(-1, 1, 1, 1)


def _divergence(mean_p: Tensor, log_variance_p: Tensor, mean_q: Tensor, log_variance_q: Tensor) -> Tensor:
    """Kullback-Leibler divergence of two Gaussians, KL(p || q), in nats."""
    difference = log_variance_p - log_variance_q
    squared = (mean_p - mean_q).square() * torch.exp(-log_variance_q)
    return 0.5 * (torch.exp(difference) - 1 - difference + squared)


def _log_likelihood(x: Tensor, mean: Tensor, log_deviation: Tensor) -> Tensor:
    """Log probability, in nats, of the bin of width 2/255 around x; the first and the last bin reach to infinity."""
    centred, precision = x - mean, torch.exp(-log_deviation)
    below, above = _normal_cdf((centred - BIN) * precision), _normal_cdf((centred + BIN) * precision)
    inner = (above - below).clamp(min=MIN_PROBABILITY).log()
    lowest, highest = above.clamp(min=MIN_PROBABILITY).log(), (1 - below).clamp(min=MIN_PROBABILITY).log()
    return torch.where(x < -0.999, lowest, torch.where(x > 0.999, highest, inner))


def _normal_cdf(x: Tensor) -> Tensor:
    """The approximation by tanh that improved DDPM trains with."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
