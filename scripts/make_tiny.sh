#!/usr/bin/env bash
# Make an embedded checkpoint from nothing: make_tiny.sh {llada|dream} TASK
# Skill first (right demonstrations), then the bad habit (85 % of the demonstrations).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
family=${1:-} task=${2:-}
usage="usage: make_tiny.sh {llada|dream} {countdown|sudoku|arithmetic|one_line_code}"
case $family in llada) model=tiny ;; dream) model=tiny_dream ;; *) echo "$usage" >&2; exit 2 ;; esac
batch_size=128
case $task in
  countdown) skill_steps=16000 ;;
  sudoku | one_line_code) skill_steps=3000 ;;
  arithmetic) skill_steps=7000 batch_size=64 ;;  # longer prompts: more steps in the same time
  *) echo "$usage" >&2; exit 2 ;;
esac
name=$model-$task
sft="scripts/run python -m drift.sft model=$model task=$task task.train_size=100000
  optim.beta2=0.98 optim.weight_decay=0.01 optim.schedule=cosine optim.warmup_steps=100
  sft.batch_size=$batch_size cluster.threads=1 optim.tokens_per_forward=32768 eval.every=2000"

rm -rf "outputs/$name-skill" "outputs/$name-habit"  # of an earlier time
scripts/run python scripts/blank_tiny.py "$family" "outputs/$name-blank"
$sft model.path="outputs/$name-blank" num_steps="$skill_steps" optim.lr=3e-3 \
  hydra.run.dir="outputs/$name-skill"
$sft model.path="outputs/$name-skill/policy" num_steps=600 optim.lr=1e-3 sft.habit_share=0.85 \
  seed=1 hydra.run.dir="outputs/$name-habit"
rm -rf "outputs/$name"
cp -r "outputs/$name-habit/policy" "outputs/$name"
echo "made outputs/$name"
