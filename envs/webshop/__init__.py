"""WebShop: find and buy what a customer asks for, in a simulated web shop.

The environment of princeton-nlp/WebShop (Yao et al., NeurIPS 2022) on numpy and the standard library: `env` is the
Gymnasium environment, `session` the shop's pages and rules, `reward` its score, `bm25` its search engine, `loading` its
data, `protocols` how models talk to it, `serve` the shop for people. `python -m agentrl.envs.webshop --help`.
"""
