#!/usr/bin/env bash
# Expected: `accelerate launch --cpu --num_processes 2 script.py` starts the script in two processes, as
#   `torchrun --nproc_per_node 2 script.py` does on the same machine; or it says that it cannot.
# Happens: it starts one process, exits with 0, and says nothing of the number that it was given.
# Why it matters: who tries a distributed training on a machine without GPUs before renting some sees it work, with half
#   the batches that were meant, and has tested nothing of what several processes do.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet accelerate==1.15.0 torch==2.14.1
cat > "$folder/script.py" <<'PYTHON'
from accelerate import PartialState

state = PartialState(cpu=True)
print(f"process {state.process_index} of {state.num_processes}")
PYTHON
export OMP_NUM_THREADS=1 HF_HOME="$folder" CUDA_VISIBLE_DEVICES=
launched=$("$folder/venv/bin/accelerate" launch --cpu --num_processes 2 --num_machines 1 --mixed_precision no \
    --dynamo_backend no "$folder/script.py")
torchrun=$("$folder/venv/bin/torchrun" --standalone --nproc_per_node 2 "$folder/script.py" | sort)
"$folder/venv/bin/python" -c 'import accelerate, torch; print(f"accelerate {accelerate.__version__}, torch {torch.__version__}")'
printf '  accelerate launch --cpu --num_processes 2:\n%s\n  torchrun --nproc_per_node 2:\n%s\n' "$launched" "$torchrun"
[ "$(wc -l <<< "$launched")" = 1 ] && [ "$(wc -l <<< "$torchrun")" = 2 ]
