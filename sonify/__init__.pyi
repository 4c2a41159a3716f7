from sonify.config.loader import load_config as load_config
from sonify.config.loader import make_config as make_config
from sonify.errors import InputError as InputError
from sonify.errors import WorkError as WorkError
from sonify.report.gallery import build_gallery as build_gallery
from sonify.report.status import read_status as read_status
from sonify.running import plan_run as plan_run
from sonify.running import run as run
from sonify.shards import open_shards as open_shards

__version__: str
