from .needles import haystack as haystack
from .passages import tested as tested
from .sections import agreement as agreement
from .sections import contested as contested
from .sections import kl as kl
from .spans import spans as spans
from .tradeoff import quality as quality
from .written import generations as generations
