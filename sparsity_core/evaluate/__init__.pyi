from .perplexities import perplexity as perplexity
