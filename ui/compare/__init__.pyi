from .needles import haystack as haystack
from .passages import many_texts as many_texts
from .sections import agreement as agreement
from .sections import contested as contested
from .sections import kl as kl
from .spans import spans as spans
from .tradeoff import quality as quality
from .written import generations as generations
