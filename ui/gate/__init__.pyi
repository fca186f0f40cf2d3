from .family import family_specs as family_specs
from .looks import gate_of as gate_of
from .sections import cost_section as cost_section
from .sections import pairs as pairs
from .sections import trained as trained
from .sections import what_is_kept as what_is_kept
from .trainer import train_section as train_section
from .training import training_place as training_place
