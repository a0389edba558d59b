#!/usr/bin/env bash
# The baselines, ImageNet -> COCO: bash configs/baselines.sh up_detr|detreg|scratch vanilla|conditional|deformable
# AP in the paper with vanilla / conditional / multi-scale deformable: scratch 39.7 / 37.7 / 45.5, UP-DETR 40.5 / 39.4 /
# 45.3, DETReg 41.9 / 40.2 / 45.5, Siamese DETR 42.0 / 40.5 / 46.4.
# IMAGENET, COCO: roots of the data sets. SWAV: SwAV's ResNet-50 (800 epochs). PROPOSALS: proposals of the unlabelled
# images (DETReg). 8 GPUs; bf16 is our choice.
set -euo pipefail
method="${1:-}"
detr="${2:-}"
case "$method" in
    up_detr) flags=(--method updetr --batch_size 32) ;;
    detreg) flags=(--method detreg --proposals selective_search --proposal_dir "${PROPOSALS:-}" --batch_size 24) ;;
    scratch) flags=() ;;
    *) echo "usage: $0 up_detr|detreg|scratch vanilla|conditional|deformable" >&2; exit 2 ;;
esac
images=2  # per GPU, in finetuning
[ "$detr" != deformable ] || images=4
start=(--detr "$detr" --backbone resnet50 --backbone_weights "$SWAV")
if [ "$method" != scratch ]; then
    python -m torch.distributed.run --nproc_per_node=8 main_pretrain.py \
        --dataset_file imagefolder --data_path "$IMAGENET/train" "${start[@]}" "${flags[@]}" \
        --num_workers 8 --amp bf16 --resume auto --output_dir "out/${method}_$detr"
    start=(--pretrain "out/${method}_$detr/checkpoint.pth")
fi
python -m torch.distributed.run --nproc_per_node=8 main_finetune.py \
    --dataset_file coco --data_path "$COCO" "${start[@]}" \
    --batch_size "$images" --num_workers 8 --resume auto --output_dir "out/${method}_${detr}_coco"
