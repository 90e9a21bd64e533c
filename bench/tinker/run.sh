#!/bin/sh
# The Tinker backend against servers on loopback, in three parts; each says what it found as JSON lines.
#   VERITUNE_TINKER_VENV=folder bench/tinker/run.sh        makes what is missing there (2.3 GB, no CUDA)
# 1 loopback.py   the client against skyrl-tx 0.3.0 on CPU, SDK 0.14.0: train, convert, sample, export
# 2 study.py      a study through `veritune run` against the same server, and two that must be refused
# 3 exchanges.py  the newest SDK, 0.38.0, against recorded exchanges: no server of that version was to be had
# PYTHON is the interpreter that Veritune is installed in (default: python).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
if [ -z "${VERITUNE_TINKER_VENV:-}" ]; then
    echo "skipped: set VERITUNE_TINKER_VENV to a folder for the server's own venv (transformers < 5, jax; 2.3 GB)"
    exit 0
fi
venv=$VERITUNE_TINKER_VENV
python=$(command -v "${PYTHON:-python}")
if [ ! -x "$venv/bin/uv" ]; then
    python3 -m venv "$venv"
    # Not skyrl-tx's extra `jax`: on Linux it takes CUDA wheels.
    "$venv/bin/pip" install -q uv 'skyrl-tx[tinker]==0.3.0' 'tinker==0.14.0' 'transformers<5' 'jax>=0.8,<1' \
        'flax>=0.12.2' 'optax>=0.2.5' 'torch==2.13.0'
fi
for sdk in 0.14.0 0.38.0; do  # beside Veritune's own packages, for the client: the SDK and what it alone needs
    [ -d "$venv/sdk-$sdk" ] || "$venv/bin/pip" install -q --no-deps --target "$venv/sdk-$sdk" "tinker==$sdk" \
        distro httpx httpcore h11 h2 hpack hyperframe orjson pyqwest sniffio
done
work=$(mktemp -d)
port=${VERITUNE_TINKER_PORT:-18765}
export JAX_PLATFORMS=cpu HF_HUB_OFFLINE=1 TINKER_API_KEY=tml-loopback TINKER_TELEMETRY=0
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" PYTHONWARNINGS=ignore
"$venv/bin/python" "$here/make_model.py" "$work/model"
cd "$venv"
PATH="$venv/bin:$PATH" setsid "$venv/bin/python" -m tx.tinker.api --base-model "$work/model" --host 127.0.0.1 \
    --port "$port" --checkpoints-base "$work/checkpoints" --database-url "sqlite:///$work/tx.db" \
    --backend-config '{"max_lora_adapters": 16, "max_lora_rank": 8}' > "$work/server.log" 2>&1 &
server=$!
trap 'kill -- -$server 2>/dev/null || kill $server 2>/dev/null || true; rm -rf "$work"' EXIT
tries=0
until curl -sf "http://127.0.0.1:$port/api/v1/healthz" > /dev/null; do
    tries=$((tries + 1))
    [ $tries -lt 120 ] || { cat "$work/server.log"; exit 1; }
    sleep 1
done
with() {  # with SDK SCRIPT ARGUMENTS
    sdk=$1
    shift
    PYTHONPATH="$here/../../src:$venv/sdk-$sdk" "$python" "$@" || { tail -30 "$work/server.log"; exit 1; }
}
with 0.14.0 "$here/loopback.py" "http://127.0.0.1:$port" "$work/model" "$work/out"
with 0.14.0 "$here/study.py" "http://127.0.0.1:$port" "$work/model" "$work/studies"
with 0.38.0 "$here/exchanges.py" "$work/model" "$work/exchanges"
