"""The prompt library: short texts of our own, each chosen because pruning shows something on it."""

from __future__ import annotations

from dataclasses import dataclass

ADD_BOS = ("auto", "yes", "no")  # whether a prompt starts with the start token; auto: as the tokenizer does
QUESTION = ("auto", "known", "unknown")  # whether what compresses a prompt reads its question first


@dataclass(frozen=True)
class Prompt:
    title: str
    why: str
    text: str
    spans: str = ""  # that a rule does not find, as `record.spans_of` reads them


_HARBOUR = (
    "The harbour office opens at six, when the fog still hides the far pier and the gulls are the only traffic. "
    "By seven the crane operators have finished their tea and the first container is in the air. "
    "Trucks wait in a line that bends around the fish market, engines off, drivers asleep against the window. "
    "A clerk walks the line with a clipboard and knocks on each door, because the scanner broke in March and nobody has "
    "come to repair it. "
    "At nine the ferry from the islands lands with school children, cheese, and letters. "
)
_NEEDLE = "Remember this: the code of the blue door is 7421. "
_REST = (
    "At noon the wind turns and everything smells of diesel and oranges. "
    "The afternoon shift unloads timber, which is slow work, since every bundle must be measured twice and signed for. "
    "Somebody always sings; somebody always complains about the singing. "
    "When the last ship has left, the pilots tie up their boats, count the ropes, and write the day into a green book "
    "that the museum will one day ask for. "
    "Then the lamps come on along the quay, one after another, and the office closes. "
)

PROMPTS: dict[str, Prompt] = {
    "needle": Prompt(
        "Needle in a haystack",
        "One fact early in a text, asked for at its end: a cache that dropped it cannot answer.",
        _HARBOUR
        + _NEEDLE
        + _REST
        + "Question: what is the code of the blue door? Answer: the code of the blue door is",
        f"needle: {_NEEDLE.strip()}",
    ),
    "repeated": Prompt(
        "Repeated text",
        "A passage twice over: induction heads look back exactly one period, however old those keys are.",
        "Seven grey geese crossed the frozen lake while the miller counted sacks of barley by candlelight. "
        "Nobody had told him that the bridge was gone. " * 4,
    ),
    "code": Prompt(
        "Code",
        "Names and brackets are looked up again far from where they were opened.",
        "def moving_average(values, window):\n"
        '    """Mean of each run of `window` neighbouring values."""\n'
        "    if window < 1:\n"
        '        raise ValueError("window is at least 1")\n'
        "    total = sum(values[:window])\n"
        "    means = [total / window]\n"
        "    for i in range(window, len(values)):\n"
        "        total += values[i] - values[i - window]\n"
        "        means.append(total / window)\n"
        "    return means\n\n\n"
        "prices = [3.0, 4.5, 5.0, 4.0, 6.5, 7.0]\n"
        "smooth = moving_average(prices, window=3)\n"
        "assert len(smooth) == len(prices) - 3 + 1\n"
        "print(smooth)\n",
    ),
    "languages": Prompt(
        "Several languages",
        "Scripts that this tokenizer splits into bytes: pieces of one character are drawn joined.",
        "Good morning. 좋은 아침입니다. Guten Morgen. صباح الخير. おはようございます。 Καλημέρα. "
        "The same greeting again: 좋은 아침입니다, and once more with a smile 🙂 and a flag 🏳️‍🌈.",
    ),
    "chat": Prompt(
        "Chat",
        "The model's own chat format: its markers collect attention and are rarely dropped.",
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nMy name is Ines and I keep bees on a roof in Porto. What should I do before the winter?<|im_end|>\n"
        "<|im_start|>assistant\nCheck that each colony has enough honey, reduce the entrance, and keep the hive dry.<|im_end|>\n"
        "<|im_start|>user\nAnd what is my name, and where do I live?<|im_end|>\n"
        "<|im_start|>assistant\n",
    ),
    "numbers": Prompt(
        "Arithmetic",
        "Numbers that are needed later: a forgetting factor by token class can spare them.",
        "In a race of 160 meters, Ana beats Bo by 56 meters, or 7 seconds. Bo therefore runs 56 meters in 7 seconds, which "
        "is 8 meters per second, and needs 160 / 8 = 20 seconds for the whole course. Ana needs 20 - 7 = 13 seconds. "
        "Question: how long does Ana need for 160 meters? Answer:",
    ),
}
