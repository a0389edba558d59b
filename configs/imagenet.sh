#!/usr/bin/env bash
# ImageNet -> COCO: bash configs/imagenet.sh vanilla|conditional|deformable|deformable_single_scale
# AP in the paper (without pretraining): vanilla DETR 42.0 (39.7) and Conditional DETR 40.5 (37.7) with 100 queries,
# multi-scale Deformable DETR 46.4 (45.5) with 300 queries.
# IMAGENET, COCO: roots of the data sets. SWAV: SwAV's ResNet-50 (800 epochs). PROPOSALS: EdgeBoxes of the
# unlabelled images. 8 GPUs; bf16 is our choice.
set -euo pipefail
name="${1:-}"
case "$name" in  # images: per GPU, in finetuning
    vanilla|conditional) flags=(--detr "$name"); images=2 ;;
    deformable) flags=(--detr deformable); images=4 ;;
    deformable_single_scale) flags=(--detr deformable --num_feature_levels 1); images=4 ;;
    *) echo "usage: $0 vanilla|conditional|deformable|deformable_single_scale" >&2; exit 2 ;;
esac
python -m torch.distributed.run --nproc_per_node=8 main_pretrain.py \
    --dataset_file imagefolder --data_path "$IMAGENET/train" "${flags[@]}" --backbone resnet50 \
    --backbone_weights "$SWAV" --proposals edgebox --proposal_dir "$PROPOSALS" --batch_size 32 --num_workers 8 \
    --amp bf16 --resume auto --output_dir "out/imagenet_$name"
python -m torch.distributed.run --nproc_per_node=8 main_finetune.py \
    --dataset_file coco --data_path "$COCO" --pretrain "out/imagenet_$name/checkpoint.pth" \
    --batch_size "$images" --num_workers 8 --resume auto --output_dir "out/imagenet_${name}_coco"
