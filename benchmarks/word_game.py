"""A word game for pretrained models, played by `benchmarks/word_game.toml`: short turns, English, and room to learn."""

from typing import Any

import gymnasium
from gymnasium.spaces import Text

WORDS = (
    "apple", "apron", "arrow", "basket", "beach", "bell", "bird", "boat", "book", "bottle", "bread", "bridge",
    "bucket", "butter", "button", "camera", "candle", "carpet", "castle", "chain", "chair", "cherry", "clock",
    "cloud", "coat", "coffee", "corn", "cotton", "cup", "curtain", "desk", "dish", "door", "drum", "eagle", "egg",
    "engine", "fence", "field", "finger", "fish", "flag", "floor", "flower", "forest", "fork", "fruit", "garden",
    "gate", "glass", "glove", "grape", "grass", "guitar", "hammer", "hat", "honey", "horse", "house", "ice",
    "island", "jacket", "jar", "juice", "kettle", "key", "kitchen", "knife", "ladder", "lake", "lamp", "leaf",
    "lemon", "letter", "lion", "map", "market", "milk", "mirror", "moon", "mountain", "mouse", "needle", "nest",
    "night", "nose", "ocean", "onion", "orange", "oven", "paper", "peach", "pencil", "pepper", "piano", "pillow",
    "plate", "pocket", "potato", "queen", "rabbit", "radio", "rain", "ribbon", "ring", "river", "road", "roof",
    "rope", "rose", "salt", "sand", "school", "shell", "ship", "shirt", "shoe", "silver", "snow", "soap", "sock",
    "spoon", "star", "stone", "storm", "sugar", "sun", "table", "tea", "tent", "tiger", "tomato", "tower", "town",
    "train", "tree", "truck", "turtle", "valley", "village", "violin", "wagon", "wall", "watch", "water", "wheel",
    "window", "wolf", "wood", "yard",
)  # fmt: skip


class HiddenWord(gymnasium.Env[str, str]):
    """One of several words in alphabetical order is hidden; each wrong guess is told whether it comes before or after.

    Who halves what is left finds any of 2^tries - 1 words; who guesses blindly finds one with probability tries / words
    at most.

    Args:
        words: how many are shown, 1 to 150.
        tries: guesses in all, at least 1.
        blind_prob: how likely the expert's guess is any word of the list, at every turn.
        expert: any value: `info["expert_action"]` is offered.
    """

    observation_space = action_space = Text(1000)

    def __init__(self, words: int = 12, tries: int = 4, blind_prob: float = 0.8, expert: str | None = None) -> None:
        self.words, self.tries, self.blind_prob, self.expert = words, tries, blind_prob, expert
        self._shown: list[str] = []
        self._left: list[str] = []
        """Those that may be it, by what was told."""
        self._hidden = ""
        self._turn = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """The words."""
        super().reset(seed=seed)
        places = self.np_random.choice(len(WORDS), size=self.words, replace=False)
        self._shown = self._left = [WORDS[place] for place in sorted(places)]
        self._hidden, self._turn = self._any(self._shown), 0
        return f"One of these words is hidden: {', '.join(self._shown)}. Guess it in {self.tries} tries.", self._info()

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """One guess."""
        self._turn += 1
        guess = action.strip(" .\n").lower()
        is_word, is_found = guess in self._shown, guess == self._hidden
        answer = "Found." if is_found else "That is none of the words."
        if is_word and not is_found:
            is_low = guess < self._hidden
            self._left = [word for word in self._left if word != guess and (word > guess) == is_low]
            answer = f"It comes {'after' if is_low else 'before'} {guess}."
        info = {**self._info(), "success": is_found, "is_valid_action": is_word}
        return answer, float(is_found), is_found or self._turn == self.tries, False, info

    def _info(self) -> dict[str, Any]:
        if self.expert is None or not self._left:
            return {}
        is_blind = self.np_random.random() < self.blind_prob
        return {"expert_action": self._any(self._shown) if is_blind else self._left[len(self._left) // 2]}

    def _any(self, words: list[str]) -> str:
        return words[int(self.np_random.integers(len(words)))]
