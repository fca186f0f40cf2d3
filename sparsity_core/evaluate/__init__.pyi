from .accuracies import Accuracy as Accuracy
from .accuracies import accuracy as accuracy
from .perplexities import perplexity as perplexity
from .task_checks import check_tasks as check_tasks
