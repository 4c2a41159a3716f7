"""The sounds of the embedded sample, made from formulas: each kind by name, in two variations."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from sonify.demo import sounds_animals as animals
from sonify.demo import sounds_machines as machines
from sonify.demo import sounds_nature as nature
from sonify.demo import sounds_objects as objects
from sonify.demo import sounds_people as people
from sonify.demo.blocks import RATE, Sound, finish
from sonify.keys import hash64

__all__ = ["KINDS", "RATE", "VARIATIONS", "Kind", "synthesise"]

VARIATIONS = 2  # the second differs in tempo, size or pitch, not only in its random numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of sound: what a sound library would call it, its natural peak, and the function that makes it."""

    name: str
    text: str
    peak_dbfs: float
    make: Callable[[Generator, int], Sound]


def _kind(name: str, text: str, peak_dbfs: float, make: Callable[[Generator, int], Sound]) -> Kind:
    return Kind(name=name, text=text, peak_dbfs=peak_dbfs, make=make)


KINDS: tuple[Kind, ...] = (
    _kind("rain", "rain falling on leaves and pavement", -14, nature.rain),
    _kind("wind", "wind blowing in gusts", -12, nature.wind),
    _kind("sea-waves", "sea waves breaking on a beach", -8, nature.sea_waves),
    _kind("thunder", "thunder rolling in a thunderstorm", -3, nature.thunder),
    _kind("stream", "a stream of water gurgling over stones", -14, nature.stream),
    _kind("fire", "a crackling fire", -10, nature.fire),
    _kind("dripping-tap", "water dripping from a tap", -12, nature.dripping_tap),
    _kind("pouring", "water being poured into a glass", -12, nature.pouring),
    _kind("cat-purring", "a cat purring", -16, animals.cat_purring),
    _kind("cat-meowing", "a cat meowing", -8, animals.cat_meowing),
    _kind("dog-barking", "a dog barking", -4, animals.dog_barking),
    _kind("horse-neighing", "a horse neighing and snorting", -6, animals.horse_neighing),
    _kind("horse-galloping", "hooves of a galloping horse, clip-clop", -8, animals.horse_galloping),
    _kind("rooster", "a rooster crowing", -6, animals.rooster_crowing),
    _kind("birds", "birds chirping and singing", -14, animals.birds_chirping),
    _kind("crickets", "crickets chirping in the grass", -18, animals.crickets),
    _kind("owl", "an owl hooting at night", -12, animals.owl_hooting),
    _kind("frogs", "frogs croaking in a pond", -12, animals.frogs_croaking),
    _kind("bees", "bees buzzing", -14, animals.bees_buzzing),
    _kind("church-bell", "a church bell tolling", -5, objects.church_bell),
    _kind("bicycle-bell", "a bicycle bell ringing", -9, objects.bicycle_bell),
    _kind("telephone", "a telephone bell ringing", -7, objects.telephone_ringing),
    _kind("clock", "a clock ticking", -18, objects.clock_ticking),
    _kind("wind-chimes", "wind chimes in a breeze", -12, objects.wind_chimes),
    _kind("footsteps", "footsteps on gravel", -10, objects.footsteps_on_gravel),
    _kind("knocking", "knocking on a wooden door", -7, objects.knocking_on_a_door),
    _kind("page-turning", "turning the pages of a book, paper rustling", -18, objects.turning_pages),
    _kind("spoon", "a spoon clinking in a cup, stirring", -13, objects.stirring_with_a_spoon),
    _kind("coins", "coins clinking and dropping", -10, objects.coins_clinking),
    _kind("camera", "a camera shutter clicking", -11, objects.camera_shutter),
    _kind("keyboard", "typing on a computer keyboard", -14, objects.typing_on_a_keyboard),
    _kind("motorcycle", "a motorcycle engine revving", -4, machines.motorcycle_engine),
    _kind("car-idling", "a car engine idling", -11, machines.car_idling),
    _kind("rocket", "a rocket launch, rumbling and roaring", -2, machines.rocket_rumble),
    _kind("jet", "a jet aircraft passing overhead", -5, machines.jet_passing),
    _kind("helicopter", "a helicopter hovering", -5, machines.helicopter),
    _kind("siren", "an emergency vehicle siren wailing", -6, machines.siren),
    _kind("car-horn", "a car horn honking", -5, machines.car_horn),
    _kind("train", "a train horn and wheels on the rails", -4, machines.train_horn),
    _kind("radio-static", "static on a radio between stations", -15, machines.radio_static),
    _kind("spacecraft-radio", "radio beeps and a voice from a spacecraft", -11, machines.spacecraft_radio),
    _kind("babble", "speech-like babble of one person (synthetic, no words)", -12, people.speech_like_babble),
    _kind("crowd", "a crowd murmuring, people talking in a hall", -11, people.crowd_murmuring),
    _kind("applause", "an audience applauding, clapping hands", -5, people.applause),
    _kind("whistling", "a person whistling a tune", -12, people.whistling),
)


def synthesise(kind: Kind, variation: int) -> NDArray[np.float32]:
    """Make one recording at `RATE`: shape (samples,) or (samples, 2), 6 to 12 seconds, the same in every run."""
    assert 0 <= variation < VARIATIONS, variation
    rng = np.random.default_rng(hash64("demo", kind.name, variation))
    return finish(rng, kind.make(rng, variation), kind.peak_dbfs)
