from .family import claims as claims
from .family import family as family
from .family import family_specs as family_specs
from .looks import key_of_look as key_of_look
from .sections import along as along
from .sections import hierarchy as hierarchy
from .sections import pattern as pattern
