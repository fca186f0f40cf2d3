"""The words of the field, in plain sentences: one home for the app's help and for docs/glossary.md.

`python -m ui.glossary > docs/glossary.md` writes the page; a test holds it to be what stands here.
"""

from __future__ import annotations

TERMS: dict[str, str] = {
    "A2SF": (
        "An eviction method. A key's score is the attention that it got, multiplied by a forgetting factor at every "
        "step, so that old attention counts less than new."
    ),
    "accumulated score": (
        "What an eviction method has added up about a key so far. The key with the lowest one goes first."
    ),
    "ASSA": (
        "Adaptive structured sparse attention: a prefill method whose pattern each query chooses by what it finds "
        "important."
    ),
    "atlas": (
        "The map of a run in which a row is a layer and a column a token. A filled cell is a dropped token, its "
        "colour the step that dropped it."
    ),
    "attention": "The weights, which add up to 1, by which a query mixes the values of the tokens before it.",
    "budget": "How many keys each KV head of a layer may hold after every step.",
    "calibration": (
        "Reading a text once to measure what a method needs to know of a model, such as its outlier channels."
    ),
    "causal pair": "A query and a key that is not later than it. Only these can be attended to at all.",
    "channel": "One of the numbers that a key or a query consists of. A head of dimension 64 has 64.",
    "contested token": "A token that one pipeline has removed and another has not.",
    "coverage": "The share of the dense model's attention that goes to keys which a query still sees.",
    "D": (
        "The largest gap between the distribution functions of two sets of singular values, from 0 (the same) to 1 "
        "(apart). The Kolmogorov–Smirnov distance."
    ),
    "DCP": "Dynamic context pruning: a trained gate by which each token decides which earlier ones to drop for good.",
    "decode": (
        "Writing token by token after the prompt. A decode method chooses which cached keys each new query reads."
    ),
    "dense": "Without any pruning: every query attends to every earlier token with all weights.",
    "density": "The share that is kept or read. Sparsity is what is left to 1.",
    "Double Sparsity": (
        "A decode method that ranks the keys by a few of their channels and reads whole only those that rank highest."
    ),
    "eviction": "Dropping a key and its value from the cache for good.",
    "FFN": "The feed-forward part of a layer, which works on each token alone. Its rows are neurons.",
    "forgetting factor": (
        "What a score is multiplied by at every step: at 1 nothing is forgotten, at 0 only the last query counts."
    ),
    "gate": "A small trained part that decides for a pair of tokens whether the later drops the earlier.",
    "GQA": "Grouped-query attention: several query heads share the keys and values of one KV head.",
    "H2O": (
        "An eviction method. A key's score is all the attention that it ever got; half of the budget is a recent "
        "window."
    ),
    "key, query and value": (
        "What attention compares and mixes. A query asks, the keys say what is where, and the values of the keys that "
        "match are what the query gets."
    ),
    "KL to dense": (
        "The Kullback–Leibler divergence of the pruned prediction of the next token from the dense one, in nats. 0 "
        "where both are the same."
    ),
    "KV cache": (
        "The keys and values of all tokens read so far, kept so that they are not computed again. It grows with the "
        "text."
    ),
    "KV head": "A head that has keys and values of its own, shared by one query head or several.",
    "label cache": "The few channels of every key that are kept apart, to choose by them which keys are read.",
    "leverage score": "How much a row of a matrix matters to the space that its rows span, from 0 to 1.",
    "neuron": "One row of a layer's first FFN matrix, with the column of the last one that belongs to it.",
    "nat": "The unit of information with the natural logarithm: 1.44 bits.",
    "perplexity": (
        "The exponential of the mean loss: among how many equally likely tokens the model seems to choose. Lower is "
        "better."
    ),
    "prefill": (
        "Reading the prompt, all of its tokens at once. A prefill method chooses which keys each of its queries sees."
    ),
    "PruneNet": (
        "A weights method. A policy, trained on the weights alone, chooses the neurons to cut so that the spectrum "
        "stays."
    ),
    "ratio": "The share of the weights that is removed.",
    "recent window": "The last tokens read, which a method may protect from eviction.",
    "regret": "The share of the dense model's attention that goes to keys which the pipeline has evicted.",
    "selection": "Choosing anew for each query which keys are read. What is not read stays in the cache.",
    "sink": "One of the first tokens, which take much attention whatever they say. Without them many models break.",
    "snapshot": "The scores of all keys as they were at one step. A trace keeps up to 64 of them.",
    "spectrum": "The singular values of a matrix, from the largest to the smallest.",
    "step": "The reading of one token: the prompt's first, then what the model writes.",
    "trace": (
        "The record of a run: which token was dropped in which layer and head, when, by what score, and what that cost."
    ),
}


def told(term: str) -> str:
    """What a term means. Raises KeyError for one that the glossary does not have."""
    return TERMS[term]


def markdown() -> str:
    """docs/glossary.md."""
    lines = [
        "# Glossary",
        "",
        "The words of the field as this project uses them. The app shows the same sentences under **Glossary** in its sidebar.",
        "",
    ]
    return "\n".join([*lines, *(f"- **{term}.** {meaning}" for term, meaning in ordered())]) + "\n"


def ordered() -> list[tuple[str, str]]:
    """The terms by letter, whatever their case."""
    return sorted(TERMS.items(), key=lambda item: item[0].lower())


if __name__ == "__main__":
    print(markdown(), end="")
