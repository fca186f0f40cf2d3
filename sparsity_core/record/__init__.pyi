from .provenance import Provenance as Provenance
from .spec import RunSpec as RunSpec
from .store import Store as Store
from .store import key_of as key_of
from .trace import Trace as Trace
