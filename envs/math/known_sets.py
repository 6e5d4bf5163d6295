"""Which problems are a published set, told by their content, and what others are called."""

from collections.abc import Sequence

from agentrl.common.data_source import DataSource, content_digest
from agentrl.envs.math.problems import Problem

# content_digest over (problem, answer) as `load_problems` gives them. The copies are those that docs/data.md names, but
# for math500 (the copy of hkust-nlp/simpleRL-reason).
KNOWN_SETS = {
    "math500": "531b6be0ca86f5237b9f3ec0290ccba550bcd1bf3269e646ac89d85bc15a0cac",
    "minerva": "0155205b1e8e2cb55b3efe60bcfae8840a0783f1957572b7ea0afaccb6662af6",
    "olympiadbench": "5e8829510dadd04db57aafc2b543223f01c8062ce7135cf60479455583d155b0",
    "gsm8k_train": "62ed404cddde4ff555e515cd1932a521932ce0de2044a0d797e941c5459dbd04",
    "gsm8k_test": "681d35e05d013dce1aada7dbc4d0bd51bb7460aea0c7ba065b06781cc55c974d",
    "math_train": "54517d2320ce9932bc494138dbef0596ec687d0739822380460333e645919cb2",
    "aime_1983_2023": "bcdb9d04ace3f7c55e4a7c88fe3b50336ca1d95845e2b377afd712c7d20b3dd4",
}


def source_of(problems: Sequence[Problem], *, is_generated: bool) -> DataSource:
    """Where problems come from: the digest is over their texts and answers, whatever columns a copy has."""
    if is_generated:
        return DataSource("generated", len(problems))
    digest = content_digest((problem.problem, problem.answer) for problem in problems)
    kind = "official" if digest in KNOWN_SETS.values() else "files"
    return DataSource(kind, len(problems), digest, ", ".join(dict.fromkeys(problem.source for problem in problems)))
