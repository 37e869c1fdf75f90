"""Start a server, ask it with plain HTTP for vectors and for a ranking, and stop it.

Needs 600 MB for the model, which is downloaded on first use. Takes ten seconds on a laptop after that. Clients of
text-embeddings-inference, OpenAI and Cohere work as well.

    python examples/serve_and_query.py
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from modernbert import InputError, example_data
from modernbert.errors import exit_on_error


def post(address: str, body: dict[str, Any]) -> Any:
    """Return the answer of a route."""
    headers = {"content-type": "application/json"}
    with urlopen(Request(address, json.dumps(body).encode(), headers)) as response:
        return json.load(response)


def main() -> None:
    """Serve, query, stop."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nomic-ai/modernbert-embed-base", help="name on the Hub, or folder")
    parser.add_argument("--output", type=Path, help="folder for the data; a new temporary one")
    options = parser.parse_args()
    data = example_data((options.output or Path(tempfile.mkdtemp())) / "data")
    texts = [page.read_text() for page in sorted((data / "articles").glob("*.md"))]

    # Port 0 takes a free one. The server prints its address when it is ready.
    command = [sys.executable, "-m", "modernbert", "serve", options.model, "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            line = ""
            for line in server.stderr or ():
                if "API documentation" in line:
                    break
            else:
                raise InputError(line.strip().removeprefix("modernbert: "))
            address = line.rsplit(maxsplit=1)[1].removesuffix("/docs")

            vectors = post(f"{address}/embed", {"inputs": texts, "input_type": "document"})
            print(f"/embed: {len(vectors)} vectors of {len(vectors[0])} numbers")
            query = {"query": "my bank card does not work", "texts": texts}
            for each in post(f"{address}/rerank", query)[:3]:
                print(f"/rerank: {each['score']:.3f}  {texts[each['index']].splitlines()[0]}")
        finally:
            server.terminate()


if __name__ == "__main__":
    with exit_on_error():
        main()
