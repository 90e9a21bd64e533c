#!/bin/sh
# Train, sample and export through a real Tinker server on loopback: skyrl-tx 0.3.0 on CPU, SDK 0.14.0.
#   VERITUNE_TINKER_VENV=folder bench/tinker/run.sh        makes the venv there when it is missing (7 GB with CUDA wheels)
set -eu
here=$(cd "$(dirname "$0")" && pwd)
if [ -z "${VERITUNE_TINKER_VENV:-}" ]; then
    echo "skipped: set VERITUNE_TINKER_VENV to a folder for the server's own venv (transformers < 5, jax; several GB)"
    exit 0
fi
venv=$VERITUNE_TINKER_VENV
if [ ! -x "$venv/bin/tx" ]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install -q uv
    "$venv/bin/uv" pip install -q --python "$venv/bin/python" \
        'skyrl-tx[tinker,jax]==0.3.0' 'tinker==0.14.0' 'transformers<5' pydantic pyyaml
fi
PATH=$venv/bin:$PATH
work=$(mktemp -d)
port=${VERITUNE_TINKER_PORT:-18765}
export PATH JAX_PLATFORMS=cpu HF_HUB_OFFLINE=1 TINKER_API_KEY=tml-loopback PYTHONPATH="$here/../../src"
python "$here/make_model.py" "$work/model"
cd "$venv"
setsid python -m tx.tinker.api --base-model "$work/model" --host 127.0.0.1 --port "$port" \
    --checkpoints-base "$work/checkpoints" --database-url "sqlite:///$work/tx.db" \
    --backend-config '{"max_lora_adapters": 3, "max_lora_rank": 8}' > "$work/server.log" 2>&1 &
server=$!
trap 'kill -- -$server 2>/dev/null || kill $server 2>/dev/null || true; rm -rf "$work"' EXIT
tries=0
until curl -sf "http://127.0.0.1:$port/api/v1/healthz" > /dev/null; do
    tries=$((tries + 1))
    [ $tries -lt 60 ] || { cat "$work/server.log"; exit 1; }
    sleep 1
done
python "$here/loopback.py" "http://127.0.0.1:$port" "$work/model" "$work/out" || { tail -30 "$work/server.log"; exit 1; }
