from pathlib import Path

import yaml

from sonify.config import make_config
from sonify.demo.demo import demo_config

SHIPPED = Path(__file__).parents[2] / "configs" / "sonify" / "demo.yaml"


def test_the_shipped_configuration_goes_on_where_the_demo_ended(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "sounds"):
        Path("runs/demo/sample", name).mkdir(parents=True)
    shipped = make_config(yaml.safe_load(SHIPPED.read_text()))
    assert shipped.features is not None
    assert shipped.model_copy(update={"features": None}) == demo_config(Path("runs/demo"))
