from .main import main as main
from .main import start as start
