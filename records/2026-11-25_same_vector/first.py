"""Time how long a process takes to its first vector: python first.py MODEL OUT

Imports, and the first vector from disk, each in a process of its own, ours and transformers in turn.
"""

import json
import statistics
import subprocess
import sys
from pathlib import Path

CODE = {
    "import torch": "import torch",
    "import modernbert": "import torch; from modernbert import ModernBert",
    "first vector, modernbert": (
        "from modernbert import ModernBert; ModernBert.load(MODEL, device='cpu').embed('a text')"
    ),
    "first vector, transformers": (
        "import torch; from transformers import AutoModel, AutoTokenizer; t = AutoTokenizer.from_pretrained(MODEL); "
        "m = AutoModel.from_pretrained(MODEL, dtype=torch.bfloat16).eval()\n"
        "with torch.no_grad(): m(**t('a text', return_tensors='pt')).last_hidden_state.mean(1)"
    ),
}
TIMED = "import time; begun = time.perf_counter(); MODEL = {model!r}\n{code}\nprint(time.perf_counter() - begun)"


def main():
    model, out = sys.argv[1], Path(sys.argv[2])
    seen = {name: [] for name in CODE}
    for _ in range(6):
        for name, code in CODE.items():
            done = subprocess.run(
                [sys.executable, "-c", TIMED.format(model=model, code=code)], capture_output=True, text=True, check=True
            )
            seen[name].append(float(done.stdout.split()[-1]))
    for name, seconds in seen.items():
        kept = seconds[1:]  # the first reads the disk
        print(f"{name}: {statistics.median(kept):.2f} s ({min(kept):.2f} to {max(kept):.2f})")
    out.write_text(json.dumps(seen, indent=1) + "\n")


if __name__ == "__main__":
    main()
