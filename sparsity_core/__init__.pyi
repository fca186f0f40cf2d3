from . import methods as methods
from .inference import generate as generate
from .inference import generate_batch as generate_batch
from .inference import run as run
from .kinds import Pipeline as Pipeline
from .models import load as load
from .record import Trace as Trace

__version__: str
