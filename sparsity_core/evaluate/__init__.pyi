from .accuracies import Accuracy as Accuracy
from .accuracies import accuracy as accuracy
from .pairs import Paired as Paired
from .pairs import paired as paired
from .pairs import paired_outcomes as paired_outcomes
from .perplexities import perplexity as perplexity
from .task_checks import check_tasks as check_tasks
