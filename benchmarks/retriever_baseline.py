"""A retrieval server in the manner of Search-R1's, for side-by-side measurements.

One tokenisation, one forward pass and one FAISS flat search per request; thread-pool handlers, pydantic bodies, no
batching across requests, no cache; FAISS at its default settings. It serves a folder of `agentrl.retriever.build`
(or by retriever_load.py) and needs the extra [search].

    python benchmarks/retriever_baseline.py FOLDER ENCODER PORT
"""

import json
import sys
from pathlib import Path

import faiss
import numpy as np
import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import AutoModel, AutoTokenizer

from agentrl.retriever.encoder import EncoderSpec, _model_path

folder, encoder_name, port = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
manifest = json.loads((folder / encoder_name / "manifest.json").read_text())
spec = EncoderSpec(**manifest["encoder"])
documents = [json.loads(line) for line in (folder / "corpus" / "passages.jsonl").open(encoding="utf-8")]
index = faiss.IndexFlatIP(manifest["dimension"])
for name in sorted(manifest["files"]):
    index.add(np.fromfile(folder / encoder_name / name, "<f4").reshape(-1, manifest["dimension"]))
tokenizer = AutoTokenizer.from_pretrained(_model_path(spec))
model = AutoModel.from_pretrained(_model_path(spec)).eval()
app = FastAPI()


class QueryRequest(BaseModel):
    """Search-R1's request."""

    queries: list[str]
    topk: int | None = None
    return_scores: bool = False


@torch.no_grad()
def encode(queries: list[str]) -> np.ndarray:
    texts = [spec.query_prefix + query for query in queries]
    inputs = tokenizer(texts, max_length=spec.max_length, padding=True, truncation=True, return_tensors="pt")
    hidden = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None].bool()
    pooled = hidden.masked_fill(~mask, 0.0).sum(dim=1) / inputs["attention_mask"].sum(dim=1)[..., None]
    return torch.nn.functional.normalize(pooled, dim=-1).numpy().astype(np.float32, order="C")


@app.post("/retrieve")
def retrieve(request: QueryRequest) -> dict:
    scores, rows = index.search(encode(request.queries), k=request.topk or 3)
    found = [[documents[int(row)] for row in of_query] for of_query in rows]
    if request.return_scores:
        found = [
            [{"document": d, "score": s} for d, s in zip(ds, ss, strict=True)]
            for ds, ss in zip(found, scores.tolist(), strict=True)
        ]
    return {"result": found}


@app.get("/health")
def health() -> dict:
    return {"status": "ok"}


uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", access_log=False)
