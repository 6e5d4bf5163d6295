"""Any OpenAI-compatible chat server as a policy: words in, words out."""
