"""Embed the help pages of a shop, and find the pages that answer a question.

Needs 600 MB for the model, which is downloaded on first use. Takes ten seconds on a laptop after that.

    python examples/embed_and_search.py
    python examples/embed_and_search.py --query "where is my parcel"
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

from modernbert import ModernBert, example_data
from modernbert.errors import exit_on_error


def main() -> None:
    """Embed the pages, save the vectors, and print the best pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nomic-ai/modernbert-embed-base", help="name on the Hub, or folder")
    parser.add_argument("--query", default="my bank card does not work")
    parser.add_argument("--output", type=Path, help="folder for the data and the vectors; a new temporary one")
    options = parser.parse_args()
    output = options.output or Path(tempfile.mkdtemp())

    pages = sorted((example_data(output / "data") / "articles").glob("*.md"))
    bert = ModernBert.load(options.model)

    # The model puts its own prompts before documents and queries, if it has any.
    vectors = np.asarray(bert.embed_documents([page.read_text() for page in pages]).vectors)
    np.save(output / "vectors.npy", vectors)
    print(f"{len(vectors)} pages, {vectors.shape[1]} numbers each: {output / 'vectors.npy'}")

    # Vectors have length 1, so that a dot product is the cosine similarity.
    (query,) = np.asarray(bert.embed_queries(options.query).vectors)
    scores = vectors @ query
    print(f"\n{options.query}")
    for number in np.argsort(-scores)[:3]:
        print(f"{scores[number]:.3f}  {pages[number].name}")


if __name__ == "__main__":
    with exit_on_error():
        main()
