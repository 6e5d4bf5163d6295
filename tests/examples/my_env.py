"""Say the word back: a stock Gymnasium environment, text in and text out."""

import gymnasium
from gymnasium.spaces import Text

WORDS = ["apple", "river", "stone", "cloud"]


class MyEnv(gymnasium.Env):
    observation_space = action_space = Text(1000)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.word = str(self.np_random.choice(WORDS))
        return f"You hear {self.word}. Say it back.", {}

    def step(self, action):
        return "Thank you.", float(self.word in action), True, False, {}
