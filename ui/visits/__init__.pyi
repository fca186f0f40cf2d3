from .bar import offer_visits as offer_visits
from .bar import visit_bar as visit_bar
from .told import VISITS as VISITS
from .visit import Step as Step
from .visit import Visit as Visit
