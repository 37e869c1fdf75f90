"""The service most people write first: FastAPI around sentence-transformers. `MODEL=folder uvicorn peer:app`."""

import os

import torch
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer

# The precision that ours chooses of its own accord.
dtype = getattr(torch, os.environ.get("DTYPE", "bfloat16"))
model = SentenceTransformer(os.environ["MODEL"], device="cpu", model_kwargs={"dtype": dtype})
app = FastAPI()


class Asked(BaseModel):
    inputs: list[str]


@app.get("/ready")
def ready():
    return "yes"


@app.post("/embed")
def embed(asked: Asked):
    return model.encode(asked.inputs, batch_size=32, normalize_embeddings=True, show_progress_bar=False).tolist()
