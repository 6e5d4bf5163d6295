"""Passage retrieval for search agents: encoders, indexes, a server, a client. Usable on its own.

    python -m agentrl.retriever.build CORPUS.jsonl OUT      # encode and index; may be killed and started again
    python -m agentrl.retriever.serve OUT                   # POST /retrieve on 127.0.0.1:8000

    from agentrl.retriever.client import Client
    Client("http://127.0.0.1:8000").search(["who wrote Emma"], topk=3)   # through the server
    Client("OUT").search(["who wrote Emma"], topk=3)                     # the same object in this process

Importing this package loads nothing heavy; torch, sentence-transformers and FAISS are imported where they are used.
"""
