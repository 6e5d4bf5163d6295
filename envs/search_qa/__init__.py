"""Search-augmented question answering: Search-R1's and verl-agent's protocols over any retriever.

env.py          the Gymnasium environment `agentrl/SearchQA-v0`
protocols.py    how other frameworks let a model play it: prompts, projections, penalties, limits
scoring.py      exact match, F1 and format rewards of the model's own text
questions.py    question sets in their published formats
encyclopaedia.py, names.py    a generated encyclopaedia with questions, for use without any files
experts.py      an expert for it
score_transcripts.py  python -m agentrl.envs.search_qa.score_transcripts: scores per data set with intervals
"""
