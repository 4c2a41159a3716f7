"""The sounds of the embedded sample, made from formulas: each kind by name, in two variations.

Where a number in the recipes has no source beside it, it was fitted: to spectrograms of field recordings, and until an
AudioSet tagger (YAMNet) heard the kind that the recipe claims.
"""

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
from sonify.demo.blocks import Sound, finish
from sonify.keys import hash64

VARIATIONS = 2  # the second differs in tempo, size or pitch, not only in its random numbers


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of sound: what a sound library would call it, its natural peak, and the function that makes it."""

    name: str
    text: str
    peak_dbfs: float
    make: Callable[[Generator, int], Sound]


KINDS = (
    Kind("rain", "rain falling on leaves and pavement", -14, nature.rain),
    Kind("wind", "wind blowing in gusts", -12, nature.wind),
    Kind("sea-waves", "sea waves breaking on a beach", -8, nature.sea_waves),
    Kind("thunder", "thunder rolling over rain", -3, nature.thunder),
    Kind("stream", "a stream of water gurgling over stones", -14, nature.stream),
    Kind("fire", "a crackling fire", -10, nature.fire),
    Kind("dripping-tap", "water dripping from a tap", -12, nature.dripping_tap),
    Kind("pouring", "water being poured into a glass", -12, nature.pouring),
    Kind("cat-purring", "a cat purring", -16, animals.cat_purring),
    Kind("cat-meowing", "a cat meowing", -8, animals.cat_meowing),
    Kind("dog-barking", "a dog barking", -4, animals.dog_barking),
    Kind("horse-neighing", "a horse neighing", -6, animals.horse_neighing),
    Kind("horse-hooves", "hooves of a horse on a road, clip-clop", -8, animals.horse_hooves),
    Kind("rooster", "a rooster crowing", -6, animals.rooster_crowing),
    Kind("birds", "birds chirping and singing", -14, animals.birds_chirping),
    Kind("crickets", "crickets chirping in the grass", -18, animals.crickets),
    Kind("owl", "an owl hooting at night", -12, animals.owl_hooting),
    Kind("frogs", "frogs croaking in a pond", -12, animals.frogs_croaking),
    Kind("bees", "bees buzzing", -14, animals.bees_buzzing),
    Kind("church-bell", "a church bell tolling", -5, objects.church_bell),
    Kind("bicycle-bell", "a bicycle bell ringing", -9, objects.bicycle_bell),
    Kind("telephone", "a telephone bell ringing", -7, objects.telephone_ringing),
    Kind("clock", "a clock ticking", -18, objects.clock_ticking),
    Kind("wind-chimes", "wind chimes in a breeze", -12, objects.wind_chimes),
    Kind("footsteps", "footsteps on gravel", -10, objects.footsteps_on_gravel),
    Kind("knocking", "knocking on a wooden door", -7, objects.knocking_on_a_door),
    Kind("page-turning", "turning the pages of a book, paper rustling", -18, objects.turning_pages),
    Kind("spoon", "a spoon stirring and clinking in a cup", -13, objects.stirring_with_a_spoon),
    Kind("coins", "coins clinking and dropping", -10, objects.coins_clinking),
    Kind("camera", "a camera shutter clicking", -11, objects.camera_shutter),
    Kind("keyboard", "typing on a computer keyboard", -14, objects.typing_on_a_keyboard),
    Kind("motorcycle", "a motorcycle engine revving", -4, machines.motorcycle_engine),
    Kind("car-idling", "a car engine idling", -11, machines.car_idling),
    Kind("rocket", "a rocket launch, rumbling and roaring", -2, machines.rocket_rumble),
    Kind("jet", "a jet aircraft passing overhead", -5, machines.jet_passing),
    Kind("helicopter", "a helicopter hovering", -5, machines.helicopter),
    Kind("siren", "an emergency vehicle siren wailing", -6, machines.siren),
    Kind("car-horn", "a car horn honking", -5, machines.car_horn),
    Kind("train", "a train horn and wheels on the rails", -4, machines.train_passing),
    Kind("radio-static", "static on a radio between stations", -15, machines.radio_static),
    Kind("spacecraft-radio", "radio beeps and a voice from a spacecraft", -11, machines.spacecraft_radio),
    Kind("babble", "speech-like babble of one person, synthetic and without words", -12, people.speech_like_babble),
    Kind("crowd", "a crowd murmuring, people talking in a hall", -11, people.crowd_murmuring),
    Kind("applause", "an audience applauding, clapping hands", -5, people.applause),
    Kind("whistling", "a person whistling a tune", -12, people.whistling),
)


def synthesise(kind: Kind, variation: int) -> NDArray[np.float32]:
    """Make one recording at `blocks.RATE`: shape (samples,) or (samples, 2), 6 to 10 seconds, always the same."""
    assert 0 <= variation < VARIATIONS, variation
    rng = np.random.default_rng(hash64("demo", kind.name, variation))
    return finish(rng, kind.make(rng, variation), kind.peak_dbfs)
