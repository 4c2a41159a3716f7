"""Projects of other people as their published entry points behave: the same command line or class, the same layout.

Each paints a sound and a seed in one colour: the red and the green of the tone that it hears, the blue of its seed.
"""

from pathlib import Path

import numpy as np
import yaml

from sonify.installed import shipped_configs

# In the environment of the project: what the entry points below paint with. `bad` names tones that it cannot paint, and
# at one in `stop` it is killed with all that started it.
_PAINTING = """
import os, signal, sys
from pathlib import Path
import numpy, soundfile
from PIL import Image

HERE = Path(__file__).parent


def hear(path, rate_hz=None):
    samples, found_hz = soundfile.read(path)
    assert rate_hz in (None, found_hz), f"{path}: {found_hz} Hz"
    assert samples.ndim == 1, samples.shape
    return round(numpy.abs(numpy.fft.rfft(samples)).argmax() * found_hz / len(samples))


def listed(name):
    return [int(word) for word in (HERE / name).read_text().split()]


def paint(tone, seed, side=32):
    if tone in listed("stop"):
        os.killpg(0, signal.SIGKILL)
    if tone in listed("bad"):
        raise RuntimeError(f"{tone} Hz cannot be painted")
    print("painted", tone, seed, flush=True)
    return Image.new("RGB", (side, side), (tone % 251, tone // 251, 20 * seed + 5))
"""
_TORCH = """
import contextlib, types
float16, float32 = "float16", "float32"
cuda = types.SimpleNamespace(is_available=lambda: False)
no_grad = contextlib.nullcontext
_seed = [None]


def manual_seed(seed):
    _seed[0] = seed


def initial_seed():
    return _seed[0]
"""
_CV2 = """
import av


def VideoWriter_fourcc(*letters):
    return "".join(letters)


class VideoWriter:
    def __init__(self, path, fourcc, fps, size):
        assert fourcc == "mp4v", fourcc
        self.film = av.open(path, "w")
        self.stream = self.film.add_stream("mpeg4", rate=fps)
        self.stream.width, self.stream.height = size

    def write(self, frame):
        self.film.mux(self.stream.encode(av.VideoFrame.from_ndarray(frame, format="bgr24")))

    def release(self):
        self.film.mux(self.stream.encode(None))
        self.film.close()
"""
_DIFFUSERS = """
import types
import torch
from painting import paint


class StableUnCLIPImg2ImgPipeline:
    @classmethod
    def from_pretrained(cls, name, torch_dtype=None):
        assert name == "stabilityai/stable-diffusion-2-1-unclip", name
        return cls()

    def to(self, device):
        return self

    def __call__(self, image=None, prompt=None, num_inference_steps=20, guidance_scale=10, image_embeds=None):
        assert (image, prompt, num_inference_steps, guidance_scale) == (None, "", 20, 10)
        return types.SimpleNamespace(images=[paint(image_embeds.tone, torch.initial_seed())])
"""
ENVIRONMENT = {"painting.py": _PAINTING, "torch.py": _TORCH, "cv2.py": _CV2, "diffusers.py": _DIFFUSERS}

_SOUND2SCENE = """
import argparse, os
from PIL import Image
from painting import hear, paint

parser = argparse.ArgumentParser()
parser.add_argument("--checkpoint_vggish")
parser.add_argument("--root_path", default="./checkpoints")
parser.add_argument("--wav_path")
parser.add_argument("--out_path")
args = parser.parse_args()
assert os.path.isfile(args.checkpoint_vggish) and os.path.isfile(os.path.join(args.root_path, "swav.pth.tar"))
os.makedirs(args.out_path, exist_ok=True)
for audio in sorted(os.listdir(args.wav_path)):
    tone = hear(os.path.join(args.wav_path, audio), 16000)
    strip = Image.new("RGB", (8 * 130 + 2, 132))
    for column in range(8):
        strip.paste(paint(tone, column, 128), (2 + 130 * column, 2))
    strip.save(os.path.join(args.out_path, audio.split(".")[0] + ".png"))
"""
_AUDIOTOKEN = """
import argparse, csv, json, os
import av
from painting import hear, paint

parser = argparse.ArgumentParser()
parser.add_argument("--learned_embeds")
parser.add_argument("--pretrained_model_name_or_path", default="stabilityai/stable-diffusion-2")
parser.add_argument("--data_dir")
parser.add_argument("--data_set", default="test")
parser.add_argument("--seed", type=int, default=None)
parser.add_argument("--generation_steps", type=int, default=1)  # 50 in theirs: so few are too few
parser.add_argument("--run_name", default="AudioToken")
args = parser.parse_args()
out = f"output/imgs/{args.run_name}/"
os.makedirs(out, exist_ok=True)
assert args.pretrained_model_name_or_path == "CompVis/stable-diffusion-v1-4"
assert os.path.isfile("models/BEATs/BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt")
assert os.path.isfile(args.learned_embeds)
json.load(open("constants/best_frames.json"))
table = [row for row in csv.DictReader(open("data/VGGSound/vggsound.csv")) if row["set"] == args.data_set]
videos = {name[:-4] for name in os.listdir(args.data_dir + "video/")}
audios = {name[:-4] for name in os.listdir(args.data_dir + "audio/")}
step = 0
for name in sorted(videos & audios):
    if not any(row["ytid"] == name[:11] for row in table):
        continue
    if step >= args.generation_steps:
        break
    step += 1
    with av.open(args.data_dir + f"video/{name}.mp4") as film:
        frames = list(film.decode(video=0))
    frames[len(frames) // 10 * 10]  # the last that it may draw
    tone = hear(args.data_dir + f"audio/{name}.wav", 16000)
    paint(tone, args.seed).save(f"{out}{name}.png")
"""
_GLUEGEN = """
import argparse, csv, json, os
from painting import hear, paint

parser = argparse.ArgumentParser()
for name in ("outdir", "config", "ckpt", "audioclip_ckpt"):
    parser.add_argument(f"--{name}")
for name in ("scale", "ddim_steps", "n_iter", "seed"):
    parser.add_argument(f"--{name}", type=float)
for name in ("plms", "skip_grid"):
    parser.add_argument(f"--{name}", action="store_true")
opt = parser.parse_args()
assert os.path.isfile(opt.ckpt) and os.path.isfile(opt.audioclip_ckpt)
assert os.path.isfile("../checkpoints_all/gluenet_checkpoint/gluenet_sound2img_audioclip_us8k.ckpt")
assert os.path.isfile("null_cond_tensor.pt")
args = json.load(open("./audioclip/protocols/audioclip-us8k-demo.json"))["Dataset"]["args"]
rows = list(csv.DictReader(open(os.path.join(args["root"], "metadata", "UrbanSound8K.csv"))))
paths = [os.path.join(args["root"], "audio", f"fold{row['fold']}", row["slice_file_name"]) for row in rows]
heard = [(row, hear(path, 44100)) for row, path in zip(rows, paths)]
assert any(int(row["fold"]) != args["fold"] for row in rows), "num_samples should be a positive integer value"
samples = os.path.join(opt.outdir, "samples")
os.makedirs(samples, exist_ok=True)
for row, tone in heard:
    if int(row["fold"]) == args["fold"]:
        name = row["class"].replace("_", " ").strip(" ").replace(" ", "-")
        paint(tone, int(opt.seed)).save(os.path.join(samples, f"{len(os.listdir(samples)):05}-{name}.png"))
"""
_GLUEGEN_PROTOCOL = '{"Dataset": {"args": {"root": "../data/urbansound8k_demo", "sample_rate": 44100, "fold": 1}}}'
_MACS = """
import argparse, os
import torch
from painting import paint

parser = argparse.ArgumentParser()
parser.add_argument("--M", type=int)
parser.add_argument("--cfg", action="store_true")
for name in ("prompt", "negative_prompt", "pt_path", "sd_path", "data_dir"):
    parser.add_argument(f"--{name}")
parser.add_argument("--data_set", default="test")
parser.add_argument("--output_dir", default="./output")
parser.add_argument("--dataset_name", default="Landscape")
args = parser.parse_args()
args.data_dir = os.path.join(args.data_dir, args.dataset_name, args.data_set)
args.output_dir = os.path.join(args.output_dir, args.dataset_name)
os.makedirs(args.output_dir, exist_ok=True)
for name in os.listdir(args.output_dir):
    os.remove(os.path.join(args.output_dir, name))
dataset = eval(args.dataset_name)(args)
assert os.path.isfile(os.path.join(args.pt_path, f"{args.dataset_name}_unet.pt")) and (args.M, args.cfg) == (6, True)
for id, tone in dataset:
    paint(tone, torch.initial_seed()).save(f"{args.output_dir}/{id}.jpg", quality=95)
"""
_MACS_LANDSCAPE = """
import os
from painting import hear


class Landscape:
    def __init__(self, args):
        self.folder = args.data_dir
        self.ids = sorted(name[:-4].split("_frame_")[0] for name in os.listdir(os.path.join(args.data_dir, "image")))

    def __iter__(self):
        for id in self.ids:
            yield id, hear(os.path.join(self.folder, "audio", id + ".wav"), 16000)
"""
_SONICDIFFUSION = """
import torch
from painting import hear, paint


class AnimateController:
    def __init__(self):
        self.model = None

    def update_audio_model(self, audio_model_update):
        self.model = audio_model_update

    def generate(self, file=None, audio=None, prompt=None, cfg_scale=5, num_inference_steps=50):
        assert (prompt, cfg_scale, num_inference_steps) == ("", 7.5, 50)
        print(self.model)
        return paint(hear(audio), torch.initial_seed())


controller = AnimateController()
if __name__ == "__main__":
    raise SystemExit("a page")
"""
_IMAGEBIND_DATA = """
from painting import hear


def load_and_transform_audio_data(audio_paths, device):
    return [hear(path) for path in audio_paths]
"""
_IMAGEBIND = """
import os
from types import SimpleNamespace

ModalityType = SimpleNamespace(AUDIO="audio")


class Embedding:
    def __init__(self, tone):
        self.tone = tone

    def to(self, dtype):
        return self


class ImageBindModel:
    def eval(self):
        return self

    def to(self, device):
        return self

    def __call__(self, inputs):
        return {"audio": Embedding(*inputs["audio"])}


def imagebind_huge(pretrained=False):
    assert pretrained and os.path.isfile(".checkpoints/imagebind_huge.pth")
    return ImageBindModel()
"""
_OMNIFLOW = """
import os
from types import SimpleNamespace
import torch
from painting import hear, paint


class OmniFlowPipeline:
    cfg_mode = "old"

    @staticmethod
    def load_pretrained(path, device="cuda"):
        assert os.path.isfile(os.path.join(path, "transformer/diffusion_pytorch_model.bin"))
        return OmniFlowPipeline()

    def __call__(self, prompt=None, height=None, width=None, num_inference_steps=28, guidance_scale=7.0,
                 add_token_embed=False, task="t2i", input_aud=None):
        assert (self.cfg_mode, prompt, height, width, add_token_embed, task) == ("new", "", 512, 512, 1, "a2i")
        return SimpleNamespace(images=[paint(hear(input_aud), torch.initial_seed())])
"""
_BESIDE_MACS = {
    "inference.py": _MACS,
    "dataloader/landscape.py": _MACS_LANDSCAPE,
    "dataloader/__init__.py": "from .landscape import Landscape\nfrom .vggsound import VGGSound\n",
}
CHECKOUTS = {
    "sound2scene": {"test.py": _SOUND2SCENE},
    "audiotoken": {"inference.py": _AUDIOTOKEN},
    "gluegen": {
        "stable-diffusion/scripts/sound2img_gluegen.py": _GLUEGEN,
        "stable-diffusion/audioclip/protocols/audioclip-us8k-demo.json": _GLUEGEN_PROTOCOL,
    },
    "macs": _BESIDE_MACS,
    "sonicdiffusion_landscape": {"app.py": _SONICDIFFUSION},
    "sonicdiffusion_gh": {"app.py": _SONICDIFFUSION},
    "imagebind_unclip": {
        "imagebind/__init__.py": "",
        "imagebind/data.py": _IMAGEBIND_DATA,
        "imagebind/models/__init__.py": "",
        "imagebind/models/imagebind_model.py": _IMAGEBIND,
    },
    "omniflow": {"omniflow/__init__.py": _OMNIFLOW},
}


def write_checkout(recipe: str, folder: Path) -> Path:
    """A checkout of a project, with all that its recipe needs."""
    needed = yaml.safe_load((shipped_configs() / "baselines" / f"{recipe}.yaml").read_text())["needs"]
    for name, text in {**dict.fromkeys(needed, "weights"), **CHECKOUTS[recipe]}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def write_environment(folder: Path, *, bad: str = "", stop: str = "") -> Path:
    """What is installed in the environment of a project."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in {**ENVIRONMENT, "bad": bad, "stop": stop}.items():
        (folder / name).write_text(text)
    return folder


def colour_of(samples: np.ndarray, rate_hz: int, seed: int) -> tuple[int, int, int]:
    """The colour that a project paints a sound in."""
    tone = tone_of(samples, rate_hz)
    return tone % 251, tone // 251, 20 * seed + 5


def tone_of(samples: np.ndarray, rate_hz: int) -> int:
    """The loudest frequency of a sound, in Hz."""
    return round(float(np.abs(np.fft.rfft(samples)).argmax()) * rate_hz / len(samples))
