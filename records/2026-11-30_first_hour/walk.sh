# the README from its first command, without a compiler, offline
cd "$WORK"
step() { echo "## $1"; shift; local s=$(date +%s.%N); "$@" 2>&1; local rc=$?; python -c "import sys;print(f'-- rc {sys.argv[3]}, {float(sys.argv[2])-float(sys.argv[1]):.1f} s')" $s $(date +%s.%N) $rc; }
step doctor modernbert doctor
step data modernbert example-data
step vector python -c '
from modernbert import ModernBert
bert = ModernBert.load("answerdotai/ModernBERT-base")  # a name on the Hugging Face Hub, or a folder
print(bert.embed(["a text", "another, of any length"]).shape)
bert = ModernBert.load("sentence-transformers/all-MiniLM-L6-v2")  # a model that is fine-tuned to compare texts
pages = ["When a return reaches our warehouse, the refund is sent.", "Choose Forgot password on the sign-in page."]
print(bert.similarity("I cannot log in", pages).round(2))
'
step embed modernbert embed answerdotai/ModernBERT-base --input data/tickets-dev.tsv --output vectors.npy
step index modernbert index sentence-transformers/all-MiniLM-L6-v2 --input data/articles --output articles.index
step search modernbert search articles.index "my bank card does not work" --top-k 1
step finetune modernbert finetune answerdotai/ModernBERT-base --task classify --train data/tickets-train.tsv --dev data/tickets-dev.tsv --output runs/tickets
step classify modernbert classify runs/tickets/model "I was charged twice" "the parcel never came"
modernbert serve runs/tickets/model --port 8099 &
sleep 15
step request curl -s http://localhost:8099/predict -H 'content-type: application/json' -d '{"inputs": "I was charged twice"}'
kill %1; wait %1
step pretrain modernbert pretrain --config pretrain/adapt --init-from answerdotai/ModernBERT-base --text data/articles --output runs/adapted --phases.adapt.tokens 65536
