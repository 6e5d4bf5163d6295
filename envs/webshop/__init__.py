"""WebShop: find and buy what a customer asks for, in a simulated web shop.

The environment of princeton-nlp/WebShop (Yao et al., NeurIPS 2022) on numpy and the standard library: `env` is the
Gymnasium environment, `session` the shop's pages and rules, `purchase_reward` its score, `loading` its data,
`protocols` how models talk to it, `shop_server` the shop for people. Its search engine is `agentrl.retriever.lexical`.
The command line is `python -m agentrl.envs.webshop --help`.
"""
